//! The slow-request log: requests over the threshold, with the time that each stage took.
//!
//! Events of tracing's target "slow"; microseconds throughout.

use std::time::Duration;

use flotilla_proto::Error;

use crate::inbox::Request;
use crate::requests;

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
