//! What to do after a failed attempt: whom to ask next and when, or which error to give up with.
//!
//! The one place that knows this, as a pure function, so that its table can be tested whole.
//! Invariants:
//! - a write is sent again only where it was surely not applied;
//! - nothing is sent at or after the deadline;
//! - only the first two redirects of a call are followed at once: nodes that point at each other
//!   after a leader's death cannot make a storm.

use std::time::Duration;

use flotilla_mutants::Mutant;
use flotilla_proto::error::Action;
use flotilla_proto::{Error, NodeId};

use super::Time;

/// First pause, doubled with each failure: about what an election takes that nothing is in the way of. Until it has grown
/// to the longest, a call makes two attempts more than it would from 10 ms on.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
/// Longest pause that is not asked for by the node: a new leader is found this soon.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// So many failures are answered at once where the node said what to do instead.
const REDIRECTS_AT_ONCE: u32 = 2;
/// From so many failures on, routes are learned anew now and then, whatever the errors say.
const REFRESH_EVERY: u32 = 4;

/// Whether a request may change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may be repeated at will.
    Read,
    /// It may be repeated only where it was surely not applied.
    Write,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The node said so.
    Answer(Error),
    /// The request surely never reached the node.
    NotSent(String),
    /// The request was not sent, because the node's address is not known.
    NoAddress,
    /// It may have reached the node; the answer is lost or makes no sense.
    Broken(String),
    /// No answer came for so long that another replica is asked. Reads only.
    NoAnswer,
}

impl Failure {
    /// The failure as a text within a sentence.
    fn text(&self) -> String {
        match self {
            Self::Answer(error) => error.to_string(),
            Self::NotSent(reason) | Self::Broken(reason) => reason.clone(),
            Self::NoAddress => "a node's address is not known".into(),
            Self::NoAnswer => "no answer".into(),
        }
    }
}

/// The circumstances of a failed attempt.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// What was asked for.
    pub access: Access,
    /// The node that was asked.
    pub node: NodeId,
    /// Failures before this one.
    pub failures: u32,
    /// Whether more is known of the span now than what the request was sent by.
    pub learned: bool,
    /// The time now.
    pub now: Time,
    /// The caller's deadline.
    pub deadline: Time,
    /// A random number.
    pub rand: u64,
}

/// Whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The leader, as far as the cache knows it.
    Leader,
    /// This node.
    Node(NodeId),
    /// Another replica than this node's.
    Other(NodeId),
}

/// What to do after a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Send it again.
    Again {
        /// To whom.
        target: Target,
        /// Not before.
        at: Time,
        /// Learn the routes first.
        refresh: bool,
    },
    /// Give this to the caller.
    GiveUp(Error),
}

/// What to do after a failed attempt.
pub fn decide(failure: &Failure, attempt: &Attempt) -> Decision {
    let other = Target::Other(attempt.node);
    if Mutant::RepeatUnknownWrite.is_on() && matches!(failure, Failure::Broken(_) | Failure::NoAnswer) {
        return again(failure, attempt, other, pause(attempt), false);
    }
    match failure {
        Failure::Broken(reason) if attempt.access == Access::Write => GiveUp(Error::Ambiguous {
            reason: format!("{reason}, after the write was sent to node {}", attempt.node.0),
        }),
        Failure::NoAnswer if attempt.access == Access::Write => {
            GiveUp(Error::Ambiguous { reason: format!("node {} has not answered", attempt.node.0) })
        }
        Failure::NotSent(_) | Failure::Broken(_) => again(failure, attempt, other, pause(attempt), false),
        // The routes bring the nodes' addresses along.
        Failure::NoAddress if attempt.failures == 0 => again(failure, attempt, Target::Leader, Duration::ZERO, true),
        Failure::NoAddress => again(failure, attempt, other, pause(attempt), true),
        Failure::NoAnswer => again(failure, attempt, other, Duration::ZERO, false),
        Failure::Answer(error) => match error.action() {
            // Another cluster's node listens where this one did: whoever leads now is elsewhere.
            _ if matches!(error, Error::ClusterMismatch { .. }) => again(failure, attempt, other, pause(attempt), true),
            Action::RefreshRoute => after_route_error(failure, error, attempt),
            Action::Retry => after_refusal(failure, error, attempt),
            Action::Fail => GiveUp(error.clone()),
            Action::Ambiguous if attempt.access == Access::Write => GiveUp(error.clone()),
            Action::Ambiguous => again(failure, attempt, Target::Leader, pause(attempt), false),
        },
    }
}

