//! What the kernel says of the servers, and of what else the machine did.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flotilla_benches::cluster::Result;
use flotilla_benches::usage::number_after;
use serde::Serialize;

/// Memory that is resident, in bytes, by what it holds: what a database maps of its files is the page cache's, and can go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Resident {
    pub anonymous: f64,
    pub of_files: f64,
    pub shared: f64,
}

impl Resident {
    /// Of all of them together.
    pub fn of(processes: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for process in processes {
            let one = Self::read(&fs::read_to_string(format!("/proc/{process}/status"))?)?;
            sum.anonymous += one.anonymous;
            sum.of_files += one.of_files;
            sum.shared += one.shared;
        }
        Ok(sum)
    }

    fn read(status: &str) -> Result<Self> {
        let bytes = |name: &str| Ok::<f64, std::io::Error>(number_after(status, name)? as f64 * 1024.0);
        Ok(Self { anonymous: bytes("\nRssAnon:")?, of_files: bytes("\nRssFile:")?, shared: bytes("\nRssShmem:")? })
    }

    pub fn all(self) -> f64 {
        self.anonymous + self.of_files + self.shared
    }
}

/// Bytes that processes made the kernel read from the disk, page faults included.
pub fn bytes_read(processes: &[u32]) -> Result<f64> {
    let of =
        |process: &u32| Ok(number_after(&fs::read_to_string(format!("/proc/{process}/io"))?, "\nread_bytes:")? as f64);
    processes.iter().map(of).sum()
}

/// Bytes of the disk that files take; nothing may write to them meanwhile.
pub fn bytes_on_disk(directory: &Path) -> Result<f64> {
    const SECTOR: f64 = 512.0;
    files(directory)?.iter().map(|file| Ok(fs::metadata(file)?.blocks() as f64 * SECTOR)).sum()
}

/// Lets the page cache forget files that nobody has open: who reads them then is charged for it.
pub fn forget(directory: &Path) -> Result<()> {
    for file in files(directory)? {
        let open = fs::File::open(&file)?;
        // Only what is clean can be forgotten.
        open.sync_all()?;
        // SAFETY: posix_fadvise takes no pointers, and the file stays open meanwhile.
        match unsafe { libc::posix_fadvise(open.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
            0 => {}
            code => return Err(format!("{}: {}", file.display(), std::io::Error::from_raw_os_error(code)).into()),
        }
    }
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => found.extend(files(&entry.path())?),
            false => found.push(entry.path()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_told_apart() {
        let status = "Name:\ta\nVmRSS:\t 70 kB\nRssAnon:\t      40 kB\nRssFile:\t 20 kB\nRssShmem:\t 10 kB\n";
        let resident = Resident::read(status).expect("whole");
        assert_eq!(resident, Resident { anonymous: 40960.0, of_files: 20480.0, shared: 10240.0 });
        assert_eq!(resident.all(), 71680.0);
        assert!(Resident::read("Name:\ta\n").expect_err("a process that has ended").to_string().contains("RssAnon"));
    }

    #[test]
    fn this_process_has_memory_and_reads() {
        let own = [std::process::id()];
        assert!(Resident::of(&own).expect("readable").anonymous > 0.0);
        assert!(bytes_read(&own).expect("readable") >= 0.0);
    }

    #[test]
    fn files_are_found_in_directories_below() {
        let directory = tempfile::tempdir().expect("a directory");
        let below = directory.path().join("a");
        fs::create_dir(&below).expect("made");
        fs::write(below.join("b"), [1; 10_000]).expect("written");
        forget(directory.path()).expect("there");
        assert!((10_000.0..100_000.0).contains(&bytes_on_disk(directory.path()).expect("there")));
    }
}
