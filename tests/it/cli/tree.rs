//! `kv import` and `kv export`: a file tree comes back byte for byte, and what is left out is named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::cluster;
use crate::support::rng::Rng;

/// Files relative to the root, with their contents.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).expect("a file");
                files.insert(path.strip_prefix(root).expect("it lies below").to_owned(), content);
            }
        }
    }
    files
}

fn copy(from: &Path, to: &Path) {
    for (path, content) in files(from) {
        let target = to.join(path);
        fs::create_dir_all(target.parent().expect("it has one")).expect("a directory for the test");
        fs::write(target, content).expect("a file for the test");
    }
}

/// This repository's documents and sources, and names and contents that real trees have as well.
fn make_tree(root: &Path) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    copy(&repository.join("docs"), &root.join("docs"));
    copy(&repository.join("src"), &root.join("src"));
    let mut rng = Rng::new(7);
    let mut random = |length: usize| (0..length).map(|_| rng.next() as u8).collect::<Vec<u8>>();
    let made: &[(&str, Vec<u8>)] = &[
        ("empty", Vec::new()),
        ("binary/all bytes", (0..=255).collect()),
        ("binary/as large as may be", random(1 << 20)),
        ("binary/large", random(999_999)),
        ("a name with spaces/and\ttabs/x y.txt", b"spaces".to_vec()),
        ("größe/日本/ファイル 🚢.txt", "unicode".into()),
        ("..leading/...dots/.hidden", b"dots".to_vec()),
        ("-dash/--dashes", b"dashes".to_vec()),
        ("quote\"'\\back\nline", b"quotes".to_vec()),
    ];
    for (name, content) in made {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory for the test");
        fs::write(path, content).expect("a file for the test");
    }
    let bytes = std::os::unix::ffi::OsStrExt::from_bytes(b"not\xffutf8");
    fs::write(root.join(<&std::ffi::OsStr as Into<PathBuf>>::into(bytes)), b"bytes").expect("a file for the test");
    for number in 0..200 {
        let path = root.join(format!("many/{}/{number}", number % 10));
        fs::create_dir_all(path.parent().expect("it has one")).expect("a directory for the test");
        fs::write(path, random(number * 10)).expect("a file for the test");
    }
}

#[test]
fn a_tree_comes_back_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a directory for the test");
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    make_tree(&source);
    let original = files(&source);
    fs::write(source.join("oversized"), vec![0; (1 << 20) + 1]).expect("a file for the test");
    std::os::unix::fs::symlink("empty", source.join("link")).expect("a link for the test");
    let (source, target_name) = (source.to_str().expect("a plain path"), target.to_str().expect("a plain path"));

    let import = cluster(&["kv", "import", source, "--prefix", "ttree/", "--timeout", "30s"]);
    let import =
        import.fails(1, &["refused: oversized: ", "refused: link: a symbolic link", "2 files refused", "hint:"]);
    assert!(import.text().starts_with(&format!("stored {} files (", original.len())), "{import:?}");
    assert!(import.text().contains("2 refused"), "{import:?}");
    let count = cluster(&["kv", "scan", "--prefix", "ttree/", "--count"]).exits(0);
    assert_eq!(count.text().trim(), original.len().to_string());

    let words =
        ["kv", "import", source, "--prefix", "ttree/", "--allow-refused", "--output", "json", "--timeout", "30s"];
    let again = cluster(&words).exits(0).json();
    assert_eq!(again["stored"], original.len());
    assert_eq!(again["refused"].as_array().map(Vec::len), Some(2));

    let export = cluster(&["kv", "export", target_name, "--prefix", "ttree/"]).exits(0);
    assert!(export.text().starts_with(&format!("wrote {} files (", original.len())), "{export:?}");
    assert!(export.text().contains("not one point in time"), "{export:?}");
    let back = files(&target);
    assert_eq!(back.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
    for (path, content) in &original {
        assert!(back[path] == *content, "{} differs", path.display());
    }

    cluster(&["kv", "export", target_name, "--prefix", "ttree/"]).fails(1, &["not empty", "--force"]);
    cluster(&["kv", "export", target_name, "--prefix", "ttree/", "--force"]).exits(0);
    cluster(&["kv", "import", "/nowhere"]).fails(1, &["/nowhere"]);
}

#[test]
fn a_key_that_leads_out_of_the_directory_is_refused() {
    let folder = tempfile::tempdir().expect("a directory for the test");
    let target = folder.path().join("in/target");
    for (key, value) in [("tout/good", "1"), ("tout/../../evil", "2"), ("tout//etc/evil", "3"), (r"tout/nul\x00", "4")]
    {
        cluster(&["kv", "put", key, value]).exits(0);
    }
    let words = ["kv", "export", target.to_str().expect("a plain path"), "--prefix", "tout/"];
    cluster(&words)
        .fails(1, &["refused: tout/../../evil", "refused: tout//etc/evil", r"refused: tout/nul\x00", "hint:"]);
    let written: Vec<PathBuf> = files(folder.path()).into_keys().collect();
    assert_eq!(written, [PathBuf::from("in/target/good")]);
}
