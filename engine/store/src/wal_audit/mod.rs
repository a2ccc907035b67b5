//! The audit of the WAL before RocksDB opens it: have synced writes gone missing?
//!
//! RocksDB replays the WAL up to the first record that it cannot read, and takes what follows for a torn
//! end. It cannot know that some of it had been synced, acknowledged and counted in a quorum. We
//! can, from three witnesses:
//!
//! - *Marks*: the first batch after each sync carries the sequence number up to which the WAL was
//!   synced then. An intact mark behind a bad place, above the last number before that place,
//!   proves that the bad place had been synced.
//! - *The watermark*, a file beside the database with the same number, written at open, every few
//!   seconds and at a clean stop.
//! - *Numbers*: batches follow each other without gaps, within and across files, and the first file
//!   that is still needed begins no later than where the table files end. What takes sequence numbers past the WAL is
//!   the ingestion of table files, one for all files of a call, and the MANIFEST names it: a gap is no hole if each
//!   number in it is held by a table file alone, because then nothing that had that number is lost. The MANIFEST is
//!   durable before any later batch gets a number, and keeps its edits until the next start.
//!
//! A bad place is refused if a witness proves that it had been synced, naming the file. Otherwise it is
//! a torn end: no sync covers it, and it is dropped with everything after it. Where intact batches
//! follow it, the file is cut, because RocksDB skips zeroed space and would replay over the hole.
//! Nothing but zeros up to the end of the last file is the room that it was given ahead (`wal_space`).
//! If the bad place is the beginning of the oldest needed file, there may be no number before it to
//! compare with; then anything synced since the store was opened counts against it.
//!
//! What cannot be noticed:
//! - Rot in the last batches that were synced, after the last watermark, with no later batch to bear
//!   witness: it looks like a torn end. After a clean stop there are none; after a crash, those of
//!   the last seconds. (The quorum's other copies have them; this replica must not vote as if it had.)
//! - A whole data directory, or all of `db/` and WATERMARK, put back from an older copy.
//! - WATERMARK removed by hand, together with the end of the WAL.
//! - Rot in table files: blocks have checksums, and reading one tells; opening does not read them all.
//!
//! Each WAL file is read into memory whole: it is about as large as the memtables it fills.

mod batch;
#[cfg(test)]
mod hostile;
mod log_file;
mod manifest;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::watermark::Watermark;

use batch::Batch;
pub(crate) use batch::mark;
use log_file::{BLOCK_BYTES, Bad, HEADER_BYTES, LogFile};
use manifest::Manifest;

/// A torn end of the WAL; no sync had covered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// Bytes dropped, in this file and those after it.
    pub dropped_bytes: u64,
}

/// What was found in a store that may be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Audit {
    /// There is no database yet.
    pub(crate) is_new: bool,
    /// WAL files that will be replayed.
    pub(crate) files: usize,
    /// Batches in them.
    pub(crate) batches: u64,
    /// Up to which sequence number writes are known to have been synced.
    pub(crate) synced: u64,
    pub(crate) torn: Option<Torn>,
}

struct Wal {
    path: PathBuf,
    number: u64,
    bytes: Vec<u8>,
}

impl Wal {
    fn file(&self) -> LogFile<'_> {
        LogFile::new(&self.bytes, self.number)
    }
}

/// Reads what RocksDB is about to replay from `folder`. Changes nothing, unless a torn end must be cut.
pub(crate) fn audit(folder: &Path, watermark: Option<Watermark>) -> Result<Audit, OpenError> {
    let current = folder.join("CURRENT");
    if !current.exists() {
        let holds_data = watermark.is_some() || !numbers_of(folder, "log")?.is_empty();
        if holds_data || !numbers_of(folder, "sst")?.is_empty() {
            return Err(OpenError::corrupt(&current, "it is missing"));
        }
        return Ok(Audit { is_new: true, ..Audit::default() });
    }
    let manifest = manifest::read(folder)?;
    let mut wals = Vec::new();
    for number in numbers_of(folder, "log")?.into_iter().filter(|number| *number >= manifest.min_wal) {
        let path = folder.join(format!("{number:06}.log"));
        let bytes = std::fs::read(&path).map_err(|error| OpenError::io("read", &path, &error))?;
        wals.push(Wal { path, number, bytes });
    }
    let watermark = watermark.unwrap_or_default();
    // The file that was opened last time was in its directory before the watermark named it.
    let is_first = |wal: &Wal| wal.number == watermark.first_wal;
    if watermark.first_wal > 0 && watermark.first_wal >= manifest.min_wal && !wals.iter().any(is_first) {
        let path = folder.join(format!("{:06}.log", watermark.first_wal));
        return Err(OpenError::corrupt(&path, "it is missing, and what it held was not flushed to table files"));
    }
    let mut reading = Reading { wals: &wals, manifest, watermark, next: None, batches: 0, marked: 0 };
    if wals.first().is_some_and(|wal| wal.number == watermark.first_wal) {
        reading.next = Some(watermark.opened_at + 1);
    }
    let torn = reading.read()?;
    reading.check_end(folder, torn.as_ref())?;
    if let Some(Cut { path, length }) = torn.as_ref().and_then(|torn| torn.cut.as_ref()) {
        cut(path, *length)?;
    }
    Ok(Audit {
        is_new: false,
        files: wals.len(),
        batches: reading.batches,
        synced: reading.synced(),
        torn: torn.map(|torn| torn.torn),
    })
}

