//! Power cuts for tests of real processes: compiles the LD_PRELOAD shim beside this file once and gives the
//! environment that starts a process under it. What the shim models is told in README.md.
//!
//! Flow: `PowerCut::strict(dir).vars()` into `Command::envs`, work, `PowerCut::trigger(pid)`, `wait` (SIGKILL):
//! from then on the files under `dir` are what a machine would find after losing power.

// Each test program that includes this module uses a part of it.
#![allow(dead_code)]

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

const SOURCES: [(&str, &str); 6] = [
    ("powercut.h", include_str!("powercut.h")),
    ("shim.c", include_str!("shim.c")),
    ("journal.c", include_str!("journal.c")),
    ("dirs.c", include_str!("dirs.c")),
    ("cut.c", include_str!("cut.c")),
    ("steps.c", include_str!("steps.c")),
];

/// The environment of one process that is to run under the shim.
#[derive(Clone)]
pub struct PowerCut {
    vars: Vec<(String, String)>,
}

impl PowerCut {
    /// Forgets everything under `dir` that no fsync covered. The directory must exist.
    pub fn env(dir: &Path) -> Vec<(String, String)> {
        Self::strict(dir).vars()
    }

    /// Like `env`, to be refined.
    pub fn strict(dir: &Path) -> Self {
        Self::preload().with("FLOTILLA_POWERCUT_DIR", dir.display())
    }

    /// Keeps a random part of what no fsync covered: of each file a prefix of its writes, the last one torn, of the
    /// directories a prefix of their changes.
    pub fn torn(dir: &Path, seed: u64) -> Self {
        Self::strict(dir).with("FLOTILLA_POWERCUT_MODE", "torn").with("FLOTILLA_POWERCUT_SEED", seed)
    }

    /// No power cuts: faults and counts of fsync only, under `dir` or, with `None`, everywhere.
    pub fn faults_only(dir: Option<&Path>) -> Self {
        let shim = Self::preload().with("FLOTILLA_POWERCUT_MODE", "off");
        match dir {
            Some(dir) => shim.with("FLOTILLA_POWERCUT_DIR", dir.display()),
            None => shim,
        }
    }

    /// Creations, renames and removals are durable at once; only file contents are forgotten.
    pub fn keep_dir_entries(self) -> Self {
        self.with("FLOTILLA_POWERCUT_DIR_ENTRIES", "kept")
    }

    /// Cuts right after the n-th fsync (from 1) has succeeded, before its caller hears of it.
    pub fn cut_after_fsync(self, n: u64) -> Self {
        self.with("FLOTILLA_POWERCUT_AFTER_FSYNC", n)
    }

    /// Cuts when the n-th fsync begins.
    pub fn cut_in_fsync(self, n: u64) -> Self {
        self.with("FLOTILLA_POWERCUT_IN_FSYNC", n)
    }

    /// Cuts in the middle of the n-th write.
    pub fn cut_in_write(self, n: u64) -> Self {
        self.with("FLOTILLA_POWERCUT_IN_WRITE", n)
    }

    /// Makes each fsync, fdatasync and sync_file_range take so much longer.
    pub fn fsync_delay_us(self, us: u64) -> Self {
        self.with("FLOTILLA_FSYNC_DELAY_US", us)
    }

    /// Makes each fsync and fdatasync take so much longer for every MiB that was written: a disk of limited bandwidth.
    pub fn sync_us_per_mib(self, us: u64) -> Self {
        self.with("FLOTILLA_SYNC_US_PER_MIB", us)
    }

    /// Makes the n-th fsync (from 1) and all later ones fail with EIO.
    pub fn fsync_fail_after(self, n: u64) -> Self {
        self.with("FLOTILLA_FSYNC_FAIL_AFTER", n)
    }

    /// Counts into this file, through which `Control` also sets faults while the process runs.
    pub fn control(self, file: &Path) -> Self {
        self.with("FLOTILLA_FSYNC_COUNT_FILE", file.display())
    }

    /// Ends or stops the process at the file call that is planned there.
    pub fn steps(self, steps: &Steps) -> Self {
        self.with("FLOTILLA_STEPS_FILE", steps.path.display())
    }

    /// The variables, for `Command::envs`.
    pub fn vars(&self) -> Vec<(String, String)> {
        self.vars.clone()
    }

