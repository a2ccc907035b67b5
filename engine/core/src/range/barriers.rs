//! Read barriers: proof, by a round to a quorum, that this replica still leads (ReadIndex, Raft
//! thesis 6.4).
//!
//! All reads that wait when a turn ends share one round. raft-rs drops a request silently before the
//! first commit of a term, and one whose context it has seen; so contexts are never repeated, rounds
//! begin only after that commit, and a round without an answer is begun again.

use std::sync::Arc;
use std::time::Duration;

use flotilla_proto::Error;

use crate::read;
use crate::store::{ReadBarrier, ReadView, Token};
use crate::time::BootTime;

/// The barriers of one range.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    last_context: u64,
    waiting: Vec<ReadBarrier>,
    rounds: Vec<Round>,
    /// Rounds that a quorum has answered: their index must be applied first.
    confirmed: Vec<(u64, Vec<ReadBarrier>)>,
}

#[derive(Debug)]
struct Round {
    context: u64,
    began: BootTime,
    barriers: Vec<ReadBarrier>,
}

type Answers = Vec<(Token, Result<Arc<ReadView>, Error>)>;

impl Barriers {
    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty() && self.confirmed.is_empty()
    }

    /// Whether a round is to begin.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A read asks.
    pub(crate) fn ask(&mut self, barrier: ReadBarrier) {
        self.waiting.push(barrier);
    }

    /// Begins a round for all that wait; returns its context.
    pub(crate) fn begin(&mut self, now: BootTime) -> Vec<u8> {
        self.last_context += 1;
        let barriers = std::mem::take(&mut self.waiting);
        self.rounds.push(Round { context: self.last_context, began: now, barriers });
        self.last_context.to_be_bytes().to_vec()
    }

    /// A quorum has answered a round: it may read once `index` is applied.
    pub(crate) fn confirm(&mut self, context: &[u8], index: u64) {
        let Ok(context) = context.try_into().map(u64::from_be_bytes) else { return };
        if let Some(at) = self.rounds.iter().position(|round| round.context == context) {
            let round = self.rounds.remove(at);
            self.confirmed.push((index, round.barriers));
        }
    }

    /// Lets those read whose index is applied. One that was admitted by an older epoch is refused: the range may hold
    /// fewer keys by now than it asked for.
    pub(crate) fn release(&mut self, applied: u64, view: &Arc<ReadView>, answers: &mut Answers) {
        self.confirmed.retain(|(index, barriers)| {
            if *index > applied {
                return true;
            }
            let verdict = |barrier: &ReadBarrier| {
                let epoch = Some(&barrier.epoch);
                read::check_epoch(&view.descriptor, &view.siblings, epoch).map(|()| view.clone())
            };
            answers.extend(barriers.iter().map(|barrier| (barrier.token, verdict(barrier))));
            false
        });
    }

    /// Puts rounds that have got no answer for `patience` back, and answers those whose deadline has
    /// passed.
    pub(crate) fn expire(&mut self, now: BootTime, patience: Duration, answers: &mut Answers) {
        let (late, young): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.rounds).into_iter().partition(|round| now.since(round.began) >= patience);
        self.rounds = young;
        self.waiting.extend(late.into_iter().flat_map(|round| round.barriers));
        let mut keep = |barriers: &mut Vec<ReadBarrier>| {
            barriers.retain(|barrier| {
                if barrier.deadline > now {
                    return true;
                }
                let stage = "while a quorum was asked whether this replica still leads".into();
                answers.push((barrier.token, Err(Error::Timeout { stage })));
                false
            });
        };
        keep(&mut self.waiting);
        self.rounds.iter_mut().for_each(|round| keep(&mut round.barriers));
        self.confirmed.iter_mut().for_each(|(_, barriers)| keep(barriers));
    }

    /// Refuses all: this replica no longer leads.
    pub(crate) fn refuse(&mut self, error: &Error, answers: &mut Answers) {
        let rounds = self.rounds.drain(..).flat_map(|round| round.barriers);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, barriers)| barriers);
        let all = self.waiting.drain(..).chain(rounds).chain(confirmed);
        answers.extend(all.map(|barrier| (barrier.token, Err(error.clone()))));
    }
}
