//! Files that are corrupt or cut short at start: the store does not serve, names the file, and exits with 1.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::cli::at;
use crate::support::cluster::{Cluster, http_get};
use crate::support::rng::{Rng, seed};
use crate::support::{eventually, used_bytes};

/// How a file is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// One bit in the middle.
    Flip,
    /// The second half is gone.
    Cut,
    /// The whole file is gone.
    Remove,
}

fn damage(path: &Path, how: Damage, rng: &mut Rng) {
    let mut bytes = fs::read(path).expect("the test's own file");
    assert!(!bytes.is_empty(), "{} is empty", path.display());
    let used = used_bytes(path) as usize;
    match how {
        Damage::Flip => {
            // Somewhere in the middle half, where no file has slack.
            let at = used / 4 + rng.below(used as u64 / 2) as usize;
            bytes[at] ^= 1 << rng.below(8);
            fs::write(path, bytes).expect("the test's own file");
        }
        Damage::Cut => fs::write(path, &bytes[..used / 2]).expect("the test's own file"),
        Damage::Remove => fs::remove_file(path).expect("the test's own file"),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the test's own directory");
    for entry in fs::read_dir(from).expect("the test's own directory") {
        let path = entry.expect("the test's own directory").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("the test's own file");
        }
    }
}

/// The largest file of a kind in the database's directory.
fn database_file(data: &Path, is_it: impl Fn(&str) -> bool) -> PathBuf {
    let entries = fs::read_dir(data.join("db")).expect("the store has one").filter_map(Result::ok);
    let found = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_it));
    let largest = found.max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()));
    largest.unwrap_or_else(|| panic!("none in {:?}", fs::read_dir(data.join("db")))).path()
}

/// Starts the node: its exit code and words, or `None` once it serves.
fn refusal(cluster: &Cluster) -> Option<(i32, String)> {
    let words = cluster.directory().join("words");
    let stderr = fs::File::create(&words).expect("the test's own file");
    let mut child = cluster.command(1).stderr(stderr).spawn().expect("the binary starts");
    let mut ended = None;
    eventually("the node to serve or to refuse", || {
        ended = child.try_wait().expect("the child is ours");
        ended.is_some() || http_get(&cluster.node(1).http, "/readyz").is_some_and(|(status, _)| status == 200)
    });
    let Some(status) = ended else {
        child.kill().and_then(|()| child.wait()).expect("the child is ours");
        return None;
    };
    Some((status.code().unwrap_or(-1), fs::read_to_string(&words).expect("the test's own file")))
}

/// What is stored under each of these keys.
const KEYS: [&str; 3] = ["a", "k", "z"];
const VALUE_BYTES: usize = 20_000;

/// A killed node with table files, and a WAL of writes that are known to have been synced.
fn killed_node() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.start_all();
    // Twice: the start flushes what it finds in the WAL.
    for round in 0..2 {
        for key in KEYS {
            at(&cluster.node(1).client, &["kv", "put", key, &key.repeat(VALUE_BYTES)]).exits(0);
        }
        let watermark = cluster.node(1).data.join("WATERMARK");
        let before = fs::read(&watermark).expect("the store has one");
        // Writes behind the last one cannot be told from a torn end.
        eventually("the watermark to pass the writes", || fs::read(&watermark).is_ok_and(|now| now != before));
        cluster.kill(1);
        if round == 0 {
            cluster.start_all();
        }
    }
    cluster
}

#[test]
fn a_damaged_file_is_named_and_the_store_does_not_serve() {
    let mut rng = Rng::new(seed());
    let mut cluster = killed_node();
    let address = cluster.node(1).client.clone();
    let sound = cluster.node(1).data.clone();
    let scratch = cluster.directory().join("scratch");
    let wal = database_file(&sound, |name| name.ends_with(".log"));
    let table = database_file(&sound, |name| name.ends_with(".sst"));
    let manifest = database_file(&sound, |name| name.starts_with("MANIFEST"));
    let cases = [
        (sound.join("IDENTITY"), &[Damage::Flip, Damage::Cut, Damage::Remove][..]),
        (sound.join("WATERMARK"), &[Damage::Flip, Damage::Cut]),
        (sound.join("db/CURRENT"), &[Damage::Flip, Damage::Cut, Damage::Remove]),
        (manifest, &[Damage::Flip, Damage::Remove]),
        (wal, &[Damage::Flip, Damage::Cut, Damage::Remove]),
        (table, &[Damage::Cut, Damage::Remove]),
    ];
    let mut wrong = Vec::new();
    for (path, kinds) in &cases {
        for how in *kinds {
            fs::remove_dir_all(&scratch).ok();
            copy(&sound, &scratch);
            let path = path.strip_prefix(&sound).expect("it lies below");
            damage(&scratch.join(path), *how, &mut rng);
            cluster.set_args(&["--data", scratch.to_str().expect("a plain path")]);
            let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
            match refusal(&cluster) {
                Some((1, words)) if words.contains(name) => {}
                // Which file held what is missing cannot be told any more.
                Some((1, words)) if matches!(how, Damage::Remove) && words.contains("db lacks writes") => {}
                Some((code, words)) => wrong.push(format!("{how:?} of {name}: exit code {code}: {words}")),
                None => wrong.push(format!("{how:?} of {name}: it serves")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The copy that nobody damaged is as good as ever.
    cluster.set_args(&[]);
    cluster.start_all();
    assert_eq!(at(&address, &["kv", "get", "k"]).exits(0).stdout.len(), VALUE_BYTES);
}

/// Blocks are only read when they are needed: a bad one is found then, if not at the start.
#[test]
fn a_flipped_bit_in_a_table_never_gives_wrong_data() {
    let mut rng = Rng::new(seed());
    let mut cluster = killed_node();
    let sound = cluster.node(1).data.clone();
    let scratch = cluster.directory().join("scratch");
    let table = database_file(&sound, |name| name.ends_with(".sst"));
    let table = scratch.join(table.strip_prefix(&sound).expect("it lies below"));
    for _ in 0..6 {
        fs::remove_dir_all(&scratch).ok();
        copy(&sound, &scratch);
        damage(&table, Damage::Flip, &mut rng);
        cluster.set_args(&["--data", scratch.to_str().expect("a plain path")]);
        cluster.start(1);
        let http = cluster.node(1).http.clone();
        eventually("the node to serve or to refuse", || {
            !cluster.is_running(1) || http_get(&http, "/readyz").is_some_and(|(status, _)| status == 200)
        });
        for key in KEYS {
            let got = at(&cluster.node(1).client, &["kv", "get", key, "--timeout", "1s"]);
            // Its bytes, or no answer; never other bytes, and never the word that it is absent.
            let right = got.code == 0 && got.stdout == key.repeat(VALUE_BYTES).as_bytes();
            assert!(right || got.code == 1, "exit code {}, {} bytes: {}", got.code, got.stdout.len(), got.stderr);
        }
        cluster.kill(1);
    }
}
