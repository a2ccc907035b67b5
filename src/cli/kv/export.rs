//! `kv export`: keys into files, the reverse of import.
//!
//! Not one point in time: each page of the scan is, the whole is not, and the command says so. A key
//! decides nothing but a file's place below the target: keys that are no plain relative path are
//! refused ([`tree::path_of`]), and neither a directory on the way nor the file itself may be a
//! symbolic link.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flotilla_router::{Client, Record, ScanOptions};
use indicatif::ProgressBar;
use serde_json::json;

use super::Keyspace;
use super::tree::{self, Refused};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::{Failure, Result};
use crate::cli::global::Global;
use crate::cli::output::{self, plural, size};

#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// Where to; made if it is not there
    dir: PathBuf,
    /// Only keys that begin so; it is taken off the path
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// Write into a directory that is not empty, over files of the same names
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: ExportArgs, keyspace: &Keyspace<'_>) -> Result {
    let prefix = args.prefix.as_ref().map_or(Ok(Bytes::new()), |prefix| args.style.key(prefix))?;
    let client = keyspace.client().await?;
    let mut target = Target::open(&args.dir, args.force)?;
    let keys = count(&client, &prefix).await?;
    let bar = output::progress(keys, "export");
    let mut pages = client.scan_pages(ScanOptions::prefix(prefix.clone()));
    while let Some(page) = pages.next().await? {
        for record in &page.records {
            target.store(record, prefix.len(), &bar)?;
        }
    }
    bar.finish_and_clear();
    target.report(keyspace.global)
}

/// For the progress bar alone.
async fn count(client: &Client, prefix: &Bytes) -> Result<u64> {
    let options = ScanOptions { count_only: true, ..ScanOptions::prefix(prefix.clone()) };
    let mut pages = client.scan_pages(options);
    let mut count = 0;
    while let Some(page) = pages.next().await? {
        count += page.count;
    }
    Ok(count)
}

/// The directory that is written to.
struct Target {
    root: PathBuf,
    force: bool,
    /// Directories below the root that are known to be ones.
    folders: BTreeSet<PathBuf>,
    stored: u64,
    bytes: u64,
    refused: Vec<Refused>,
}

impl Target {
    fn open(root: &Path, force: bool) -> Result<Self> {
        fs::create_dir_all(root).map_err(|error| Failure::file("make", root, &error))?;
        let mut entries = fs::read_dir(root).map_err(|error| Failure::file("read", root, &error))?;
        if entries.next().is_some() && !force {
            return Err(Failure::failed(format!("{} is not empty; nothing was written", root.display()))
                .hint("name a new directory, or add --force to write over what is there"));
        }
        Ok(Self { root: root.into(), force, folders: BTreeSet::new(), stored: 0, bytes: 0, refused: Vec::new() })
    }

