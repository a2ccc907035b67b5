//! The shim's own tests. Each runs one scene in a process of its own (this test program again, under the shim),
//! which ends in a power cut; then looks at what is left on disk.

use crate::powercut::{Control, Ending, PowerCut, Steps};
use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

const SCENE: &str = "FLOTILLA_TEST_SCENE";
const SCENE_DIR: &str = "FLOTILLA_TEST_SCENE_DIR";
const RECORD: usize = 100;

fn record(n: usize) -> Vec<u8> {
    (0..RECORD).map(|at| (n * 31 + at) as u8 | 1).collect()
}

fn records(range: std::ops::Range<usize>) -> Vec<u8> {
    range.flat_map(record).collect()
}

/// Runs a scene to its end.
fn play(scene: &str, dir: &Path, shim: &PowerCut) -> ExitStatus {
    let module = module_path!().split_once("::").map_or("", |(_, rest)| rest);
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("{module}::scene"), "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .envs(shim.vars())
        .env(SCENE, scene)
        .env(SCENE_DIR, dir)
        .output()
        .unwrap();
    eprint!("{scene}: {}", String::from_utf8_lossy(&output.stderr));
    output.status
}

/// Runs a scene that must end in a cut.
fn play_to_cut(scene: &str, dir: &Path, shim: &PowerCut) {
    let status = play(scene, dir, shim);
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{scene}: {status}");
}

fn cut_now() -> ! {
    PowerCut::trigger(std::process::id()).unwrap();
    loop {
        std::thread::park();
    }
}

fn sync_dir(dir: &Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}

/// A file with ten durable records, in a durable directory entry.
fn ten(dir: &Path, name: &str) -> File {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.join(name)).unwrap();
    file.write_all(&records(0..10)).unwrap();
    file.sync_all().unwrap();
    sync_dir(dir);
    file
}

/// Not a test of its own: the child processes of the tests below.
#[test]
#[ignore = "the child process of the other tests"]
fn scene() {
    let Ok(name) = std::env::var(SCENE) else { return };
    let dir = std::env::var_os(SCENE_DIR).unwrap();
    let dir = Path::new(&dir);
    match name.as_str() {
        "append" => {
            let mut file = ten(dir, "f");
            (10..20).for_each(|n| file.write_all(&record(n)).unwrap());
        }
        "steps" => {
            let mut file = ten(dir, "f");
            (10..13).for_each(|n| file.write_all(&record(n)).unwrap());
            file.sync_all().unwrap();
            (13..15).for_each(|n| file.write_all(&record(n)).unwrap());
            let mut words = File::create(dir.join("words")).unwrap();
            ["alpha ", "beta ", "gamma "].into_iter().for_each(|word| words.write_all(word.as_bytes()).unwrap());
            fs::hard_link(dir.join("f"), dir.join("g")).unwrap();
            fs::remove_file(dir.join("g")).unwrap();
        }
        "o_append" => {
            drop(ten(dir, "f"));
            let mut file = OpenOptions::new().append(true).open(dir.join("f")).unwrap();
            file.write_all(&record(10)).unwrap();
            file.sync_data().unwrap();
            (11..20).for_each(|n| file.write_all(&record(n)).unwrap());
        }
        "overwrite" => {
            let mut file = ten(dir, "f");
            file.write_all_at(&[0; 3 * RECORD], 2 * RECORD as u64).unwrap();
            file.write_all_at(&[9; 3 * RECORD], 9 * RECORD as u64).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.write_all(&[7; RECORD]).unwrap();
        }
        "vectored" => vectored(dir),
        "truncate" => truncations(dir),
        "entries" => entries(dir),
        "stdio" => stdio(dir),
        "threads" => threads(dir),
        "counted" => counted(dir),
        "mapped" => mapped(dir),
        "rocksdb" => rocks::scene(dir),
        other => panic!("no scene is called {other}"),
    }
    cut_now();
}

fn vectored(dir: &Path) {
    let mut file = ten(dir, "f");
    let (a, b) = (record(10), record(11));
    assert_eq!(file.write_vectored(&[IoSlice::new(&a), IoSlice::new(&b)]).unwrap(), 2 * RECORD);
    file.sync_data().unwrap();
    assert_eq!(file.write_vectored(&[IoSlice::new(&a), IoSlice::new(&b)]).unwrap(), 2 * RECORD);
    let part = libc::iovec { iov_base: a.as_ptr().cast_mut().cast(), iov_len: RECORD };
    let parts = [part, part];
    // SAFETY: two valid parts and an open file.
    let n = unsafe { libc::pwritev(file.as_raw_fd(), parts.as_ptr(), 2, 5 * RECORD as i64) };
    assert_eq!(n, 2 * RECORD as isize);
}