/// Numbers of the files `NNNNNN.extension`, ascending.
pub(crate) fn numbers_of(folder: &Path, extension: &str) -> Result<Vec<u64>, OpenError> {
    let failed = |error: std::io::Error| OpenError::io("list", folder, &error);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = PathBuf::from(entry.map_err(failed)?.file_name());
        if name.extension().is_some_and(|found| found == extension) {
            numbers.extend(name.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

struct Reading<'a> {
    wals: &'a [Wal],
    manifest: Manifest,
    watermark: Watermark,
    /// The sequence number that the next batch must have; `None`: nothing is known yet.
    next: Option<u64>,
    batches: u64,
    /// The largest mark so far.
    marked: u64,
}

struct TornEnd {
    torn: Torn,
    cut: Option<Cut>,
}

struct Cut {
    path: PathBuf,
    length: u64,
}

/// What lies behind a bad place.
#[derive(Default)]
struct Behind {
    /// Intact batches are there.
    any: bool,
    /// The largest mark in them.
    marked: u64,
}

impl Reading<'_> {
    fn synced(&self) -> u64 {
        self.marked.max(self.watermark.synced)
    }

    /// The first number from `next` on that no ingested file has taken.
    fn past_ingested(&self, mut next: u64) -> u64 {
        while self.manifest.alone.contains(&next) {
            next += 1;
        }
        next
    }

    /// The last sequence number up to which all is there. Table files may have later ones, of ingestions, but prove
    /// nothing about the WAL if that can be read.
    fn reached(&self) -> u64 {
        self.next.map_or(self.manifest.last_sequence, |next| self.past_ingested(next) - 1)
    }

    /// No sequence number in the WAL that has been read is larger.
    fn end(&self) -> u64 {
        self.reached().max(self.manifest.last_sequence)
    }

    fn read(&mut self) -> Result<Option<TornEnd>, OpenError> {
        for index in 0..self.wals.len() {
            let wal = &self.wals[index];
            let file = wal.file();
            let mut at = 0;
            let bad = loop {
                match file.record(at) {
                    Ok(Some(record)) => match Batch::decode(&record.data) {
                        Some(batch) => {
                            self.take(wal, record.offset, batch)?;
                            at = record.end;
                        }
                        None => {
                            break Bad { offset: record.offset, what: "a record that is no batch", cut_short: false };
                        }
                    },
                    Ok(None) => break Bad { offset: wal.bytes.len(), what: "", cut_short: true },
                    Err(bad) => break bad,
                }
            };
            let reached_end = bad.offset >= wal.bytes.len();
            if !reached_end && !self.goes_on_behind(index, bad) {
                let torn = self.judge(index, bad, at)?;
                let is_room = index + 1 == self.wals.len() && file.used_bytes() <= bad.offset;
                return Ok((!is_room).then_some(torn));
            }
        }
        Ok(None)
    }

    fn take(&mut self, wal: &Wal, offset: usize, batch: Batch) -> Result<(), OpenError> {
        let first = batch.first;
        self.batches += 1;
        // At each start RocksDB writes one that changes nothing, with the number where replaying had ended: below its
        // own last one, if an ingestion had outlived the batches before it.
        if batch.count == 0 && self.next.is_none_or(|next| first <= self.past_ingested(next)) {
            self.marked = self.marked.max(batch.synced);
            return Ok(());
        }
        let hole = match self.next {
            Some(next) => first != next && first != self.past_ingested(next),
            None => first > self.manifest.last_sequence + 1,
        };
        if hole {
            let end = self.next.map_or(self.manifest.last_sequence, |next| next - 1);
            let what = format!(
                "the batch at byte {offset} begins with sequence number {first}, but what comes before ends with {end}: \
                 writes are missing in between"
            );
            return Err(OpenError::corrupt(&wal.path, what));
        }
        self.next = Some(batch.next());
        self.marked = self.marked.max(batch.synced);
        Ok(())
    }

    /// Bytes that belong to nothing, at the end of a file, while the next one goes on without a gap.
    fn goes_on_behind(&self, index: usize, bad: Bad) -> bool {
        let wal = &self.wals[index];
        let file = wal.file();
        let ends_here = file.next_intact(bad.offset, |data| Batch::decode(data).is_some()).is_none();
        let following = self.wals.get(index + 1).and_then(|wal| {
            let record = wal.file().record(0).ok()??;
            Batch::decode(&record.data)
        });
        ends_here
            && following.is_some_and(|batch| {
                self.next.is_some_and(|next| batch.first == next || batch.first == self.past_ingested(next))
            })
    }

    /// Is the bad place torn, or rotten? `good_end`: where the last good record before it ends.
    fn judge(&self, index: usize, bad: Bad, good_end: usize) -> Result<TornEnd, OpenError> {
        let wal = &self.wals[index];
        let behind = self.look_behind(index, bad.offset);
        let (synced, witness) = if behind.marked > self.watermark.synced {
            (behind.marked, "an intact batch behind it")
        } else {
            (self.watermark.synced, "the watermark")
        };
        // Without a number before it, whatever was synced since the opening may have been here.
        let before = self.next.map_or(self.watermark.opened_at, |next| self.past_ingested(next) - 1);
        if synced > before {
            let what = format!(
                "{} at byte {}, after sequence number {before}, and {witness} proves that writes up to {synced} had been \
                 synced",
                bad.what, bad.offset
            );
            return Err(OpenError::corrupt(&wal.path, what));
        }
        let rest: usize = self.wals[index + 1..].iter().map(|wal| wal.file().used_bytes()).sum();
        let dropped_bytes = (wal.file().used_bytes().saturating_sub(bad.offset) + rest) as u64;
        let cut = behind.any.then(|| Cut { path: wal.path.clone(), length: length_when_cut(good_end) });
        let torn = Torn { file: wal.path.clone(), offset: bad.offset as u64, dropped_bytes };
        Ok(TornEnd { torn, cut })
    }

    fn look_behind(&self, index: usize, offset: usize) -> Behind {
        let mut behind = Behind::default();
        let mut from = Some(offset);
        for wal in &self.wals[index..] {
            let file = wal.file();
            // Values may hold copies of logs: only numbers that could stand here count. A change takes
            // at least two bytes.
            let first = self.next.unwrap_or(0);
            let bound = self.end().saturating_add(self.wals[index..].iter().map(|wal| wal.bytes.len() as u64).sum());
            let is_ours = |data: &[u8]| Batch::decode(data).is_some_and(|b| b.first >= first && b.first <= bound);
            let mut at = 0;
            loop {
                let record = match from.take() {
                    Some(bad) => file.next_intact(bad, is_ours),
                    None => match file.record(at) {
                        Ok(Some(record)) if is_ours(&record.data) => Some(record),
                        Ok(Some(record)) => file.next_intact(record.offset, is_ours),
                        Ok(None) => None,
                        Err(bad) => file.next_intact(bad.offset, is_ours),
                    },
                };
                let Some(record) = record else { break };
                behind.any = true;
                behind.marked = behind.marked.max(Batch::decode(&record.data).map_or(0, |batch| batch.synced));
                at = record.end;
            }
        }
        behind
    }

    /// All is readable; is it all? A torn end has been judged already.
    fn check_end(&self, folder: &Path, torn: Option<&TornEnd>) -> Result<(), OpenError> {
        let (synced, found) = (self.synced(), self.reached());
        if synced <= found || torn.is_some() {
            return Ok(());
        }
        match self.wals.last() {
            Some(wal) => {
                let what = format!(
                    "it ends with sequence number {found}, and writes up to {synced} had been synced: its end is missing"
                );
                Err(OpenError::corrupt(&wal.path, what))
            }
            None => Err(OpenError::SyncedWritesLost { path: folder.to_path_buf(), synced, found }),
        }
    }
}

/// A file cut right behind a record would look complete, and RocksDB would go on with the next file. So
/// the beginning of a header stays, which it takes for the torn end that it is.
fn length_when_cut(good_end: usize) -> u64 {
    let left = BLOCK_BYTES - good_end % BLOCK_BYTES;
    let header = if left < HEADER_BYTES { good_end + left } else { good_end };
    (header + HEADER_BYTES / 2) as u64
}

fn cut(path: &Path, length: u64) -> Result<(), OpenError> {
    std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| {
            file.set_len(length)?;
            file.sync_all()
        })
        .map_err(|error| OpenError::io("cut the torn end of", path, &error))
}
