//! Keeps answers below what a decoder accepts.
//!
//! One answer that is too large would break the stream that it comes on, and make every write under
//! way there ambiguous. So whoever sends an answer over a network passes it through [`fit`] first,
//! and a [`Call`](super::Call) does so with the answers that it joins.

pub use flotilla_proto::limits::ANSWER_BYTES_MAX;
use flotilla_proto::{Error, v1};
use v1::batch_result::Outcome;
use v1::response::Body as Answer;

/// The answer, or what can be said instead. A read that found too much is refused; of a write, which
/// has happened, the values that it found (`current`) are left out from the first on that finds no
/// room. Scan pages have limits of their own.
pub fn fit(answer: Answer) -> Answer {
    match answer {
        Answer::MultiGet(answer) => {
            let bytes: usize = answer.results.iter().map(|result| bytes_of(result.record.as_ref())).sum();
            if bytes <= ANSWER_BYTES_MAX {
                return Answer::MultiGet(answer);
            }
            let hint = format!("ask for fewer keys: an answer has at most {ANSWER_BYTES_MAX} bytes");
            Answer::Error((&Error::invalid(format!("a multi-get's answer of {bytes} bytes"), hint)).into())
        }
        Answer::Write(mut answer) => {
            let mut bytes = 0;
            for result in &mut answer.results {
                if let Some(Outcome::Result(result)) = &mut result.outcome {
                    bytes += bytes_of(result.current.as_ref());
                    result.current.take_if(|_| bytes > ANSWER_BYTES_MAX);
                }
            }
            Answer::Write(answer)
        }
        other => other,
    }
}

fn bytes_of(record: Option<&v1::Record>) -> usize {
    record.map_or(0, |record| record.key.len() + record.value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Option<v1::Record> {
        Some(v1::Record { value: vec![0; 1 << 20].into(), ..Default::default() })
    }

    #[test]
    fn a_read_is_refused_and_a_write_loses_what_it_found() {
        let get = |count| {
            let results = vec![v1::MultiGetResult { record: record() }; count];
            Answer::MultiGet(v1::MultiGetResponse { results, ..Default::default() })
        };
        assert_eq!(fit(get(3)), get(3));
        let Answer::Error(error) = fit(get(4)) else { panic!("it is not refused") };
        assert!(matches!(Error::from(error), Error::InvalidArgument { .. }));

        let outcome = Outcome::Result(v1::WriteResult { version: 7, current: record(), ..Default::default() });
        let results = vec![v1::BatchResult { outcome: Some(outcome) }; 5];
        let Answer::Write(fitted) = fit(Answer::Write(v1::BatchResponse { results, header: None })) else {
            panic!("a write stays a write")
        };
        let kept = fitted
            .results
            .iter()
            .filter(|result| matches!(&result.outcome, Some(Outcome::Result(result)) if result.current.is_some()));
        assert_eq!((kept.count(), fitted.results.len()), (3, 5));
    }
}