fn truncations(dir: &Path) {
    ten(dir, "shrunk").set_len(RECORD as u64).unwrap();
    ten(dir, "grown").set_len(50 * RECORD as u64).unwrap();
    let synced = ten(dir, "synced");
    synced.set_len(RECORD as u64).unwrap();
    synced.sync_all().unwrap();
    let reopened = ten(dir, "reopened");
    let mut again = File::create(dir.join("reopened")).unwrap();
    again.write_all(b"new").unwrap();
    drop(reopened);
    let allocated = ten(dir, "allocated");
    // SAFETY: an open file.
    let kept = unsafe { libc::fallocate(allocated.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 20) };
    assert_eq!(kept, 0);
    allocated.write_all_at(&record(10), 10 * RECORD as u64).unwrap();
    allocated.sync_data().unwrap();
    allocated.write_all_at(&record(11), 11 * RECORD as u64).unwrap();
}

fn entries(dir: &Path) {
    for name in ["CURRENT", "doomed", "moved", "doomed-for-good"] {
        drop(ten(dir, name));
    }
    fs::write(dir.join("CURRENT.tmp"), b"second").unwrap();
    fs::rename(dir.join("CURRENT.tmp"), dir.join("CURRENT")).unwrap();
    fs::remove_file(dir.join("doomed-for-good")).unwrap();
    sync_dir(dir);
    // The entry is durable from here on, the content ("second") is not: it was never synced.
    fs::write(dir.join("new.tmp"), b"third").unwrap();
    File::open(dir.join("new.tmp")).unwrap().sync_all().unwrap();
    fs::rename(dir.join("new.tmp"), dir.join("moved")).unwrap();
    fs::remove_file(dir.join("doomed")).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    drop(ten(&dir.join("sub"), "inner"));
    fs::write(dir.join("unsynced"), b"never").unwrap();
}

fn stdio(dir: &Path) {
    let path = std::ffi::CString::new(dir.join("log").to_str().unwrap()).unwrap();
    // SAFETY: valid strings and a stream that stays open.
    unsafe {
        let stream = libc::fopen(path.as_ptr(), c"w".as_ptr());
        libc::fputs(c"one\n".as_ptr(), stream);
        libc::fflush(stream);
        libc::fsync(libc::fileno(stream));
        sync_dir(dir);
        libc::fputs(c"two\n".as_ptr(), stream);
        libc::fflush(stream);
    }
}

/// Eight writers, two on each file, all syncing now and then; each writes down, durably, what it had synced.
fn threads(dir: &Path) {
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let dir = dir.to_path_buf();
            std::thread::spawn(move || writer(&dir, n))
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
}

fn writer(dir: &Path, n: usize) {
    let file = OpenOptions::new().create(true).append(true).open(dir.join(format!("data-{}", n / 2))).unwrap();
    sync_dir(dir);
    for i in 0..400u32 {
        let mut line = [0u8; 16];
        line[0] = n as u8 + 1;
        line[4..8].copy_from_slice(&i.to_le_bytes());
        let sum = crc(&line[..12]);
        line[12..].copy_from_slice(&sum.to_le_bytes());
        (&file).write_all(&line).unwrap();
        if i % 10 == 9 && i < 390 {
            file.sync_data().unwrap();
        }
    }
}

fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(17, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(*b)))
}

/// Appends a record and syncs it, until the configured cut comes.
fn counted(dir: &Path) {
    let mut file = ten(dir, "f");
    for n in 10..60 {
        file.write_all(&record(n)).unwrap();
        if let Err(error) = file.sync_data() {
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            fs::write(dir.join("failed"), n.to_string()).unwrap();
            std::process::exit(3);
        }
    }
    std::process::exit(4);
}

