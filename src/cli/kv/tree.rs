//! File trees and keys: which files a tree holds, and which key each becomes, both ways.
//!
//! A key is the file's path below the root, with `/`, behind an optional prefix. The way back is
//! stricter than the way there: a key names a file only if every component is a plain name, so that
//! no key, whoever wrote it, leads out of the target directory.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flotilla_proto::limits::KEY_BYTES_MAX;

use crate::cli::bytes::escape;

/// A file or key that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Path or key, printable.
    pub name: String,
    /// The reason.
    pub why: String,
}

impl Refused {
    /// A path that was left out.
    pub fn path(path: &Path, why: impl Into<String>) -> Self {
        Self { name: escape(path.as_os_str().as_bytes()), why: why.into() }
    }

    /// A key that was left out.
    pub fn key(key: &[u8], why: impl Into<String>) -> Self {
        Self { name: escape(key), why: why.into() }
    }
}

/// The regular files below `root`, as paths relative to it, in order; what is no regular file or
/// cannot be read goes to `refused`. Symbolic links are not followed: they would store a file twice,
/// or files from outside.
pub fn walk(root: &Path, refused: &mut Vec<Refused>) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    // Only the root itself must be readable.
    fs::read_dir(root)?;
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(root.join(&folder)) {
            Ok(entries) => entries,
            Err(error) => {
                refused.push(Refused::path(&folder, error.to_string()));
                continue;
            }
        };
        for entry in entries {
            let found = entry.and_then(|entry| Ok((folder.join(entry.file_name()), entry.file_type()?)));
            match found {
                Ok((path, kind)) if kind.is_dir() => folders.push(path),
                Ok((path, kind)) if kind.is_file() => files.push(path),
                Ok((path, kind)) => refused.push(Refused::path(&path, kind_name(kind))),
                Err(error) => refused.push(Refused::path(&folder, error.to_string())),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Why something that is no regular file is not stored.
pub fn kind_name(kind: fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        _ if kind.is_symlink() => "a symbolic link",
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "not a regular file",
    }
}

/// The key of a file; the error says why it cannot have one.
pub fn key_of(file: &Path, prefix: &[u8]) -> Result<Bytes, String> {
    let path = file.as_os_str().as_bytes();
    let key = [prefix, path].concat();
    if key.len() > KEY_BYTES_MAX {
        return Err(format!("its path makes a key of {} bytes, keys have at most {KEY_BYTES_MAX}", key.len()));
    }
    Ok(key.into())
}

/// The file that a key (without the prefix) names below the target; the error says why it names none.
pub fn path_of(key: &[u8]) -> Result<PathBuf, &'static str> {
    if key.is_empty() {
        return Err("it names no file: nothing is left behind the prefix");
    }
    if key.contains(&0) {
        return Err("a NUL byte cannot stand in a path");
    }
    if key[0] == b'/' {
        return Err("it is an absolute path");
    }
    let mut path = PathBuf::new();
    for component in key.split(|byte| *byte == b'/') {
        match component {
            b"" => return Err("a component of its path is empty"),
            b"." | b".." => return Err("a component of its path is . or .."),
            _ if component.len() > 255 => return Err("a component of its path is longer than 255 bytes"),
            _ => path.push(OsStr::from_bytes(component)),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_lead_astray_name_no_file() {
        for bad in [
            &b""[..],
            b"/",
            b"/etc/passwd",
            b"..",
            b"../x",
            b"a/../b",
            b"a/..",
            b".",
            b"./a",
            b"a/./b",
            b"a//b",
            b"a/",
            b"a\0b",
            &[b'x'; 256],
        ] {
            assert!(path_of(bad).is_err(), "{}", escape(bad));
        }
    }

    #[test]
    fn other_keys_name_the_file_that_they_came_from() {
        for good in [&b"a"[..], b"a/b", b"...", b"..a/b..", b"\xff\n/ ", &[b'x'; 255]] {
            let path = path_of(good).expect("safe");
            assert_eq!(key_of(&path, b"").as_deref(), Ok(good));
        }
        assert_eq!(key_of(Path::new("a"), b"p/").as_deref(), Ok(&b"p/a"[..]));
    }

    #[test]
    fn paths_longer_than_a_key_are_refused() {
        let long: PathBuf = std::iter::repeat_n("x".repeat(200), 50).collect();
        assert!(key_of(&long, b"").expect_err("too long").contains("8192"));
        assert!(key_of(Path::new("x"), &[b'p'; KEY_BYTES_MAX]).is_err());
        assert!(key_of(Path::new("x"), &[b'p'; KEY_BYTES_MAX - 1]).is_ok());
    }

    #[test]
    fn a_tree_is_its_regular_files_in_order() {
        let root = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("b/c")).expect("mkdir");
        fs::write(at("b/c/d"), "1").expect("write");
        fs::write(at("a"), "2").expect("write");
        std::os::unix::fs::symlink(at("a"), at("link")).expect("link");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("socket");
        let mut refused = Vec::new();
        let files = walk(root.path(), &mut refused).expect("walk");
        assert_eq!(files, [PathBuf::from("a"), PathBuf::from("b/c/d")]);
        refused.sort_by(|a, b| a.name.cmp(&b.name));
        let expected = [("link", "a symbolic link"), ("socket", "a socket")];
        assert_eq!(refused, expected.map(|(name, why)| Refused { name: name.into(), why: why.into() }));
        assert!(walk(&at("none"), &mut refused).is_err());
    }
}
