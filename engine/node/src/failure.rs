//! The end of a store that cannot go on, and of threads that panic.
//!
//! A store stops for good when its disk failed a write or a sync, or when it met what it must not skip.
//! The first reason is kept and told to whoever waits; the process is then to exit. A panic in a
//! thread of the engine means a bug after which nothing in memory can be trusted: the process aborts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::watch;

/// Why the store stopped for good, once it has.
#[derive(Debug)]
pub struct Failure {
    reason: watch::Sender<Option<String>>,
}

impl Default for Failure {
    fn default() -> Self {
        Self { reason: watch::Sender::new(None) }
    }
}

impl Failure {
    /// Says that the store cannot go on. Only the first reason counts.
    pub fn fail(&self, reason: String) {
        self.reason.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                tracing::error!(reason, "the store stops for good");
                *current = Some(reason);
            }
            first
        });
    }

    /// The reason, if the store has stopped.
    pub fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// Whether the store has stopped.
    pub fn is_set(&self) -> bool {
        self.reason.borrow().is_some()
    }

    /// Waits for the reason; for ever, if all stays well.
    pub async fn wait(&self) -> String {
        let mut watcher = self.reason.subscribe();
        match watcher.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives in `self`, so it cannot be gone.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Runs a part of the engine; a panic in it ends the process, with its message in the log.
pub fn abort_on_panic<R>(what: &str, body: impl FnOnce() -> R) -> R {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(panic) => {
            let message = panic_text(panic.as_ref());
            tracing::error!(thread = what, message, "panic in the engine: this is a bug; the process aborts");
            eprintln!("flotilla: panic in {what}: {message}; the process aborts");
            std::process::abort();
        }
    }
}

/// Held by a task of the network: if the task panics, the process aborts. The panic's message has been
/// printed by then.
#[derive(Debug)]
pub struct AbortOnPanic(pub &'static str);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, "panic in the engine: this is a bug; the process aborts");
            eprintln!("flotilla: panic in {}; the process aborts", self.0);
            std::process::abort();
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