fn mapped(dir: &Path) {
    let file = ten(dir, "f");
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, which is not used.
    unsafe { libc::mmap(std::ptr::null_mut(), RECORD, prot, libc::MAP_SHARED, file.as_raw_fd(), 0) };
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn read(dir: &tempfile::TempDir, name: &str) -> Vec<u8> {
    fs::read(dir.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn strict_keeps_exactly_what_was_synced() {
    for (scene, kept) in [("append", 10), ("o_append", 11), ("overwrite", 10), ("vectored", 12)] {
        let dir = temp();
        play_to_cut(scene, dir.path(), &PowerCut::strict(dir.path()));
        assert!(read(&dir, "f") == records(0..10).into_iter().chain(records(10..kept)).collect::<Vec<_>>(), "{scene}");
    }
}

#[test]
fn torn_keeps_a_prefix_that_covers_the_synced_one() {
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..12 {
        for (scene, synced) in [("append", 10), ("o_append", 11)] {
            let dir = temp();
            play_to_cut(scene, dir.path(), &PowerCut::torn(dir.path(), seed));
            let left = read(&dir, "f");
            assert!(left.len() >= synced * RECORD, "{scene} seed {seed}: {}", left.len());
            assert!(records(0..20).starts_with(&left), "{scene} seed {seed}");
            lengths.insert(left.len());
        }
    }
    assert!(lengths.len() > 4, "the seed must decide what is left: {lengths:?}");
    assert!(lengths.iter().any(|len| len % RECORD != 0), "some write must be torn: {lengths:?}");
}

#[test]
fn truncations_are_undone_unless_synced() {
    let dir = temp();
    play_to_cut("truncate", dir.path(), &PowerCut::strict(dir.path()));
    for name in ["shrunk", "grown", "reopened"] {
        assert!(read(&dir, name) == records(0..10), "{name}");
    }
    assert!(read(&dir, "synced") == records(0..1));
    assert!(read(&dir, "allocated") == records(0..11));
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn directory_changes_are_undone_unless_the_directory_was_synced() {
    let dir = temp();
    play_to_cut("entries", dir.path(), &PowerCut::strict(dir.path()));
    assert_eq!(names(&dir), ["CURRENT", "doomed", "moved"]);
    assert!(read(&dir, "CURRENT").is_empty(), "renamed durably, but its content was never synced");
    assert!(read(&dir, "doomed") == records(0..10));
    assert!(read(&dir, "moved") == records(0..10));

    let dir = temp();
    play_to_cut("entries", dir.path(), &PowerCut::strict(dir.path()).keep_dir_entries());
    assert_eq!(names(&dir), ["CURRENT", "moved", "sub", "unsynced"]);
    assert_eq!(read(&dir, "moved"), b"third");
    assert!(read(&dir, "unsynced").is_empty());
    assert!(read(&dir, "sub/inner") == records(0..10));
}

#[test]
fn stdio_appends_are_noticed() {
    let dir = temp();
    play_to_cut("stdio", dir.path(), &PowerCut::strict(dir.path()));
    assert_eq!(read(&dir, "log"), b"one\n");
}

#[test]
fn many_threads_keep_what_they_synced() {
    for seed in 0..4 {
        let dir = temp();
        let shim = if seed == 0 { PowerCut::strict(dir.path()) } else { PowerCut::torn(dir.path(), seed) };
        play_to_cut("threads", dir.path(), &shim);
        let mut next = [0u32; 8];
        for n in 0..4 {
            for line in read(&dir, &format!("data-{n}")).chunks_exact(16) {
                assert_eq!(line[12..], crc(&line[..12]).to_le_bytes(), "seed {seed}");
                let writer = usize::from(line[0]) - 1;
                let i = u32::from_le_bytes(line[4..8].try_into().unwrap());
                assert_eq!(i, next[writer], "seed {seed}: writer {writer} lost a record in the middle");
                next[writer] += 1;
            }
        }
        assert!(next.iter().all(|n| *n >= 390), "seed {seed}: synced records lost: {next:?}");
    }
}

#[test]
fn the_cut_can_be_counted() {
    // The first two syncs are those of `ten`: its file and its directory.
    let after = temp();
    play_to_cut("counted", after.path(), &PowerCut::strict(after.path()).cut_after_fsync(7));
    assert!(read(&after, "f") == records(0..15));
    let during = temp();
    play_to_cut("counted", during.path(), &PowerCut::strict(during.path()).cut_in_fsync(7));
    assert!(read(&during, "f") == records(0..14));
    let torn = temp();
    play_to_cut("counted", torn.path(), &PowerCut::torn(torn.path(), 5).cut_in_write(6));
    let left = read(&torn, "f");
    assert!(left.len() >= 14 * RECORD && left.len() <= 14 * RECORD + RECORD / 2 && records(0..15).starts_with(&left));
}

#[test]
fn fsync_fails_counts_and_is_slowed_without_a_journal() {
    let dir = temp();
    let outside = temp();
    let path = outside.path().join("control");
    let control = Control::open(&path).unwrap();
    let shim = PowerCut::faults_only(Some(dir.path())).control(&path);
    let status = play("counted", dir.path(), &shim.clone().fsync_fail_after(5));
    assert_eq!(status.code(), Some(3));
    assert_eq!(read(&dir, "failed"), b"12");
    assert_eq!((control.syncs(), control.dir_syncs()), (5, 1));

    let begun = std::time::Instant::now();
    assert_eq!(play("counted", dir.path(), &shim.clone().fsync_delay_us(5000)).code(), Some(4));
    assert!(begun.elapsed().as_millis() >= 52 * 5);
    assert_eq!(control.syncs(), 5 + 52);

    // A tenth of a millisecond for each byte, of which it writes 50 records and more.
    let begun = std::time::Instant::now();
    assert_eq!(play("counted", dir.path(), &shim.clone().sync_us_per_mib(100 << 20)).code(), Some(4));
    assert!(begun.elapsed().as_millis() >= 50 * RECORD as u128 / 10);

    control.set_fail(true);
    assert_ne!(play("counted", dir.path(), &shim).code(), Some(4));
}

#[test]
fn what_cannot_be_undone_is_refused_loudly() {
    let dir = temp();
    let status = play("mapped", dir.path(), &PowerCut::strict(dir.path()));
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
}

/// A process ends exactly at the call that was planned.
#[test]
fn a_process_ends_at_the_planned_call() {
    let f = |records: u64| move |dir: &Path| fs::metadata(dir.join("f")).unwrap().len() == records * RECORD as u64;
    let has_g = |wanted: bool| move |dir: &Path| dir.join("g").exists() == wanted;
    let words = |dir: &Path| fs::read(dir.join("words")).unwrap() == *b"alpha beta ";
    type Case<'a> = (Ending, &'a [&'a str], &'a dyn Fn(&Path) -> bool);
    let cases: [Case<'_>; 8] = [
        (Ending::Kill, &["after write 3 */f"], &f(12)),
        (Ending::Kill, &["before write 3 */f"], &f(11)),
        (Ending::Kill, &["after sync 2 */f", "after write 1 */f"], &f(14)),
        (Ending::Kill, &["after write 1 */words beta"], &words),
        (Ending::Kill, &["after link 1 */g"], &has_g(true)),
        (Ending::Kill, &["after unlink 1 */g"], &has_g(false)),
        (Ending::Cut, &["after write 3 */f"], &f(10)),
        (Ending::Cut, &["before create 1 */words"], &f(13)),
    ];
    for (ending, calls, holds) in cases {
        let (dir, other) = (temp(), temp());
        let steps = Steps::create(&other.path().join("steps")).unwrap();
        steps.plan(ending, calls).unwrap();
        play_to_cut("steps", dir.path(), &PowerCut::strict(dir.path()).steps(&steps));
        assert!(holds(dir.path()), "{ending:?} {calls:?}");
        assert!(steps.claimed().unwrap().is_some());
        steps.clear().unwrap();
        // As always, the scene ends in a cut.
        let dir = temp();
        play_to_cut("steps", dir.path(), &PowerCut::strict(dir.path()).steps(&steps));
        assert!(steps.claimed().unwrap().is_none(), "nothing is planned");
    }
}

mod rocks {
    //! RocksDB under the shim, written as the log writer does: manual WAL flush, `flush_wal(true)`.

    use super::*;
    use rocksdb::{DB, FlushOptions, IteratorMode, Options, WriteBatch};

    const SYNCED: u32 = 500;
    const ALL: u32 = 900;

    fn options() -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_manual_wal_flush(true);
        options
    }

    fn put(db: &DB, n: u32) {
        let mut batch = WriteBatch::default();
        batch.put(n.to_be_bytes(), [n as u8; 200]);
        db.write(batch).unwrap();
    }

    pub(super) fn scene(dir: &Path) {
        let db = DB::open(&options(), dir.join("db")).unwrap();
        sync_dir(dir);
        for n in 0..SYNCED {
            put(&db, n);
            if n == 200 {
                // A table, a new WAL, a change of the MANIFEST.
                db.flush_opt(&FlushOptions::default()).unwrap();
            }
        }
        db.flush_wal(true).unwrap();
        for n in SYNCED..ALL {
            put(&db, n);
        }
        db.flush_wal(false).unwrap();
        cut_now();
    }

    fn survivors(dir: &Path) -> u32 {
        let db = DB::open(&options(), dir.join("db")).unwrap();
        let mut count = 0u32;
        for entry in db.iterator(IteratorMode::Start) {
            let (key, value) = entry.unwrap();
            assert_eq!(*key, count.to_be_bytes(), "the records left must be a prefix");
            assert_eq!(*value, [count as u8; 200]);
            count += 1;
        }
        count
    }

    #[test]
    fn rocksdb_keeps_what_flush_wal_synced() {
        let dir = temp();
        play_to_cut("rocksdb", dir.path(), &PowerCut::strict(dir.path()));
        assert_eq!(survivors(dir.path()), SYNCED);
        let mut counts = std::collections::BTreeSet::new();
        // One write was not synced: each seed leaves all of it, a part, or nothing.
        for seed in 0..24 {
            if seed >= 6 && counts.len() > 1 {
                break;
            }
            let dir = temp();
            play_to_cut("rocksdb", dir.path(), &PowerCut::torn(dir.path(), seed));
            let count = survivors(dir.path());
            assert!((SYNCED..=ALL).contains(&count), "seed {seed}: {count}");
            counts.insert(count);
        }
        assert!(counts.len() > 1, "the seed must decide what is left: {counts:?}");
    }
}
