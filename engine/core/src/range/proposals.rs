//! Writes on their way: queued for the next entry, and proposed but not yet applied.
//!
//! What can be told to the caller, and when:
//! - refused before the proposal: surely not applied;
//! - proposed, and the entry was applied: its results;
//! - proposed, and another entry was applied at its index: surely not applied, and never will be;
//! - proposed, and a snapshot leapt over its index, or the caller's deadline passed: unknown.
//!
//! A leader that is deposed does not give its proposals up: the next leader may commit them.

use std::collections::VecDeque;

use flotilla_proto::{Error, v1};

use crate::apply::{ApplyRefusal, EntryResults};
use crate::command;
use crate::store::{Token, Write, WriteAnswer};
use crate::time::BootTime;

/// The writes of one range.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    queue: VecDeque<Write>,
    /// By index, then term.
    pending: VecDeque<Pending>,
    bytes: usize,
}

#[derive(Debug)]
struct Pending {
    index: u64,
    term: u64,
    bytes: usize,
    /// Per request of the entry: who waits, and until when. None: was told that it is unknown.
    waiting: Vec<Option<(Token, BootTime)>>,
}

/// Writes that become one entry.
pub(crate) struct Gathered {
    pub requests: Vec<v1::WriteRequest>,
    pub waiting: Vec<(Token, BootTime)>,
    pub bytes: usize,
}

type Answers = Vec<(Token, Result<WriteAnswer, Error>)>;

/// Bytes that a request counts for.
pub(crate) fn request_bytes(request: &v1::WriteRequest) -> usize {
    request.ops.iter().map(|op| command::op_bytes(op) + 16).sum()
}

fn unknown(reason: &str) -> Error {
    Error::Ambiguous { reason: reason.into() }
}

