//! An import of a file tree: a key for each file.
//!
//! Many puts are under way at once; each file's fate is counted, and every file that was left out is
//! named with the reason. A put whose outcome is unknown is sent again: it writes the same content to
//! the same key, so that once or twice is the same. (Who else writes those keys meanwhile may be
//! overwritten; an import overwrites them anyway.)

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_router::Client;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::ImportArgs;
use crate::cli::failure::{Failure, Result};
use crate::cli::kv::Keyspace;
use crate::cli::kv::input::read_value;
use crate::cli::kv::tree::{self, Refused};
use crate::cli::output::{self, plural, size};

/// Files under way at once, unless --concurrency says another number.
const FILES: usize = 64;
/// How often a file is tried.
const ATTEMPTS: u32 = 4;
/// So many failures without a success between them: the cluster is gone, the rest would fail too.
const FAILURES_IN_A_ROW_MAX: u32 = 32;
/// Files named one by one for people; programs get all.
const NAMED_MAX: usize = 50;

/// What became of a tree.
#[derive(Debug, Default)]
pub struct Summary {
    /// Files stored.
    pub stored: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// What cannot be stored, as it is.
    pub refused: Vec<Refused>,
    /// What could not be stored now.
    pub failed: Vec<Refused>,
    /// Of those, the ones that may have been stored.
    pub unknown: u64,
    /// Files not tried after too many failures.
    pub skipped: u64,
}

/// One file's fate.
enum Fate {
    Stored { bytes: u64 },
    Refused(Refused),
    Failed { refused: Refused, unknown: bool },
}

pub async fn run(args: &ImportArgs, prefix: &[u8], keyspace: &Keyspace<'_>) -> Result {
    let mut refused = Vec::new();
    let root = &args.source;
    let files = tree::walk(root, &mut refused).map_err(|error| Failure::file("read", root, &error))?;
    let concurrency = args.concurrency.map_or(FILES, usize::from);
    let client = keyspace.client().await?;
    let mut summary = import(&client, root, files, prefix, concurrency).await;
    summary.refused.splice(0..0, refused);
    if keyspace.global.json() {
        output::json(&summary.json())?;
    } else {
        for (list, verb) in [(&summary.refused, "refused"), (&summary.failed, "failed")] {
            for left_out in list.iter().take(NAMED_MAX) {
                eprintln!("{verb}: {}: {}", left_out.name, left_out.why);
            }
            if list.len() > NAMED_MAX {
                eprintln!("{verb}: and {} more (all with --output json)", list.len() - NAMED_MAX);
            }
        }
        output::line(summary.text())?;
    }
    summary.verdict(args.allow_refused)
}

/// Stores `files`, given relative to `root`.
pub async fn import(client: &Client, root: &Path, files: Vec<PathBuf>, prefix: &[u8], concurrency: usize) -> Summary {
    let bar = output::progress(files.len() as u64, "import");
    let mut summary = Summary::default();
    let mut under_way = JoinSet::new();
    let mut failures_in_a_row = 0;
    let mut files = files.into_iter();
    loop {
        while under_way.len() < concurrency && failures_in_a_row < FAILURES_IN_A_ROW_MAX {
            let Some(file) = files.next() else { break };
            let (client, root, prefix) = (client.clone(), root.to_owned(), prefix.to_owned());
            under_way.spawn(async move { store(&client, &root, &file, &prefix).await });
        }
        let Some(joined) = under_way.join_next().await else { break };
        let fate = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        failures_in_a_row = if matches!(fate, Fate::Failed { .. }) { failures_in_a_row + 1 } else { 0 };
        summary.count(fate, &bar);
    }
    summary.skipped = files.len() as u64;
    bar.finish_and_clear();
    summary
}

async fn store(client: &Client, root: &Path, file: &Path, prefix: &[u8]) -> Fate {
    let (key, value) = match key_and_content(root, file, prefix) {
        Ok(pair) => pair,
        Err(why) => return Fate::Refused(Refused::path(file, why)),
    };
    let bytes = value.len() as u64;
    let mut attempt = 1;
    loop {
        let error = match client.put(key.clone(), value.clone()).await {
            Ok(_) => return Fate::Stored { bytes },
            Err(error) => error,
        };
        let (action, why) = (error.action(), format!("{error} ({})", error.hint()));
        if action == Action::Fail {
            return Fate::Refused(Refused::path(file, why));
        }
        if attempt == ATTEMPTS {
            return Fate::Failed { refused: Refused::path(file, why), unknown: action == Action::Ambiguous };
        }
        tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        attempt += 1;
    }
}

