//! The table of decoders is held against the source: whatever decodes has a line, and whatever has a line is tested.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use flotilla_hostile::TABLE;

/// The crates of the product, from this one's manifest.
const SOURCES: [&str; 10] = [
    "src",
    "proto/src",
    "tls/src",
    "engine/core/src",
    "engine/store/src",
    "engine/node/src",
    "placement/src",
    "router/src",
    "proto/tests",
    "engine/core/tests/it",
];
/// What decoders look like.
const SIGNS: [&str; 8] = [
    "::decode(",
    "fn decode",
    "fn parse",
    "fn from_wire",
    "FromStr for",
    "serde_json::from_",
    "from_be_bytes(",
    "from_le_bytes(",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// All files of Rust below the sources, by their paths in the repository, without their tests.
fn files(tests: bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = SOURCES.iter().map(|source| root().join(source)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("a file of the repository").path();
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let is_test = ["hostile", "tests", "conformance"].contains(&stem)
                || stem.ends_with("_test")
                || ["/tests/", "/conformance/"].iter().any(|part| name.contains(part));
            if name.ends_with(".rs") && (tests || !is_test) {
                let text = fs::read_to_string(&path).expect("a file of the repository");
                let whole = if tests { &text[..] } else { text.split("#[cfg(test)]\nmod ").next().unwrap_or_default() };
                found.push((name, whole.to_owned()));
            }
        }
    }
    found
}

/// The lines: names, and files.
fn lines() -> Vec<(&'static str, &'static str)> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let mut words = line.split('|').map(str::trim);
            let (name, file) = (words.next().expect("a name"), words.next().expect("a file"));
            assert!(name != "-" || words.next().is_some_and(|why| !why.is_empty()), "say why: {line}");
            (name, file)
        })
        .collect()
}

#[test]
fn whatever_decodes_has_a_line() {
    let listed: BTreeSet<&str> = lines().into_iter().map(|(_, file)| file).collect();
    let decodes = |text: &str| {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        code.into_iter().any(|line| SIGNS.iter().any(|sign| line.contains(sign)))
    };
    let missing: Vec<String> = files(false)
        .into_iter()
        .filter(|(name, text)| decodes(text) && !listed.contains(&name[..]))
        .map(|(name, _)| name)
        .collect();
    assert!(
        missing.is_empty(),
        "they decode something, and have no line in hostile/decoders.txt:\n{}",
        missing.join("\n")
    );
}

#[test]
fn whatever_has_a_line_is_tested_and_is_there() {
    let tests = files(true);
    for (name, file) in lines() {
        assert!(root().join(file).exists(), "{file} is not there");
        let tested = |text: &str| text.contains(&format!("\"{name}\"")) && text.contains("Decoder::");
        assert!(name == "-" || tests.iter().any(|(_, text)| tested(text)), "\"{name}\" is tested nowhere");
    }
}