impl Proposals {
    /// Bytes queued and proposed.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether writes wait to be proposed.
    pub(crate) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether anybody waits for anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.pending.is_empty()
    }

    /// Queues a write for the next entry.
    pub(crate) fn queue(&mut self, write: Write) {
        self.bytes += request_bytes(&write.request);
        self.queue.push_back(write);
    }

    /// Takes queued writes for one entry of about `bytes_target`, one at least; `None` if there are
    /// none. Writes whose deadline has passed are answered instead.
    pub(crate) fn gather(&mut self, now: BootTime, bytes_target: usize, answers: &mut Answers) -> Option<Gathered> {
        let mut gathered = Gathered { requests: Vec::new(), waiting: Vec::new(), bytes: 0 };
        while let Some(next) = self.queue.front() {
            let bytes = request_bytes(&next.request);
            if !gathered.requests.is_empty() && gathered.bytes + bytes > bytes_target {
                break;
            }
            let write = self.queue.pop_front()?;
            if write.deadline <= now {
                self.bytes -= bytes;
                answers.push((write.token, Err(Error::Timeout { stage: "before it was proposed".into() })));
                continue;
            }
            gathered.bytes += bytes;
            gathered.waiting.push((write.token, write.deadline));
            gathered.requests.push(write.request);
        }
        (!gathered.requests.is_empty()).then_some(gathered)
    }

    /// The gathered writes stand in the log at `index` now.
    pub(crate) fn proposed(&mut self, index: u64, term: u64, bytes: usize, waiting: Vec<(Token, BootTime)>) {
        let waiting = waiting.into_iter().map(Some).collect();
        // Almost always the last. But a replica that leads again may find its log shorter than when it led
        // before, and what it proposed then still waits for its indexes to be applied.
        let at = self.pending.partition_point(|other| (other.index, other.term) < (index, term));
        self.pending.insert(at, Pending { index, term, bytes, waiting });
    }

    /// The gathered writes could not be proposed.
    pub(crate) fn dropped(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }

    /// Refuses what is queued: surely not applied.
    pub(crate) fn refuse_queued(&mut self, error: &Error, answers: &mut Answers) {
        for write in self.queue.drain(..) {
            self.bytes -= request_bytes(&write.request);
            answers.push((write.token, Err(error.clone())));
        }
    }

    /// Refuses those queued writes that may not stay.
    pub(crate) fn keep_queued(
        &mut self,
        stays: impl Fn(&v1::WriteRequest) -> bool,
        error: &Error,
        answers: &mut Answers,
    ) {
        let (stay, go): (VecDeque<Write>, VecDeque<Write>) =
            std::mem::take(&mut self.queue).into_iter().partition(|write| stays(&write.request));
        self.queue = stay;
        for write in go {
            self.bytes -= request_bytes(&write.request);
            answers.push((write.token, Err(error.clone())));
        }
    }

    /// Entries up to `applied` are applied. The errors answer a proposal whose place another entry took, and one that
    /// the range's epoch had left behind.
    pub(crate) fn applied(
        &mut self,
        applied: u64,
        results: Vec<EntryResults>,
        [overwritten, outdated]: [&Error; 2],
        answers: &mut Answers,
    ) {
        let mut results = results.into_iter().peekable();
        while self.pending.front().is_some_and(|pending| pending.index <= applied) {
            let Some(pending) = self.pending.pop_front() else { return };
            self.bytes -= pending.bytes;
            while results.next_if(|entry| entry.index < pending.index).is_some() {}
            let own = results.next_if(|entry| entry.index == pending.index && entry.term == pending.term);
            match own.map(|entry| entry.requests) {
                Some(Ok(results)) => answer(pending, results, answers),
                Some(Err(ApplyRefusal::Stamp)) | None => refuse(pending, overwritten, answers),
                // The range changed between evaluation and apply; nothing was written.
                Some(Err(ApplyRefusal::Epoch | ApplyRefusal::Change)) => refuse(pending, outdated, answers),
            }
        }
    }

    /// A snapshot leapt over all up to `index`: what became of these is unknown.
    pub(crate) fn leapt(&mut self, index: u64, answers: &mut Answers) {
        while self.pending.front().is_some_and(|pending| pending.index <= index) {
            let Some(pending) = self.pending.pop_front() else { return };
            self.bytes -= pending.bytes;
            refuse(pending, &unknown("the replica was overtaken by a snapshot"), answers);
        }
    }

    /// The replica is gone: what becomes of all that was proposed is unknown.
    pub(crate) fn lost(&mut self, answers: &mut Answers) {
        for pending in std::mem::take(&mut self.pending) {
            self.bytes -= pending.bytes;
            refuse(pending, &unknown("the replica was removed before the write was applied here"), answers);
        }
    }

    /// Answers those whose deadline has passed. Queued ones wait longer than a turn behind a split. What nobody waits
    /// for any more is let go, unless it is at or below `own`, the end of what this replica may still have committed as
    /// the leader: beyond it, another leader's log took its place or will, or a quorum is gone; its index may not be
    /// applied for as long as nobody writes, or ever, and its bytes are the node's.
    pub(crate) fn expire(&mut self, now: BootTime, own: u64, answers: &mut Answers) {
        let bytes = &mut self.bytes;
        self.queue.retain(|write| {
            let late = write.deadline <= now;
            if late {
                *bytes -= request_bytes(&write.request);
                answers.push((write.token, Err(Error::Timeout { stage: "before it was proposed".into() })));
            }
            !late
        });
        for pending in &mut self.pending {
            for slot in &mut pending.waiting {
                if let Some((token, _)) = slot.take_if(|(_, deadline)| *deadline <= now) {
                    answers.push((token, Err(unknown("the deadline passed after the write was proposed"))));
                }
            }
        }
        let bytes = &mut self.bytes;
        self.pending.retain(|of| {
            let stays = of.index <= own || of.waiting.iter().any(Option::is_some);
            *bytes -= if stays { 0 } else { of.bytes };
            stays
        });
    }
}

fn answer(pending: Pending, results: Vec<Vec<v1::WriteResult>>, answers: &mut Answers) {
    for (slot, results) in pending.waiting.into_iter().zip(results) {
        if let Some((token, _)) = slot {
            answers.push((token, Ok(WriteAnswer { term: pending.term, results })));
        }
    }
}