    /// Writes a record; refuses it, or fails where nothing more can be written at all.
    fn store(&mut self, record: &Record, prefix_bytes: usize, bar: &ProgressBar) -> Result {
        bar.inc(1);
        let path = record.key.get(prefix_bytes..).ok_or("it is shorter than the prefix").and_then(tree::path_of);
        let result = match &path {
            Ok(path) => self.write(path, &record.value),
            Err(why) => Err(io::Error::other(*why)),
        };
        match result {
            Ok(()) => {
                self.stored += 1;
                self.bytes += record.value.len() as u64;
                bar.set_message(size(self.bytes));
            }
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                return Err(Failure::file("write below", &self.root, &error)
                    .hint(format!("{} were written; make room and export again", plural(self.stored, "file"))));
            }
            Err(error) => self.refused.push(Refused::key(&record.key, error.to_string())),
        }
        Ok(())
    }

    fn write(&mut self, path: &Path, value: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            self.make_folder(folder)?;
        }
        let place = self.root.join(path);
        match fs::symlink_metadata(&place) {
            Err(_) => {}
            Ok(found) if found.is_dir() => {
                return Err(io::Error::other("a directory has its name: another key begins with it and a slash"));
            }
            Ok(found) if !found.is_file() => return Err(io::Error::other(tree::kind_name(found.file_type()))),
            Ok(_) if self.force => {}
            Ok(_) => return Err(io::Error::other("a file of this name is there")),
        }
        let mut options = File::options();
        options.write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        if self.force {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        options.open(&place)?.write_all(value).inspect_err(|_| {
            // Half a file would pass for the whole.
            let _ = fs::remove_file(&place);
        })
    }

    /// Makes a directory below the root, and all above it.
    fn make_folder(&mut self, folder: &Path) -> io::Result<()> {
        if folder.as_os_str().is_empty() || self.folders.contains(folder) {
            return Ok(());
        }
        if let Some(parent) = folder.parent() {
            self.make_folder(parent)?;
        }
        let place = self.root.join(folder);
        match fs::create_dir(&place) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let found = fs::symlink_metadata(&place)?;
                if !found.is_dir() {
                    let what = if found.is_file() { "a file" } else { tree::kind_name(found.file_type()) };
                    return Err(io::Error::other(format!("{} is {what}, not a directory", folder.display())));
                }
            }
            Err(error) => return Err(error),
        }
        self.folders.insert(folder.into());
        Ok(())
    }

    fn report(self, global: &Global) -> Result {
        let refused = self.refused.len() as u64;
        if global.json() {
            let list: Vec<_> = self.refused.iter().map(|key| json!({ "key": key.name, "why": key.why })).collect();
            output::json(&json!({
                "stored": self.stored, "bytes": self.bytes, "refused": list, "one_point_in_time": false,
            }))?;
        } else {
            for key in &self.refused {
                eprintln!("refused: {}: {}", key.name, key.why);
            }
            let refused = if refused > 0 { format!(", {} refused", output::count(refused)) } else { String::new() };
            output::line(format_args!(
                "wrote {} ({}){refused}; not one point in time: keys written meanwhile may be old or new",
                plural(self.stored, "file"),
                size(self.bytes),
            ))?;
        }
        if refused > 0 {
            return Err(Failure::failed(format!("{} not written as files", plural(refused, "key")))
                .hint("read such keys by `flotilla kv get`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &'static str, value: &'static str) -> Record {
        Record { key: key.into(), value: value.into(), version: 1, ttl: None }
    }

    fn store(target: &mut Target, key: &'static str, value: &'static str) -> Option<String> {
        let before = target.refused.len();
        target.store(&record(key, value), 0, &ProgressBar::hidden()).expect("room");
        target.refused.get(before).map(|refused| refused.why.clone())
    }

    #[test]
    fn files_come_back_and_collisions_are_told() {
        let folder = tempfile::tempdir().expect("tempdir");
        let root = folder.path().join("out");
        let mut target = Target::open(&root, false).expect("new");
        assert_eq!(store(&mut target, "a", "1"), None);
        assert!(store(&mut target, "a/b", "2").expect("refused").contains("a file"));
        assert_eq!(store(&mut target, "d/e/f", "3"), None);
        assert!(store(&mut target, "d/e", "4").expect("refused").contains("directory"));
        assert!(store(&mut target, "../out2", "5").is_some());
        assert_eq!(fs::read(root.join("d/e/f")).expect("written"), b"3");
        assert_eq!(fs::read(root.join("a")).expect("written"), b"1");
        assert_eq!((target.stored, target.refused.len()), (2, 3));
        assert!(!folder.path().join("out2").exists());
    }

    #[test]
    fn a_target_that_is_not_empty_needs_force_and_links_are_never_followed() {
        let folder = tempfile::tempdir().expect("tempdir");
        let outside = tempfile::tempdir().expect("tempdir");
        fs::write(folder.path().join("a"), "old and longer").expect("write");
        fs::write(outside.path().join("x"), "safe").expect("write");
        std::os::unix::fs::symlink(outside.path(), folder.path().join("way")).expect("link");
        std::os::unix::fs::symlink(outside.path().join("x"), folder.path().join("link")).expect("link");
        assert_eq!(Target::open(folder.path(), false).err().map(|failure| failure.code()), Some(1));
        let mut target = Target::open(folder.path(), true).expect("forced");
        assert_eq!(store(&mut target, "a", "new"), None);
        assert_eq!(store(&mut target, "link", "evil").as_deref(), Some("a symbolic link"));
        assert!(store(&mut target, "way/x", "evil").expect("refused").contains("a symbolic link"));
        assert_eq!(fs::read(folder.path().join("a")).expect("there"), b"new");
        assert_eq!(fs::read(outside.path().join("x")).expect("there"), b"safe");
    }
}
