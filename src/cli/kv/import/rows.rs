//! An import of rows: batches of puts carry them to the cluster.
//!
//! ```text
//! source.rs: rows ─▶ channel ─▶ Import: batches ─▶ puts, several batches at once
//!                                  └ done, in order ─▶ state file
//! ```
//! A later row of a key wins: a key is never under way twice, so a row whose key is waits for it.
//! What the cluster refuses for a row's own sake is told like a malformed row; anything else ends the
//! import, and the state names the place up to which everything is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_proto::error::Action;
use flotilla_proto::{Error, NodeId};
use flotilla_router::{Client, WriteOp};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::ImportArgs;
use super::pieces::Place;
use super::source::{Item, Source};
use super::state::{State, StateFile};
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::kv::Keyspace;
use crate::cli::output::{self, plural, size};
use crate::cli::stop::{Stop, interrupted};

/// A batch is sent when it has so many rows or bytes.
const BATCH_ROWS: usize = 128;
const BATCH_BYTES: usize = 256 << 10;
/// Batches under way at once, unless --concurrency says another number.
const BATCHES: usize = 16;
/// How often a batch is tried.
const ATTEMPTS: u32 = 4;
/// Rows named one by one for people, and for programs.
const NAMED_MAX: u64 = 50;
const LISTED_MAX: usize = 10_000;
/// How often the state is written.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// A row to be written.
#[derive(Clone, Debug)]
struct Row {
    line: u64,
    key: Bytes,
    value: Bytes,
}

/// Rows that are sent together, and the records between them that were none.
#[derive(Clone, Debug, Default)]
struct Batch {
    rows: Vec<Row>,
    bytes: usize,
    skipped: u64,
    /// Behind its last record.
    end: Place,
}

/// What became of a batch.
struct Outcome {
    number: u64,
    /// Rows that the cluster does not take as they are.
    refused: Vec<(u64, String)>,
    /// Why the rest is not stored, if it is not.
    failure: Option<Failure>,
}

pub async fn run(args: &ImportArgs, prefix: Bytes, keyspace: &Keyspace<'_>) -> Result {
    let source = Source::open(args, prefix)?;
    let client = keyspace.client().await?;
    let cluster_id = if args.resume { cluster_id(&client).await? } else { String::new() };
    let settings = source.settings(keyspace.name());
    import(args, source, State::new(cluster_id, settings), client, keyspace.global).await
}

/// Stores all rows of a source that was opened; `state` is that of an import that begins.
async fn import<S: Store>(
    args: &ImportArgs,
    mut source: Source,
    mut state: State,
    store: S,
    global: &Global,
) -> Result {
    // With a header the first border lies behind it.
    state.set_place(source.place());
    let file = args.resume.then(|| StateFile::beside(&args.source));
    if let Some(file) = &file {
        state = source.resume(args, file, state)?;
    }
    let bar = output::progress(source.length, "import");
    bar.set_position(state.offset);
    let concurrency = args.concurrency.map_or(BATCHES, usize::from);
    let mut import = Import::new(store, state, file, concurrency, bar);
    let result = import.all(source.rows()?, &mut Stop::new()?).await;
    import.end(result, args.allow_refused, global)
}