fn refuse(pending: Pending, error: &Error, answers: &mut Answers) {
    for (token, _) in pending.waiting.into_iter().flatten() {
        answers.push((token, Err(error.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::RangeId;
    use flotilla_proto::error::Action;

    fn overwritten() -> Error {
        Error::NotLeader { range: RangeId(2), leader: None, descriptors: vec![] }
    }

    fn pending(indexes: &[u64]) -> Proposals {
        let mut proposals = Proposals::default();
        for index in indexes {
            proposals.queue(Write {
                token: Token(*index),
                range: RangeId(2),
                epoch: v1::Epoch::default(),
                request: v1::WriteRequest::default(),
                deadline: BootTime(100),
            });
            let gathered = proposals.gather(BootTime(0), 1, &mut vec![]).expect("one is queued");
            proposals.proposed(*index, 6, gathered.bytes, gathered.waiting);
        }
        proposals
    }

    fn entry(index: u64, term: u64) -> EntryResults {
        EntryResults { index, term, requests: Ok(vec![vec![v1::WriteResult::default()]]) }
    }

    #[test]
    fn a_proposal_whose_place_another_entry_took_was_surely_not_applied() {
        let mut proposals = pending(&[7, 8, 9]);
        let mut answers = vec![];
        // 7 was replaced by an empty entry, 8 by one of another term.
        proposals.applied(9, vec![entry(8, 7), entry(9, 6)], [&overwritten(), &overwritten()], &mut answers);
        let actions: Vec<_> = answers.iter().map(|(_, answer)| answer.as_ref().map_err(Error::action)).collect();
        assert!(matches!(actions[..], [Err(Action::RefreshRoute), Err(Action::RefreshRoute), Ok(_)]), "{answers:?}");
        assert!(proposals.is_empty());
        assert_eq!(proposals.bytes(), 0);
    }

    #[test]
    fn a_leader_of_two_terms_answers_for_both_of_them_in_order() {
        // In term 6 it proposed 7, 8, 9; another leader's entry took 7, and in term 8 it proposed 8 anew.
        let mut proposals = pending(&[7, 8, 9]);
        proposals.proposed(8, 8, 0, vec![(Token(88), BootTime(100))]);
        let mut answers = vec![];
        proposals.applied(8, vec![entry(7, 7), entry(8, 8)], [&overwritten(), &overwritten()], &mut answers);
        let said: Vec<_> = answers.iter().map(|(token, answer)| (token.0, answer.is_ok())).collect();
        assert_eq!(said, [(7, false), (8, false), (88, true)]);
        proposals.applied(9, vec![entry(9, 8)], [&overwritten(), &overwritten()], &mut answers);
        assert_eq!(answers.len(), 4);
        assert!(answers[3].1.is_err() && proposals.is_empty());
    }

    #[test]
    fn after_a_snapshot_or_a_deadline_the_outcome_is_unknown() {
        let mut proposals = pending(&[7, 8]);
        let mut answers = vec![];
        proposals.leapt(7, &mut answers);
        proposals.expire(BootTime(100), 8, &mut answers);
        let actions: Vec<_> = answers.iter().map(|(_, answer)| answer.as_ref().map_err(Error::action)).collect();
        assert!(matches!(actions[..], [Err(Action::Ambiguous), Err(Action::Ambiguous)]));
        proposals.applied(8, vec![entry(8, 6)], [&overwritten(), &overwritten()], &mut answers);
        assert_eq!(answers.len(), 2, "nobody is answered twice");
    }

    #[test]
    fn a_write_that_expires_in_the_queue_was_surely_not_applied() {
        let mut proposals = Proposals::default();
        let write = Write {
            token: Token(1),
            range: RangeId(2),
            epoch: v1::Epoch::default(),
            request: v1::WriteRequest::default(),
            deadline: BootTime(10),
        };
        proposals.queue(write);
        let mut answers = vec![];
        assert!(proposals.gather(BootTime(10), 1, &mut answers).is_none());
        assert!(matches!(&answers[..], [(Token(1), Err(Error::Timeout { .. }))]));
        assert_eq!(proposals.bytes(), 0);
    }
}
