//! The data directory: creation, refusals and what their messages say.

use std::fs;
use std::path::Path;

use flotilla_proto::NodeId;
use flotilla_store::{DirectoryError, DirectoryState, Identity, StoreDirectory, disk_space, raise_open_files};
use tempfile::TempDir;

use crate::harness::IDENTITY;

fn temporary() -> TempDir {
    TempDir::new().expect("a temporary directory can be made")
}

fn fresh(path: &Path) -> StoreDirectory {
    StoreDirectory::create(path, IDENTITY, 0).expect("a fresh directory can be initialised")
}

/// The error of opening, with the parts that its text must name.
fn refused(path: &Path, parts: &[&str]) -> DirectoryError {
    let error = StoreDirectory::open(path, Some(IDENTITY.cluster_id)).expect_err("it must be refused");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    error
}

#[test]
fn created_then_opened() {
    let parent = temporary();
    let path = parent.path().join("deep").join("data");
    assert_eq!(StoreDirectory::probe(&path), Ok(DirectoryState::Absent));
    assert!(matches!(refused(&path, &["does not exist"]), DirectoryError::NotFound { .. }));
    let directory = fresh(&path);
    for folder in [directory.db(), directory.snapshots(), directory.log()] {
        assert!(folder.is_dir());
    }
    drop(directory);
    assert_eq!(StoreDirectory::probe(&path), Ok(DirectoryState::Initialised(IDENTITY)));
    let again = StoreDirectory::open(&path, None).expect("it opens");
    assert_eq!(again.identity(), IDENTITY);
}

#[test]
fn a_second_creation_is_refused_and_harmless() {
    let path = temporary();
    drop(fresh(path.path()));
    let other = Identity::new(7, NodeId(8));
    let error = StoreDirectory::create(path.path(), other, 0).expect_err("it is taken");
    assert!(error.to_string().contains("node 3 of cluster 00000000000000f1"), "{error}");
    assert_eq!(StoreDirectory::probe(path.path()), Ok(DirectoryState::Initialised(IDENTITY)));
}

#[test]
fn an_interrupted_creation_is_repeated() {
    let path = temporary();
    drop(fresh(path.path()));
    fs::remove_file(path.path().join("IDENTITY")).expect("the file is there");
    assert_eq!(StoreDirectory::probe(path.path()), Ok(DirectoryState::Empty));
    fresh(path.path());
}

#[test]
fn somebody_elses_folder_is_left_alone() {
    let path = temporary();
    fs::write(path.path().join("thesis.tex"), "").expect("a file can be made");
    let error = StoreDirectory::create(path.path(), IDENTITY, 0).expect_err("it is not ours");
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(path.path()).expect("it can be listed").count(), 1, "nothing was put there");
    let error = StoreDirectory::probe(&path.path().join("thesis.tex")).expect_err("it is a file");
    assert!(error.to_string().contains("a file"), "{error}");
}

#[test]
fn data_without_an_identity_is_not_taken_for_a_new_directory() {
    let path = temporary();
    drop(fresh(path.path()));
    fs::write(path.path().join("db").join("000004.sst"), "").expect("a file can be made");
    fs::remove_file(path.path().join("IDENTITY")).expect("the file is there");
    let error = StoreDirectory::create(path.path(), IDENTITY, 0).expect_err("there is data");
    assert!(matches!(error, DirectoryError::IdentityMissing { .. }), "{error}");
}

#[test]
fn another_clusters_is_refused() {
    let path = temporary();
    drop(StoreDirectory::create(path.path(), Identity::new(0xABC, NodeId(1)), 0).expect("it is fresh"));
    let error = refused(path.path(), &["0000000000000abc", "00000000000000f1"]);
    assert!(matches!(error, DirectoryError::OtherCluster { .. }));
    StoreDirectory::open(path.path(), None).expect("without a cluster to compare with it opens");
}

#[test]
fn a_newer_format_is_refused_and_named() {
    let path = temporary();
    let newer = Identity { format: 2, ..IDENTITY };
    drop(StoreDirectory::create(path.path(), newer, 0).expect("it is fresh"));
    let error = refused(path.path(), &["format 2", "up to 1", "nothing was changed"]);
    assert!(matches!(error, DirectoryError::NewerFormat { found: 2, .. }));
}

#[test]
fn a_locked_one_names_the_holder() {
    let path = temporary();
    let directory = fresh(path.path());
    let error = refused(path.path(), &["in use", &format!("pid {}", std::process::id())]);
    assert_eq!(error, DirectoryError::Locked { path: path.path().into(), pid: Some(std::process::id()) });
    drop(directory);
    StoreDirectory::open(path.path(), None).expect("the lock goes with its holder");
}

/// Each byte of IDENTITY changed, and each length cut short.
#[test]
fn a_damaged_identity_is_refused() {
    let path = temporary();
    drop(fresh(path.path()));
    let file = path.path().join("IDENTITY");
    let sound = fs::read(&file).expect("the file is there");
    let damaged = (0..sound.len()).flat_map(|at| {
        let mut flipped = sound.clone();
        flipped[at] ^= 1 << (at % 8);
        [flipped, sound[..at].to_vec()]
    });
    for bytes in damaged {
        fs::write(&file, &bytes).expect("the file can be written");
        let error = refused(path.path(), &["IDENTITY", "corrupt"]);
        assert!(matches!(error, DirectoryError::IdentityCorrupt { .. }), "{bytes:?}: {error}");
    }
    fs::write(&file, &sound).expect("the file can be written");
    StoreDirectory::open(path.path(), None).expect("whole again, it opens");
}

#[test]
fn the_ballast_takes_real_space_and_gives_it_back() {
    use std::os::unix::fs::MetadataExt;
    let path = temporary();
    let directory = StoreDirectory::create(path.path(), IDENTITY, 1 << 20).expect("it is fresh");
    let taken = fs::metadata(path.path().join("BALLAST")).expect("the file is there");
    assert_eq!(taken.len(), 1 << 20);
    assert!(taken.blocks() * 512 >= 1 << 20, "a sparse file would free nothing");
    assert_eq!(directory.release_ballast(), Ok(1 << 20));
    assert_eq!(directory.release_ballast(), Ok(0));
    directory.ensure_ballast(4096).expect("there is room");
    assert_eq!(directory.release_ballast(), Ok(4096));
}

#[test]
fn the_system_tells_its_limits() {
    let path = temporary();
    let space = disk_space(path.path()).expect("the file system answers");
    assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);
    let limit = raise_open_files(1).expect("the system answers");
    assert!(limit >= 1);
    assert_eq!(raise_open_files(limit).expect("the system answers"), limit);
}
