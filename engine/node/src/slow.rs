//! The slow-request log: requests over the threshold, with the time that each stage took.
//!
//! Events of tracing's target "slow"; microseconds throughout. At most so many a second: when everything
//! is slow, the log must not be what makes it slower. All are counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_engine::time::BootTime;
use flotilla_proto::Error;

use crate::inbox::Request;
use crate::requests;

/// Most events in a second.
const EVENTS_PER_SECOND: u64 = 20;

/// Which requests are reported.
#[derive(Debug)]
pub(crate) struct SlowLog {
    threshold: Duration,
    second: AtomicU64,
    events: AtomicU64,
}

impl SlowLog {
    /// Requests that take at least so long.
    pub fn new(threshold: Duration) -> Self {
        Self { threshold, second: AtomicU64::new(0), events: AtomicU64::new(0) }
    }

    /// Whether a request that took so long is slow.
    pub fn is_slow(&self, took: Duration) -> bool {
        took >= self.threshold
    }

    /// Whether one more event fits into this second. Two threads at a second's turn may both begin it
    /// anew, which lets a few more through.
    pub fn has_room(&self, now: BootTime) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.events.store(0, Ordering::Relaxed);
        }
        self.events.fetch_add(1, Ordering::Relaxed) < EVENTS_PER_SECOND
    }
}

/// How long a write spent in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WriteStages {
    /// From arrival until the loop took it.
    pub queue: Duration,
    /// Until its entry was durable here.
    pub log: Duration,
    /// Until it was committed and its apply began.
    pub commit: Duration,
    /// Its apply.
    pub apply: Duration,
    /// From arrival to answer.
    pub total: Duration,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn outcome(error: Option<&Error>) -> String {
    error.map_or_else(|| "ok".into(), |error| format!("{:?}", error.kind()))
}

/// Reports a slow write.
pub(crate) fn write(request: &Request, stages: &WriteStages, error: Option<&Error>) {
    tracing::warn!(
        target: "slow",
        kind = requests::kind_of(&request.body),
        range = request.header.range_id,
        request = request.id,
        trace_id = request.header.trace_id,
        outcome = outcome(error),
        total_micros = micros(stages.total),
        queue_micros = micros(stages.queue),
        log_micros = micros(stages.log),
        commit_micros = micros(stages.commit),
        apply_micros = micros(stages.apply),
        "slow request"
    );
}

/// Reports a slow read.
pub(crate) fn read(request: &Request, took: Duration, quorum: bool, error: Option<&Error>) {
    tracing::warn!(
        target: "slow",
        kind = requests::kind_of(&request.body),
        range = request.header.range_id,
        request = request.id,
        trace_id = request.header.trace_id,
        outcome = outcome(error),
        total_micros = micros(took),
        by = if quorum { "quorum" } else { "lease" },
        "slow request"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_events() {
        let log = SlowLog::new(Duration::from_millis(5));
        assert!(log.is_slow(Duration::from_millis(5)) && !log.is_slow(Duration::from_micros(4_999)));
        for second in [7, 8] {
            let now = BootTime(second * 1_000_000_000);
            let reported = (0..100).filter(|_| log.has_room(now)).count();
            assert_eq!(reported as u64, EVENTS_PER_SECOND);
        }
    }
}
