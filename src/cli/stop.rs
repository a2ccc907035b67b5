//! The signals that end long work in order: it says how far it came, and how to go on.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Failure, Result};

/// Ctrl-C and SIGTERM.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// Takes the signals: from now on they do not end the process by themselves.
    pub fn new() -> Result<Self> {
        let on = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot take signals: {error}")));
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// Resolves when the work is to end.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What work that was ended so returns.
pub fn interrupted() -> Failure {
    Failure::failed("interrupted")
}
