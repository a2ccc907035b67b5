//! Bit rot in the files of a node of three: each flipped bit is noticed, or changes nothing; no client ever gets bytes that
//! were not written; and what the node says when it refuses leads to a rebuilt replica.
//!
//! Every value is made from its key and a number, so that whoever reads it knows whether it was ever written. Besides
//! clients that ask the cluster, the damaged node is asked for all that it has (stale reads), as long as it answers.
//! Random flips: six, or as many as FLOTILLA_ROT_FLIPS says (`make rot FLIPS=200`).

mod files;
mod load;
mod rebuilt;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Runtime;

use self::load::Load;
use crate::support::cluster::{Cluster, http_get};
use crate::support::rng::Rng;
use crate::support::{eventually, runtime, used_bytes};

/// The node whose files are damaged.
const VICTIM: u64 = 3;
/// Between two passes of the scrub.
const SCRUB_MS: &str = "300";

/// Three nodes under load.
struct Scene {
    cluster: Cluster,
    runtime: Runtime,
    load: Load,
}

/// One bit of one file.
#[derive(Clone, Debug)]
struct Flip {
    file: PathBuf,
    at: u64,
    bit: u8,
}

impl Flip {
    /// Anywhere in a file; `None`: it is empty, or not there any more.
    fn anywhere(file: &Path, rng: &mut Rng) -> Option<Self> {
        let bytes = used_bytes(file);
        (bytes > 0).then(|| Self { file: file.into(), at: rng.below(bytes), bit: rng.below(8) as u8 })
    }

    /// Flips the bit in place, as a disk does it; a second time puts it back.
    fn apply(&self) {
        let file = fs::File::options().read(true).write(true).open(&self.file).expect("the test's own file");
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.at).expect("the byte is there");
        file.write_all_at(&[byte[0] ^ (1 << self.bit)], self.at).expect("it can be written");
    }

    fn name(&self) -> &str {
        self.file.file_name().and_then(|name| name.to_str()).expect("a plain name")
    }
}

/// What became of a flip.
#[derive(Debug)]
enum Outcome {
    /// The node did not start, or stopped, with these words.
    Noticed(String),
    /// The node serves, all its files were read, and its contents are those of the others.
    Harmless,
}

impl Scene {
    fn new(rng: &mut Rng) -> Self {
        let mut cluster = Cluster::new(3);
        let scrub = ["--scrub-interval-ms", SCRUB_MS, "--scrub-bytes-per-second", "1000000000"];
        cluster.set_args(&[&["--initial-ranges", "4", "--node-dead-after-ms", "4000"][..], &scrub].concat());
        cluster.start_all();
        let runtime = runtime();
        let client = runtime.block_on(cluster.client(Duration::from_secs(20)));
        let load = runtime.block_on(Load::start(client, rng.next()));
        Self { cluster, runtime, load }
    }

    fn data(&self) -> PathBuf {
        self.cluster.node(VICTIM).data.clone()
    }

    /// Full passes of the victim's scrub since it was started; `None`: it does not answer.
    fn passes(&self) -> Option<u64> {
        let (_, text) = http_get(&self.cluster.node(VICTIM).http, "/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix("flotilla_scrub_passes_total "))?;
        line.trim().parse().ok()
    }

    /// Waits until the scrub has read every file twice from now on, or the node has ended.
    fn scrubbed(&mut self) -> bool {
        let before = self.passes().unwrap_or(0);
        eventually("the scrub to pass", || {
            !self.cluster.is_running(VICTIM) || self.passes().is_some_and(|passes| passes >= before + 2)
        });
        self.cluster.is_running(VICTIM)
    }

    /// Starts the victim, whose log begins anew, and sees what comes of it.
    fn outcome(&mut self) -> Outcome {
        let before = self.cluster.log(VICTIM).len();
        self.cluster.start(VICTIM);
        let http = self.cluster.node(VICTIM).http.clone();
        eventually("the node to serve or to refuse", || {
            !self.cluster.is_running(VICTIM) || http_get(&http, "/readyz").is_some_and(|(status, _)| status == 200)
        });
        // What it answers is right, whether it has found the damage by then or not.
        let served = self.runtime.block_on(load::stale_contents(&self.cluster.node(VICTIM).client));
        if served.is_some() && self.scrubbed() {
            self.assert_equal();
            return Outcome::Harmless;
        }
        eventually("the node to end", || !self.cluster.is_running(VICTIM));
        assert_eq!(self.cluster.wait_end(VICTIM), Some(1), "{}", &self.cluster.log(VICTIM)[before..]);
        Outcome::Noticed(self.cluster.log(VICTIM)[before..].to_owned())
    }

    /// All replicas hold the same at one index, and what clients see is what was written.
    fn assert_equal(&self) {
        let address = &self.cluster.node(1).client;
        eventually("all replicas to be equal", || {
            let words = ["range", "check", "--all", "--timeout", "30s"];
            let check = crate::support::cli::at(address, &words);
            assert!(!check.stderr.contains("differs"), "{check:?}");
            check.code == 0
        });
        self.runtime.block_on(self.load.read_all());
    }

    /// The flipped bit is put back, by somebody who knows that nothing else is wrong: as the refusal allows.
    fn put_back(&self, flip: &Flip) {
        if flip.file.exists() {
            flip.apply();
        }
        fs::remove_file(self.data().join("DAMAGED")).ok();
    }

    /// The victim as it should be, with files that the scrub knows.
    fn start_sound(&mut self) {
        if !self.cluster.is_running(VICTIM) {
            self.cluster.start(VICTIM);
        }
        self.cluster.wait_node(VICTIM);
        assert!(self.scrubbed(), "{}", self.cluster.log(VICTIM));
    }

    /// Kills the victim when all that it wrote is known to have been synced, but for the last moments.
    fn kill(&mut self) {
        let watermark = self.data().join("WATERMARK");
        let before = fs::read(&watermark).expect("the store has one");
        eventually("the watermark to move", || fs::read(&watermark).is_ok_and(|now| now != before));
        self.cluster.kill(VICTIM);
    }

    /// The victim's files of a kind.
    fn files(&self, is_it: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let data = self.data();
        let mut found: Vec<PathBuf> = ["", "db", "log", "snap"]
            .iter()
            .flat_map(|folder| fs::read_dir(data.join(folder)).expect("the store has it").flatten())
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && path.strip_prefix(&data).is_ok_and(|name| is_it(&name.to_string_lossy())))
            .collect();
        found.sort();
        found
    }

    fn end(mut self) {
        let requests = self.runtime.block_on(self.load.stop());
        println!("{requests} requests meanwhile, none answered wrongly");
        for id in 1..=3 {
            self.cluster.kill(id);
        }
    }
}
