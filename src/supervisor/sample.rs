//! The file tree that a fresh cluster is given.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::failure::{Failure, Result};
use crate::cli::kv::tree;

/// Left out where git does not say what belongs to the tree.
const SKIPPED: [&str; 3] = [".git", "target", "flotilla-data"];

/// The files of a tree: those that git knows, or all but what is built and stored there.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    if let Some(files) = known_to_git(root) {
        return Ok(files);
    }
    let mut refused = Vec::new();
    let mut files = tree::walk(root, &mut refused).map_err(|error| Failure::file("read", root, &error))?;
    files.retain(|file| !file.iter().any(|part| SKIPPED.iter().any(|skipped| part == OsStr::new(skipped))));
    Ok(files)
}

/// `None`: no checkout, or no git here.
fn known_to_git(root: &Path) -> Option<Vec<PathBuf>> {
    let listed = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).stdin(Stdio::null()).output().ok()?;
    if !listed.status.success() {
        return None;
    }
    let names = listed.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let files: Vec<PathBuf> = names
        .map(|name| PathBuf::from(OsStr::from_bytes(name)))
        // Known, and still there as a file.
        .filter(|file| root.join(file).symlink_metadata().is_ok_and(|found| found.is_file()))
        .collect();
    (!files.is_empty()).then_some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, "x").expect("write");
        }
    }

    #[test]
    fn without_git_what_is_built_is_left_out() {
        let folder = tempfile::tempdir().expect("tempdir");
        make(folder.path(), &["a", "src/b", "target/release/c", ".git/HEAD", "flotilla-data/cluster.json"]);
        // What looks like a checkout is none: git refuses it.
        assert_eq!(files(folder.path()).expect("files"), [PathBuf::from("a"), PathBuf::from("src/b")]);
        assert!(files(&folder.path().join("none")).is_err());
    }

    #[test]
    fn with_git_it_is_what_git_knows() {
        let folder = tempfile::tempdir().expect("tempdir");
        make(folder.path(), &["a", "b", "gone"]);
        let git = |words: &[&str]| {
            let done = Command::new("git").arg("-C").arg(folder.path()).args(words).output();
            done.is_ok_and(|done| done.status.success())
        };
        if !git(&["init"]) {
            return;
        }
        assert!(git(&["add", "a", "gone"]));
        std::fs::remove_file(folder.path().join("gone")).expect("remove");
        assert_eq!(files(folder.path()).expect("files"), [PathBuf::from("a")]);
    }
}