use Decision::GiveUp;

fn after_route_error(failure: &Failure, error: &Error, attempt: &Attempt) -> Decision {
    let prompt = if attempt.failures < REDIRECTS_AT_ONCE { Duration::ZERO } else { pause(attempt) };
    match error {
        Error::NotLeader { leader: Some(leader), .. } if *leader != attempt.node => {
            again(failure, attempt, Target::Node(*leader), prompt, false)
        }
        // Nobody leads yet: an election takes longer than any redirect.
        Error::NotLeader { .. } => again(failure, attempt, Target::Other(attempt.node), pause(attempt), false),
        // Its replica is gone, or has not come yet; nodes' tables may be behind that.
        Error::RangeNotFound { .. } => again(failure, attempt, Target::Other(attempt.node), prompt, true),
        _ if attempt.learned => again(failure, attempt, Target::Leader, prompt, false),
        // The node is behind what is known here.
        _ => again(failure, attempt, Target::Other(attempt.node), prompt, true),
    }
}

fn after_refusal(failure: &Failure, error: &Error, attempt: &Attempt) -> Decision {
    match error {
        Error::ServerBusy { retry_after_ms, .. } => {
            let wait = Duration::from_millis(*retry_after_ms).saturating_add(pause(attempt));
            again(failure, attempt, Target::Leader, wait, false)
        }
        Error::Unavailable { .. } => again(failure, attempt, Target::Other(attempt.node), pause(attempt), false),
        _ => again(failure, attempt, Target::Leader, pause(attempt), false),
    }
}

fn again(failure: &Failure, attempt: &Attempt, target: Target, wait: Duration, refresh: bool) -> Decision {
    let at = attempt.now.saturating_add(wait);
    if at >= attempt.deadline {
        return GiveUp(timed_out(attempt.failures + 1, failure));
    }
    let refresh = refresh || attempt.failures % REFRESH_EVERY == REFRESH_EVERY - 1;
    Decision::Again { target, at, refresh }
}

/// The error of a call whose time was over before an attempt succeeded; only for calls of which
/// surely nothing was applied.
pub(super) fn timed_out(failures: u32, last: &Failure) -> Error {
    // These say by themselves that nothing was applied, and what a person can do about it.
    if let Failure::Answer(known @ (Error::Timeout { .. } | Error::DiskFull { .. } | Error::ServerBusy { .. })) = last {
        return known.clone();
    }
    let attempts = if failures == 1 { "1 attempt".into() } else { format!("{failures} attempts") };
    Error::Timeout { stage: format!("after {attempts} (last: {})", last.text()) }
}

/// How long to wait after this failure: exponential, and anywhere between half of it and the whole,
/// so that callers refused together do not come back together.
fn pause(attempt: &Attempt) -> Duration {
    backoff(attempt.failures, attempt.rand)
}

/// A growing pause with jitter; see `pause`.
pub(crate) fn backoff(failures: u32, rand: u64) -> Duration {
    let whole = PAUSE_FIRST.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX);
    let half_ns = u64::try_from(whole.as_nanos() / 2).unwrap_or(u64::MAX);
    Duration::from_nanos(half_ns + rand % (half_ns + 1))
}

#[cfg(test)]
#[path = "decide_test.rs"]
mod tests;
