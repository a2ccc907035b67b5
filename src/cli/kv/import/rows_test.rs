//! Imports into a store that fails when it is told to, as a cluster does.

use std::path::Path;
use std::sync::{Arc, Mutex};

use clap::Parser;

use super::*;
use crate::cli::output::captured;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ImportArgs,
    #[command(flatten)]
    global: Global,
}

/// A store that takes a number of rows and then fails, as a cluster that goes away does.
#[derive(Clone, Default)]
struct Memory {
    rows: Arc<Mutex<BTreeMap<Bytes, Bytes>>>,
    left: Arc<Mutex<u64>>,
    busy: Arc<Mutex<u32>>,
}

impl Memory {
    fn with_room(&self, rows: u64) -> Self {
        Self { left: Arc::new(Mutex::new(rows)), ..self.clone() }
    }

    fn content(&self) -> Vec<(String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        self.rows.lock().expect("sound").iter().map(|(key, value)| (text(key), text(value))).collect()
    }
}

impl Store for Memory {
    async fn put_all(&self, rows: &[Row]) -> flotilla_proto::Result<Vec<flotilla_proto::Result<()>>> {
        // Others run in between, so that batches end in another order than they began.
        for _ in 0..rows[0].key.len() % 3 {
            tokio::task::yield_now().await;
        }
        let mut busy = self.busy.lock().expect("sound");
        if *busy > 0 {
            *busy -= 1;
            return Err(Error::Ambiguous { reason: "the stream broke".into() });
        }
        let put = |row: &Row| {
            let mut left = self.left.lock().expect("sound");
            *left = left.checked_sub(1).ok_or(Error::KeyspaceNotFound { name: "gone".into() })?;
            if row.key.starts_with(b"refused") {
                return Err(Error::invalid("a key that is refused", "choose another"));
            }
            self.rows.lock().expect("sound").insert(row.key.clone(), row.value.clone());
            Ok(())
        };
        Ok(rows.iter().map(put).collect())
    }
}

/// Runs an import; its exit code and what it printed.
fn run(store: &Memory, source: &Path, options: &[&str]) -> (u8, String) {
    let source = source.display().to_string();
    let words = [&["import", &source][..], options].concat();
    let Line { args, global } = Line::try_parse_from(words).expect("valid");
    let state = State::new("c".into(), "s".into());
    let result = crate::cli::block_on(async {
        let source = Source::open(&args, Bytes::new())?;
        import(&args, source, state, store.clone(), &global).await
    });
    let text = String::from_utf8(captured::take()).expect("text");
    (result.map_or_else(|failure| failure.code(), |()| 0), text)
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

const CSV: &str = "value,key\n1,a\n\"2\n2\",b\nmalformed\n3,c\n\n4,a\n5,d\n6,ee\n7,a\n";

fn expected() -> Vec<(String, String)> {
    pairs(&[("a", "7"), ("b", "2\n2"), ("c", "3"), ("d", "5"), ("ee", "6")])
}

#[test]
fn rows_are_stored_the_last_of_a_key_wins_and_malformed_ones_are_told() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = folder.path().join("rows.csv");
    std::fs::write(&source, CSV).expect("write");
    let store = Memory::default().with_room(u64::MAX);
    *store.busy.lock().expect("sound") = 2;
    assert_eq!(run(&store, &source, &[]), (1, "stored 7 rows (9 B), 1 left out\n".into()));
    assert_eq!(store.content(), expected());
    assert_eq!(run(&store, &source, &["--allow-refused"]).0, 0);
    let (code, text) = run(&store, &source, &["--output", "json"]);
    let summary: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &summary["refused"][0]["line"], &summary["complete"]), (1, &5.into(), &true.into()));
}

#[test]
fn a_row_that_the_cluster_refuses_is_told_and_the_rest_is_stored() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = folder.path().join("rows.jsonl");
    let line = |key: &str| format!("{{\"key\":\"{key}\",\"value\":1}}\n");
    std::fs::write(&source, ["a", "refused", "b"].map(line).concat()).expect("write");
    let store = Memory::default().with_room(u64::MAX);
    assert_eq!(run(&store, &source, &[]), (1, "stored 2 rows (2 B), 1 left out\n".into()));
    assert_eq!(store.content(), pairs(&[("a", "1"), ("b", "1")]));
}

#[test]
fn an_import_that_ends_anywhere_goes_on_there() {
    for room in 0..7 {
        for concurrency in ["1", "3"] {
            let folder = tempfile::tempdir().expect("tempdir");
            let source = folder.path().join("rows.csv");
            std::fs::write(&source, CSV).expect("write");
            let store = Memory::default();
            let options = ["--resume", "--concurrency", concurrency];
            assert_eq!(run(&store.with_room(room), &source, &options).0, 1, "after {room} rows");
            let state = StateFile::beside(&source).load(&State::new("c".into(), "s".into()));
            let done = state.expect("sound").expect("kept").stored;
            assert!(done <= room);
            let rest = store.with_room(7 - done);
            assert_eq!(run(&rest, &source, &options).0, 1, "the malformed row is not forgotten");
            assert_eq!(store.content(), expected(), "after {room} rows");
            assert_eq!(std::fs::read_dir(folder.path()).expect("a directory").count(), 1, "no state is left");
        }
    }
}

#[test]
fn a_source_that_was_cut_at_any_byte_goes_on_when_it_is_whole_again() {
    let folder = tempfile::tempdir().expect("tempdir");
    let source = folder.path().join("rows.csv");
    std::fs::write(&source, CSV).expect("write");
    let first = Memory::default();
    run(&first.with_room(3), &source, &["--resume"]);
    let fresh = State::new("c".into(), "s".into());
    let state = StateFile::beside(&source).load(&fresh).expect("sound").expect("kept");
    assert!(state.offset > 10);
    for length in 0..state.offset as usize {
        std::fs::write(&source, &CSV.as_bytes()[..length]).expect("write");
        assert_ne!(run(&first.with_room(9), &source, &["--resume"]).0, 0, "cut at {length}");
        let mut changed = CSV.as_bytes().to_vec();
        changed[length] ^= 1;
        std::fs::write(&source, changed).expect("write");
        assert_ne!(run(&first.with_room(9), &source, &["--resume"]).0, 0, "changed at {length}");
    }
    let kept = StateFile::beside(&source).load(&fresh).expect("sound");
    assert_eq!(kept, Some(state), "a refusal changes nothing");
    std::fs::write(&source, CSV).expect("write");
    run(&first.with_room(9), &source, &["--resume"]);
    assert_eq!(first.content(), expected());
}
