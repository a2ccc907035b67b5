//! Logs: to stderr, or to a file that is rotated by its size; the level can be changed while running.

use std::sync::Mutex;

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::ServerError;
use crate::config::Config;

/// A log file is rotated at this size,
const FILE_BYTES_MAX: usize = 64 << 20;
/// and so many old ones stay.
const FILES_MAX: usize = 5;

/// Changes what is logged.
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
}

impl LogHandle {
    /// Takes over what can change while running, and names what needs a restart.
    pub fn reload(&self, old: &Config, new: &Config) {
        match new.log_filter() {
            Ok(filter) => {
                if let Err(error) = self.filter.reload(filter) {
                    tracing::error!("the log level was not changed: {error}");
                    return;
                }
                tracing::info!("log-level is now {}", new.log_level);
            }
            Err(error) => tracing::error!("{error}"),
        }
        let waiting: Vec<String> = old.changed(new).into_iter().filter(|name| name != "log-level").collect();
        if !waiting.is_empty() {
            tracing::warn!("changed, but only taken over at the next start: {}", waiting.join(", "));
        }
    }
}

/// Begins logging as the settings say. Once for each process.
pub fn init(config: &Config) -> Result<LogHandle, ServerError> {
    let (filter, handle) = reload::Layer::new(config.log_filter()?);
    let registry = tracing_subscriber::registry().with(filter);
    let failed = |cause: String| ServerError::Log { path: config.log_file.clone(), cause };
    let layer = tracing_subscriber::fmt::layer().with_ansi(false);
    if config.log_file.is_empty() {
        let begun = registry.with(layer.with_writer(std::io::stderr)).try_init();
        begun.map_err(|error| failed(error.to_string()))?;
    } else {
        // Opened once for its error: FileRotate itself panics on a file that it cannot open.
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(&config.log_file);
        opened.map_err(|error| failed(error.to_string()))?;
        let limit = ContentLimit::BytesSurpassed(FILE_BYTES_MAX);
        let file = FileRotate::new(&config.log_file, AppendCount::new(FILES_MAX), limit, Compression::None, None);
        let begun = registry.with(layer.with_writer(Mutex::new(file))).try_init();
        begun.map_err(|error| failed(error.to_string()))?;
    }
    Ok(LogHandle { filter: handle })
}