/// What a file is stored as; the error says why it cannot be.
pub fn key_and_content(root: &Path, file: &Path, prefix: &[u8]) -> std::result::Result<(Bytes, Bytes), String> {
    let key = tree::key_of(file, prefix)?;
    Ok((key, content(&root.join(file))?))
}

/// A file's content. Read on this thread: a file is small, and its write waits for the network anyway.
fn content(path: &Path) -> std::result::Result<Bytes, String> {
    // What was a file when the tree was read may be a link or a pipe by now: neither is followed,
    // nor waited for.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let open = File::options().read(true).custom_flags(flags as i32).open(path);
    let file = open.map_err(|error| error.to_string())?;
    let kind = file.metadata().map_err(|error| error.to_string())?.file_type();
    if !kind.is_file() {
        return Err(tree::kind_name(kind).into());
    }
    let limit = size(flotilla_proto::limits::VALUE_BYTES_MAX as u64);
    read_value(file).map_err(|error| error.to_string())?.ok_or_else(|| format!("larger than a value may be ({limit})"))
}

impl Summary {
    fn count(&mut self, fate: Fate, bar: &ProgressBar) {
        bar.inc(1);
        match fate {
            Fate::Stored { bytes } => {
                self.stored += 1;
                self.bytes += bytes;
                bar.set_message(size(self.bytes));
            }
            Fate::Refused(refused) => self.refused.push(refused),
            Fate::Failed { refused, unknown } => {
                self.failed.push(refused);
                self.unknown += u64::from(unknown);
            }
        }
    }

    /// One line for people.
    pub fn text(&self) -> String {
        let mut text = format!("stored {} ({})", plural(self.stored, "file"), size(self.bytes));
        for (number, verb) in [
            (self.refused.len() as u64, "refused"),
            (self.failed.len() as u64, "failed"),
            (self.unknown, "of those with unknown outcome"),
            (self.skipped, "not tried"),
        ] {
            if number > 0 {
                text.push_str(&format!(", {} {verb}", output::count(number)));
            }
        }
        text
    }

    fn json(&self) -> Value {
        let list = |list: &[Refused]| -> Vec<Value> {
            list.iter().map(|refused| json!({ "path": refused.name, "why": refused.why })).collect()
        };
        json!({
            "stored": self.stored,
            "bytes": self.bytes,
            "refused": list(&self.refused),
            "failed": list(&self.failed),
            "unknown": self.unknown,
            "not_tried": self.skipped,
        })
    }

    fn verdict(&self, allow_refused: bool) -> Result {
        if self.unknown > 0 {
            return Err(Failure::unknown(format!("{} may or may not be stored", plural(self.unknown, "file")))
                .hint("run the import again: storing the same content twice does no harm"));
        }
        let failed = self.failed.len() as u64 + self.skipped;
        if failed > 0 {
            return Err(Failure::failed(format!("{} could not be stored", plural(failed, "file")))
                .hint("see `flotilla status`, then run the import again: it may be repeated at will"));
        }
        if !self.refused.is_empty() && !allow_refused {
            let refused = plural(self.refused.len() as u64, "file");
            return Err(Failure::failed(format!("{refused} refused; all others are stored"))
                .hint("with --allow-refused this is no failure"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_follows_from_the_worst_fate() {
        let one = || vec![Refused { name: "x".into(), why: "y".into() }];
        let code = |summary: Summary, allow| summary.verdict(allow).map_or_else(|failure| failure.code(), |()| 0);
        assert_eq!(code(Summary { stored: 3, ..Summary::default() }, false), 0);
        assert_eq!(code(Summary { refused: one(), ..Summary::default() }, false), 1);
        assert_eq!(code(Summary { refused: one(), ..Summary::default() }, true), 0);
        assert_eq!(code(Summary { failed: one(), ..Summary::default() }, true), 1);
        assert_eq!(code(Summary { skipped: 1, ..Summary::default() }, true), 1);
        assert_eq!(code(Summary { failed: one(), unknown: 1, ..Summary::default() }, true), 3);
    }

    #[test]
    fn links_and_large_files_have_no_content() {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("a"), b"\x00\n").expect("write");
        std::os::unix::fs::symlink(at("a"), at("link")).expect("link");
        File::create(at("large")).and_then(|file| file.set_len((1 << 20) + 1)).expect("large");
        assert_eq!(content(&at("a")).as_deref(), Ok(&b"\x00\n"[..]));
        assert!(content(&at("link")).is_err());
        assert!(content(&at("large")).expect_err("too large").contains("1.0 MiB"));
        assert_eq!(content(folder.path()), Err("a directory".into()));
    }
}