    /// Asks the process for the cut; wait for the process afterwards.
    pub fn trigger(pid: u32) -> io::Result<()> {
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: kill takes no pointers.
        match unsafe { libc::kill(pid, libc::SIGUSR2) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The compiled shim.
    pub fn library() -> &'static Path {
        static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
        LIBRARY.get_or_init(|| compile().expect("the power-cut shim needs a C compiler, as RocksDB does"))
    }

    fn preload() -> Self {
        Self { vars: Vec::new() }.with("LD_PRELOAD", Self::library().display())
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.vars.push((name.to_string(), value.to_string()));
        self
    }
}

/// The mapped file of counts and faults; processes that share one add up.
pub struct Control {
    words: &'static [AtomicU64; 4],
}

impl Control {
    /// Creates the file, or opens it with its counts as they are.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() < 32 {
            file.set_len(32)?;
        }
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of 32 bytes of a file that has them, never unmapped: 'static, and u64-aligned.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 32, prot, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: see above; other processes change the words atomically only.
        Ok(Self { words: unsafe { &*at.cast() } })
    }

    /// fsync and fdatasync calls so far, failed ones included.
    pub fn syncs(&self) -> u64 {
        self.words[0].load(Ordering::Relaxed)
    }

    /// Those of them that were of directories.
    pub fn dir_syncs(&self) -> u64 {
        self.words[1].load(Ordering::Relaxed)
    }

    /// From now on each sync takes so much longer; 0: as the environment says.
    pub fn set_delay_us(&self, us: u64) {
        self.words[2].store(us, Ordering::Relaxed);
    }

    /// From now on every sync fails with EIO.
    pub fn set_fail(&self, fail: bool) {
        self.words[3].store(u64::from(fail), Ordering::Relaxed);
    }
}

/// What becomes of the process that comes to the planned call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, until it is sent SIGCONT.
    Stop,
    /// The power cut, of a process that runs with a journal.
    Cut,
}

/// A plan: at which file call a process ends. Processes that share the file share the plan, and one of them acts.
pub struct Steps {
    path: PathBuf,
    file: fs::File,
}

impl Steps {
    const CLAIMED_AT: u64 = 4;
    const PLAN_AT: u64 = 8;
    const BYTES: usize = 4096;

    /// Creates the file, with nothing planned.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(Self::BYTES as u64)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// From now on the process that comes to the last of these calls, after the others in this order, ends there. Each
    /// is `before|after create|read|write|sync|link|unlink N PATTERN [CONTENT]`: the N-th such call (from 1) on a
    /// path that matches, which writes bytes that contain CONTENT.
    pub fn plan<S: AsRef<str>>(&self, ending: Ending, calls: &[S]) -> io::Result<()> {
        let mut text = match ending {
            Ending::Kill => "kill",
            Ending::Stop => "stop",
            Ending::Cut => "cut",
        }
        .to_owned();
        for call in calls {
            text.push('\n');
            text.push_str(call.as_ref());
        }
        self.replace(&text)
    }

    /// Nobody ends any more.
    pub fn clear(&self) -> io::Result<()> {
        self.replace("")
    }

    /// The process that came to the planned call.
    pub fn claimed(&self) -> io::Result<Option<u32>> {
        let pid = self.word(Self::CLAIMED_AT)?;
        Ok((pid != 0).then_some(pid))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut bytes = vec![0; Self::BYTES - Self::PLAN_AT as usize];
        if text.len() >= bytes.len() {
            return Err(io::Error::other("the plan is too long"));
        }
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        // The generation last: it is what makes a process read the plan.
        self.file.write_all_at(&bytes, Self::PLAN_AT)?;
        self.file.write_all_at(&0_u32.to_ne_bytes(), Self::CLAIMED_AT)?;
        self.file.write_all_at(&(self.word(0)? + 1).to_ne_bytes(), 0)
    }

    fn word(&self, at: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u32::from_ne_bytes(bytes))
    }
}

/// Compiles into a directory named by the sources' hash, so that a changed shim is never mistaken for the old one.
/// The finished library appears by a rename: test programs may race here.
fn compile() -> io::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    SOURCES.hash(&mut hasher);
    let base = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("flotilla-powercut-{:016x}", hasher.finish()));
    let library = dir.join("libpowercut.so");
    if library.exists() {
        return Ok(library);
    }
    let build = dir.join(format!("build-{}", std::process::id()));
    fs::create_dir_all(&build)?;
    for (name, text) in SOURCES {
        fs::write(build.join(name), text)?;
    }
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let mut command = Command::new(&compiler);
    command.args(["-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]);
    command.args(SOURCES.map(|(name, _)| name).into_iter().filter(|name| name.ends_with(".c")));
    let output = command.args(["-o", "libpowercut.so", "-lpthread", "-ldl"]).current_dir(&build).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{compiler}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    fs::rename(build.join("libpowercut.so"), &library)?;
    fs::remove_dir_all(&build)?;
    Ok(library)
}
