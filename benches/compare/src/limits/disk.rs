//! What the disk gives: how often a lone writer makes an append durable, and how many values become durable when all that
//! wait share one write and one fdatasync, on three files side by side, as three nodes on one disk would do it.
//!
//! ```text
//! W writers, each with one value under way
//!    └─▶ file 1, 2, 3, a thread each: take all that is new to the file, one write, one fdatasync
//!            └─▶ on two of the three: those writers come with their next value
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flotilla_benches::cluster::Result;
use serde::{Deserialize, Serialize};

use super::figures::Measured;
use super::{VALUE_BYTES, in_process, repeat};
use crate::cell::Times;

/// Three nodes' files.
const FILES: usize = 3;
/// A file that has grown to this is begun anew, as a log is.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disk {
    /// One writer that appends so many bytes and syncs, again and again.
    Alone { bytes: usize },
    /// So many writers of values, in groups, to three files.
    Grouped { writers: u64 },
}

impl Disk {
    pub fn all() -> Vec<Self> {
        let grouped = [1, 16, 256, 1_000, 4_096].map(|writers| Self::Grouped { writers });
        [Self::Alone { bytes: 4_096 }, Self::Alone { bytes: 512 }].into_iter().chain(grouped).collect()
    }

    pub fn name(self) -> String {
        match self {
            Self::Alone { bytes } => format!("one writer, {bytes} B + fdatasync"),
            Self::Grouped { writers } => format!("values in groups, three files, {writers} under way"),
        }
    }

    pub fn measure(self, dir: &Path, times: Times) -> Result<Measured> {
        let scratch = tempfile::tempdir_in(dir)?;
        let log = |at: usize| Log::create(&scratch.path().join(at.to_string()));
        match self {
            Self::Alone { bytes } => {
                let (mut log, block) = (log(0)?, vec![0x5A; bytes]);
                in_process(times, |length| repeat(length, || log.append(&block).map(|()| 1)))
            }
            Self::Grouped { writers } => {
                let mut logs = [log(0)?, log(1)?, log(2)?];
                in_process(times, |length| grouped(&mut logs, writers, length))
            }
        }
    }
}

/// A file that is appended to.
struct Log {
    file: File,
    end: u64,
}

impl Log {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path)?;
        file.sync_all()?;
        Ok(Self { file, end: 0 })
    }

    /// Durable when it returns.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.end >= FILE_BYTES_MAX {
            self.file.set_len(0)?;
            self.end = 0;
        }
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(self.file.sync_data()?)
    }
}

/// How many values are durable in each file.
struct Group {
    writers: u64,
    ends: Instant,
    durable: Mutex<[u64; FILES]>,
    moved: Condvar,
}

/// How many values became durable in two of the three files.
fn grouped(logs: &mut [Log; FILES], writers: u64, length: Duration) -> Result<u64> {
    let ends = Instant::now() + length;
    let group = Group { writers, ends, durable: Mutex::default(), moved: Condvar::new() };
    thread::scope(|scope| {
        let group = &group;
        let threads: Vec<_> = logs
            .iter_mut()
            .enumerate()
            .map(|(at, log)| scope.spawn(move || group.write(at, log).map_err(|error| error.to_string())))
            .collect();
        // All have ended before the first failure is told.
        let ended: Vec<_> = threads.into_iter().map(|of| of.join().expect("a writer does not panic")).collect();
        ended.into_iter().collect::<std::result::Result<(), String>>()
    })?;
    let durable = *group.durable();
    Ok(acknowledged(durable))
}

impl Group {
    fn durable(&self) -> MutexGuard<'_, [u64; FILES]> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One file's thread.
    fn write(&self, at: usize, log: &mut Log) -> Result<()> {
        let mut values = Vec::new();
        while let Some((from, to)) = self.next(at) {
            values.resize((to - from) as usize * VALUE_BYTES, 0x5A);
            log.append(&values)?;
            self.durable()[at] = to;
            self.moved.notify_all();
        }
        Ok(())
    }

    /// The values that the file lacks, as soon as there are some; `None`: the time is over.
    fn next(&self, at: usize) -> Option<(u64, u64)> {
        let mut durable = self.durable();
        loop {
            let left = self.ends.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let (from, to) = (durable[at], acknowledged(*durable) + self.writers);
            if from < to {
                return Some((from, to));
            }
            // Bounded: a file that failed moves nobody any more.
            durable = self.moved.wait_timeout(durable, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What two of three have.
fn acknowledged(mut durable: [u64; FILES]) -> u64 {
    durable.sort_unstable();
    durable[FILES / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_when_two_of_three_files_have_it() {
        assert_eq!(acknowledged([5, 9, 7]), 7);
        assert_eq!(acknowledged([0, 0, 9]), 0);
    }

    #[test]
    fn groups_move_on_and_no_file_is_more_than_the_writers_behind_its_group() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = |at: usize| Log::create(&directory.path().join(at.to_string())).expect("created");
        let mut logs = [log(0), log(1), log(2)];
        let count = grouped(&mut logs, 16, Duration::from_millis(300)).expect("written");
        assert!(count >= 16, "{count}");
        let ends = logs.map(|log| log.end / VALUE_BYTES as u64);
        assert_eq!(acknowledged(ends), count);
        assert!(ends.iter().all(|end| *end <= count + 16), "{ends:?}, {count}");
    }

    #[test]
    fn a_log_that_has_grown_is_begun_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut log = Log::create(&directory.path().join("log")).expect("created");
        log.end = FILE_BYTES_MAX;
        log.append(b"abc").expect("written");
        assert_eq!((log.end, log.file.metadata().expect("there").len()), (3, 3));
    }
}
