//! The scrub: reads all table files slowly, so that bit rot is found while the other replicas are still there.
//!
//! Place in the flow: called by a thread of the node now and then; what it finds goes the way of all damage
//! ([`RocksStorage::note_damage`]). One pass has two parts:
//! - **Files.** Table files never change once they are written. Each is read whole, past the page cache, and its
//!   crc32 is compared with the one of the pass before: every byte counts, those of no block too (footers, indexes that
//!   lie in a cache, padding). A file that is seen for the first time is taken down as it is.
//! - **Records.** All families are read in their order, past the block cache, with RocksDB's checksums of blocks: so
//!   a file that was bad before it was first seen is found, unless what was read of it lies in the cache still.
//!
//! ```text
//! TABLES   flotilla tables
//!          pass 1732261234              when the last full pass ended, in seconds since 1970; 0: never
//!          000012.sst 1048576 8f64becc  name, bytes, crc32
//!          crc32 1c291ca3               of all lines before
//! ```
//! TABLES is memory, not data: if it is lost or damaged the scrub begins anew. Limits: the WAL, MANIFEST and the small
//! files are read at the start only; rot under a page that the file system itself keeps cached against our word is
//! found when that is evicted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_engine::storage::{Family, Read, Result, StorageError};
use rustix::fs::Advice;

use crate::directory::write_atomically;
use crate::rocks::RocksStorage;

const HEAD: &str = "flotilla tables";
const READ_BYTES: usize = 256 << 10;
/// What one iterator reads: it keeps files and memtables from being let go.
const RECORD_BYTES_PER_VIEW: u64 = 16 << 20;
/// Longer than any key: a scan's end.
const LAST_KEY: [u8; 64] = [0xFF; 64];
/// Records between two calls of the pace.
const PACE_BYTES: u64 = 256 << 10;

/// Is told how many bytes were read; waits as long as it likes, and may break the pass off.
pub type Pace<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Table files that were what they had been.
    pub compared: u64,
    /// Table files that were seen for the first time.
    pub first_seen: u64,
    /// Records that were read.
    pub records: u64,
    /// Bytes of both parts.
    pub bytes: u64,
    /// It was broken off.
    pub cut_short: bool,
}

/// What is remembered of table files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tables {
    pass: u64,
    files: BTreeMap<String, (u64, u32)>,
}

impl Tables {
    fn to_text(&self) -> String {
        let mut text = format!("{HEAD}\npass {}\n", self.pass);
        for (name, (bytes, crc)) in &self.files {
            text.push_str(&format!("{name} {bytes} {crc:08x}\n"));
        }
        let crc = crc32fast::hash(text.as_bytes());
        text.push_str(&format!("crc32 {crc:08x}\n"));
        text
    }

    /// `None`: it is not what was written.
    fn parse(text: &str) -> Option<Self> {
        let (body, crc) = text.split_at(text.rfind("crc32 ")?);
        if crc != format!("crc32 {:08x}\n", crc32fast::hash(body.as_bytes())) {
            return None;
        }
        let mut lines = body.lines();
        (lines.next() == Some(HEAD)).then_some(())?;
        let pass = lines.next()?.strip_prefix("pass ")?.parse().ok()?;
        let file = |line: &str| {
            let mut words = line.split(' ');
            let (name, bytes, crc) = (words.next()?, words.next()?, words.next()?);
            Some((name.to_owned(), (bytes.parse().ok()?, u32::from_str_radix(crc, 16).ok()?)))
        };
        Some(Self { pass, files: lines.map(file).collect::<Option<_>>()? })
    }
}

/// For the test with hostile input.
#[cfg(test)]
pub(crate) mod hostile {
    use super::Tables;

    pub(crate) fn sample() -> Vec<u8> {
        let files = [("000007.sst", (4_096, 7)), ("000012.sst", (u64::MAX, u32::MAX))];
        Tables { pass: 3, files: files.map(|(name, of)| (name.to_owned(), of)).into() }.to_text().into_bytes()
    }

    /// What is read of a file, as it would be written.
    pub(crate) fn parse(input: &[u8]) -> Option<Vec<u8>> {
        Tables::parse(std::str::from_utf8(input).ok()?).map(|tables| tables.to_text().into_bytes())
    }
}

/// What was found of one file.
enum Measured {
    Whole(u64, u32),
    Gone,
    CutShort,
}

impl RocksStorage {
    /// When the last full pass ended; `None`: there was none that anybody remembers.
    pub fn last_scrub(&self) -> Option<SystemTime> {
        let tables = self.remembered();
        (tables.pass > 0).then(|| UNIX_EPOCH + Duration::from_secs(tables.pass))
    }

