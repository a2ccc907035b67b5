//! How fast this node is, as its store last said ([`flotilla_engine`]'s health.rs decides): for status, metrics, reports.

use std::sync::{Mutex, PoisonError};

use flotilla_proto::v1;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Health {
    last: Mutex<v1::NodeHealth>,
}

impl Health {
    /// Takes what the store says, and tells whoever reads the logs if the node became slow, or well again.
    pub fn note(&self, health: &v1::NodeHealth) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (last.slow, health.slow) {
            (false, true) => tracing::warn!(reason = health.reason, "this node is slow: it leads nothing while it is"),
            (true, false) => tracing::info!("this node is as fast as the others again"),
            _ => {}
        }
        *last = health.clone();
    }

    /// What the store last said.
    pub fn get(&self) -> v1::NodeHealth {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For people; `None`: all is well.
    pub fn problem(&self) -> Option<String> {
        let health = self.get();
        health.slow.then(|| {
            let seconds = health.slow_for_ms / 1_000;
            format!(
                "this node is slow for {seconds} s: {}; others lead its ranges meanwhile: look at its disk",
                health.reason
            )
        })
    }
}