/// The cluster, as its nodes name it.
async fn cluster_id(client: &Client) -> Result<String> {
    let mut last = Failure::failed("no node tells the cluster's id").hint("see `flotilla status`");
    for node in client.list_nodes().await? {
        match client.node_status(NodeId(node.node_id)).await {
            Ok(status) => return Ok(format!("{:016x}", status.cluster_id)),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Where rows go: the cluster, or a test's memory.
trait Store: Clone + Send + Sync + 'static {
    /// Puts each of them, in order; one result for each.
    fn put_all(
        &self,
        rows: &[Row],
    ) -> impl Future<Output = flotilla_proto::Result<Vec<flotilla_proto::Result<()>>>> + Send;
}

impl Store for Client {
    async fn put_all(&self, rows: &[Row]) -> flotilla_proto::Result<Vec<flotilla_proto::Result<()>>> {
        let put = |row: &Row| WriteOp::Put { key: row.key.clone(), value: row.value.clone() };
        let results = self.batch(rows.iter().map(put).collect(), false).await?;
        Ok(results.into_iter().map(|result| result.map(|_| ())).collect())
    }
}

/// An import under way.
struct Import<S> {
    store: S,
    /// What is done for good: up to the first batch that is not.
    state: State,
    /// Where the state is kept, if it is.
    file: Option<StateFile>,
    saved: Instant,
    concurrency: usize,
    /// The batch that is being filled.
    filling: Batch,
    /// A row that waits for its key, which is under way.
    held: Option<(Row, Place)>,
    /// Keys that are being filled in or are under way.
    keys: BTreeSet<Bytes>,
    /// The number of the next batch to be sent.
    next: u64,
    /// Batches that were sent and are not in the state yet, with what is done of them.
    sent: BTreeMap<u64, (Batch, bool)>,
    under_way: JoinSet<Outcome>,
    refused: Vec<(u64, String)>,
    told: u64,
    bar: ProgressBar,
}

impl<S: Store> Import<S> {
    fn new(store: S, state: State, file: Option<StateFile>, concurrency: usize, bar: ProgressBar) -> Self {
        let filling = Batch { end: state.place(), ..Batch::default() };
        Self {
            store,
            state,
            file,
            saved: Instant::now(),
            concurrency,
            filling,
            held: None,
            keys: BTreeSet::new(),
            next: 0,
            sent: BTreeMap::new(),
            under_way: JoinSet::new(),
            refused: Vec::new(),
            told: 0,
            bar,
        }
    }

    /// Takes all rows; returns when nothing is under way any more.
    async fn all(&mut self, mut rows: mpsc::Receiver<Item>, stop: &mut Stop) -> Result {
        let mut result = self.take(&mut rows, stop).await;
        drop(rows);
        if result.is_ok() {
            self.send();
        }
        // What was sent is waited for, so that the state says as much as is known.
        loop {
            tokio::select! {
                () = stop.asked() => return result.and_then(|()| Err(interrupted())),
                joined = self.under_way.join_next() => match joined {
                    Some(joined) => result = result.and(self.finished(joined)),
                    None => return result,
                },
            }
        }
    }

    async fn take(&mut self, rows: &mut mpsc::Receiver<Item>, stop: &mut Stop) -> Result {
        loop {
            // An idle cluster is no reason to wait for a full batch.
            if self.under_way.is_empty() && rows.is_empty() {
                self.send();
            }
            let room = self.held.is_none() && self.under_way.len() < self.concurrency;
            tokio::select! {
                () = stop.asked() => return Err(interrupted()),
                Some(joined) = self.under_way.join_next(), if !self.under_way.is_empty() => self.finished(joined)?,
                item = rows.recv(), if room => match item {
                    Some(Item::Row { line, pair: (key, value), end }) => self.add(Row { line, key, value }, end),
                    Some(Item::Bad { line, why, end }) => {
                        self.filling.skipped += 1;
                        self.filling.end = end;
                        self.tell(line, why);
                    }
                    Some(Item::Broken(failure)) => return Err(failure),
                    None => return Ok(()),
                },
            }
        }
    }

    fn add(&mut self, row: Row, end: Place) {
        if !self.keys.insert(row.key.clone()) {
            self.send();
            self.held = Some((row, end));
            return;
        }
        self.filling.bytes += row.key.len() + row.value.len();
        self.filling.rows.push(row);
        self.filling.end = end;
        if self.filling.rows.len() >= BATCH_ROWS || self.filling.bytes >= BATCH_BYTES {
            self.send();
        }
    }

    /// Sends what was filled.
    fn send(&mut self) {
        if self.filling.rows.is_empty() && self.filling.skipped == 0 {
            return;
        }
        let empty = Batch { end: self.filling.end, ..Batch::default() };
        let batch = std::mem::replace(&mut self.filling, empty);
        let (store, number, rows) = (self.store.clone(), self.next, batch.rows.clone());
        self.next += 1;
        self.sent.insert(number, (batch, false));
        self.under_way.spawn(write(store, number, rows));
    }

    fn finished(&mut self, joined: std::result::Result<Outcome, tokio::task::JoinError>) -> Result {
        let outcome = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        if let Some(failure) = outcome.failure {
            return Err(failure);
        }
        if let Some((batch, done)) = self.sent.get_mut(&outcome.number) {
            *done = true;
            batch.skipped += outcome.refused.len() as u64;
            for row in &batch.rows {
                self.keys.remove(&row.key);
            }
            let lines: BTreeSet<u64> = outcome.refused.iter().map(|(line, _)| *line).collect();
            batch.rows.retain(|row| !lines.contains(&row.line));
            batch.bytes = batch.rows.iter().map(|row| row.value.len()).sum();
        }
        for (line, why) in outcome.refused {
            self.tell(line, why);
        }
        if let Some((row, end)) = self.held.take() {
            self.add(row, end);
        }
        self.advance()
    }

    /// Moves the state over the batches that are done, as far as none before them is missing.
    fn advance(&mut self) -> Result {
        while let Some(entry) = self.sent.first_entry() {
            if !entry.get().1 {
                break;
            }
            let (batch, _) = entry.remove();
            self.state.set_place(batch.end);
            self.state.stored += batch.rows.len() as u64;
            self.state.bytes += batch.bytes as u64;
            self.state.skipped += batch.skipped;
        }
        self.bar.set_position(self.state.offset);
        self.bar.set_message(plural(self.state.stored, "row"));
        match &self.file {
            Some(file) if self.saved.elapsed() >= SAVE_EVERY => {
                self.saved = Instant::now();
                file.save(&self.state)
            }
            _ => Ok(()),
        }
    }

    /// Names a row that was left out.
    fn tell(&mut self, line: u64, why: String) {
        self.told += 1;
        if self.told <= NAMED_MAX {
            self.bar.suspend(|| eprintln!("line {line}: {why}"));
        }
        if self.refused.len() < LISTED_MAX {
            self.refused.push((line, why));
        }
    }

    /// Keeps or removes the state, and says what was done.
    fn end(mut self, result: Result, allow_refused: bool, global: &Global) -> Result {
        self.bar.finish_and_clear();
        if let Some(file) = &self.file {
            if result.is_ok() { file.remove() } else { file.save(&self.state) }?;
        }
        self.report(result.is_ok(), global)?;
        let line = self.state.line;
        result.map_err(|failure| {
            let hint = match &self.file {
                Some(file) => {
                    format!("the same command goes on before line {line}; {} holds the place", file.name())
                }
                None => "the same command begins anew, which does no harm; with --resume it would go on".into(),
            };
            failure.also(hint)
        })?;
        if self.state.skipped > 0 && !allow_refused {
            let rows = plural(self.state.skipped, "row");
            return Err(Failure::failed(format!("{rows} left out; all others are stored"))
                .hint("mend these rows and import again, or say --allow-refused"));
        }
        Ok(())
    }

    fn report(&mut self, complete: bool, global: &Global) -> Result {
        let State { stored, bytes, skipped, line, .. } = self.state;
        if global.json() {
            let refused: Vec<Value> =
                self.refused.iter().map(|(line, why)| json!({ "line": line, "why": why })).collect();
            return output::json(&json!({
                "complete": complete, "stored": stored, "bytes": bytes, "skipped": skipped, "next_line": line,
                "refused": refused,
            }));
        }
        if self.told > NAMED_MAX {
            eprintln!("and {} more (with --output json: {LISTED_MAX})", self.told - NAMED_MAX);
        }
        let skipped = if skipped > 0 { format!(", {} left out", output::count(skipped)) } else { String::new() };
        output::line(format_args!("stored {} ({}){skipped}", plural(stored, "row"), size(bytes)))
    }
}

/// Writes a batch's rows; repeats those that may be repeated, which all puts may.
async fn write<S: Store>(store: S, number: u64, mut rows: Vec<Row>) -> Outcome {
    let mut refused = Vec::new();
    let mut attempt = 1;
    let failure = loop {
        if rows.is_empty() {
            break None;
        }
        let (left, error) = attempt_once(&store, rows, &mut refused).await;
        let Some(error) = error else { break None };
        if error.action() == Action::Fail || attempt == ATTEMPTS {
            break Some(Failure::from(error));
        }
        rows = left;
        tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        attempt += 1;
    };
    Outcome { number, refused, failure }
}

/// One attempt: the rows that are not stored, and why the worst of them is not.
async fn attempt_once<S: Store>(
    store: &S,
    rows: Vec<Row>,
    refused: &mut Vec<(u64, String)>,
) -> (Vec<Row>, Option<Error>) {
    let results = match store.put_all(&rows).await {
        Ok(results) => results,
        Err(error) => return (rows, Some(error)),
    };
    let (mut left, mut worst) = (Vec::new(), None::<Error>);
    for (row, result) in rows.into_iter().zip(results) {
        match result {
            Ok(_) => {}
            Err(Error::InvalidArgument { what, hint }) => refused.push((row.line, format!("{what} ({hint})"))),
            Err(error) => {
                if worst.is_none() || severity(&error) > worst.as_ref().map_or(0, severity) {
                    worst = Some(error);
                }
                left.push(row);
            }
        }
    }
    (left, worst)
}

/// What would fail again ends the import; an unknown outcome must be told.
fn severity(error: &Error) -> u8 {
    match error.action() {
        Action::Fail => 2,
        Action::Ambiguous => 1,
        Action::Retry | Action::RefreshRoute => 0,
    }
}

#[cfg(test)]
#[path = "rows_test.rs"]
mod tests;