    /// One pass. An error says what was found, and by then the store has stopped; or that the disk could not be
    /// asked.
    pub fn scrub(&self, pace: &mut Pace<'_>) -> Result<Scrubbed> {
        let mut tables = self.remembered();
        let mut done = Scrubbed::default();
        self.scrub_files(&mut tables, &mut done, pace)?;
        if !done.cut_short {
            for family in Family::ALL {
                self.scrub_records(family, &mut done, pace)?;
            }
        }
        if !done.cut_short {
            tables.pass = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        }
        write_atomically(&self.directory().tables(), tables.to_text().as_bytes())
            .map_err(|error| StorageError::Io { operation: "write TABLES", cause: error.to_string() })?;
        Ok(done)
    }

    fn remembered(&self) -> Tables {
        fs::read_to_string(self.directory().tables()).ok().and_then(|text| Tables::parse(&text)).unwrap_or_default()
    }

    /// Names of the table files that are part of the database now.
    fn live_tables(&self) -> Result<Vec<String>> {
        let files = self.database().live_files();
        let files =
            files.map_err(|error| StorageError::Io { operation: "list table files", cause: error.to_string() })?;
        Ok(files.into_iter().map(|file| file.name.trim_start_matches('/').to_owned()).collect())
    }

    fn scrub_files(&self, tables: &mut Tables, done: &mut Scrubbed, pace: &mut Pace<'_>) -> Result<()> {
        let live = self.live_tables()?;
        tables.files.retain(|name, _| live.contains(name));
        for name in live {
            let path = self.directory().db().join(&name);
            let found = match measure(&path, pace) {
                Ok(Measured::Whole(bytes, crc)) => (bytes, crc),
                // Compactions remove files; what is part of the database still must be there.
                Ok(Measured::Gone) if self.live_tables()?.contains(&name) => {
                    return Err(self.found(format!("{} is missing", path.display())));
                }
                Ok(Measured::Gone) => {
                    tables.files.remove(&name);
                    continue;
                }
                Ok(Measured::CutShort) => {
                    done.cut_short = true;
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Err(self.found(format!("{} cannot be read: {error}", path.display())));
                }
                // No word about the file: too many are open, memory is short.
                Err(error) => {
                    let cause = format!("{}: {error}", path.display());
                    return Err(StorageError::Io { operation: "the scrub", cause });
                }
            };
            done.bytes += found.0;
            match tables.files.insert(name, found) {
                None => done.first_seen += 1,
                Some(before) if before == found => done.compared += 1,
                Some((bytes, crc)) => {
                    return Err(self.found(format!(
                        "{} has changed, which table files never do: {} bytes with crc32 {:08x} now, {bytes} with {crc:08x} \
                         in the pass before",
                        path.display(),
                        found.0,
                        found.1
                    )));
                }
            }
        }
        Ok(())
    }

    /// Reads every record of a family. A block that does not match its checksum is noted by the read itself.
    fn scrub_records(&self, family: Family, done: &mut Scrubbed, pace: &mut Pace<'_>) -> Result<()> {
        let mut from = vec![0];
        loop {
            let (mut next, mut in_view, mut unpaced) = (None, 0, 0);
            self.scan_through(family, &from, &LAST_KEY, &mut |key, value| {
                let bytes = (key.len() + value.len()) as u64;
                (done.records, done.bytes) = (done.records + 1, done.bytes + bytes);
                (in_view, unpaced) = (in_view + bytes, unpaced + bytes);
                if unpaced >= PACE_BYTES && pace(std::mem::take(&mut unpaced)).is_break() {
                    done.cut_short = true;
                    return ControlFlow::Break(());
                }
                if in_view >= RECORD_BYTES_PER_VIEW {
                    // The smallest key behind this one.
                    next = Some([key, &[0]].concat());
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            match next {
                Some(key) if !done.cut_short => from = key,
                _ => return Ok(()),
            }
        }
    }

    fn found(&self, what: String) -> StorageError {
        self.note_damage(&what);
        StorageError::Corrupt { what }
    }
}

/// Size and crc32 of a file as the disk has it.
fn measure(path: &Path, pace: &mut Pace<'_>) -> std::io::Result<Measured> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Measured::Gone),
        Err(error) => return Err(error),
    };
    // Only advice: a file system that does not follow it shows what it has cached.
    let forget = |file: &File| {
        let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    };
    forget(&file);
    let (mut buffer, mut hasher, mut total) = (vec![0; READ_BYTES], crc32fast::Hasher::new(), 0);
    loop {
        let read = match file.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 {
            forget(&file);
            return Ok(Measured::Whole(total, hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
        total += read as u64;
        if pace(read as u64).is_break() {
            return Ok(Measured::CutShort);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let mut tables = Tables { pass: 1_732_261_234, ..Tables::default() };
        tables.files.insert("000012.sst".into(), (1_048_576, 0x8f64_becc));
        let text = tables.to_text();
        assert!(text.starts_with("flotilla tables\npass 1732261234\n000012.sst 1048576 8f64becc\ncrc32 "), "{text}");
        assert_eq!(Tables::parse(&text), Some(tables));
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone().into_bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            let parsed = String::from_utf8(bad).ok().and_then(|bad| Tables::parse(&bad));
            assert_eq!(parsed, None, "bit {bit}");
        }
    }
}
