//! A share of the processors for processes, by a control group (version 1 or 2), so that what is asked of them can be many times what
//! they can do although whoever asks runs on the same machine. Takes root.

use std::fs;
use std::path::{Path, PathBuf};

use flotilla_benches::cluster::Result;

/// The kernel gives at least a millisecond in each period; longer ones are longer standstills.
const QUOTA_MIN_US: u64 = 2_000;
const PERIOD_MIN_US: u64 = 10_000;

/// A control group; gone when dropped, once its processes are.
pub struct Quota(PathBuf);

impl Quota {
    /// A group that gets so many percent of one processor.
    pub fn new(percent: u64) -> Result<Self> {
        let name = format!("flotilla-bench-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/cpu");
        let (parent, first) = if first.exists() { (first, true) } else { (Path::new("/sys/fs/cgroup"), false) };
        let group = parent.join(name);
        let period = (QUOTA_MIN_US * 100 / percent).max(PERIOD_MIN_US);
        let quota = period * percent / 100;
        let settings = match first {
            true => vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
            false => vec![("cpu.max", format!("{quota} {period}"))],
        };
        fs::create_dir(&group)
            .map_err(|why| format!("{}: {why}; this needs root and control groups", group.display()))?;
        let made = Self(group);
        for (name, value) in settings {
            fs::write(made.0.join(name), value).map_err(|why| format!("{name}: {why}: no quota can be set here"))?;
        }
        Ok(made)
    }

    /// Takes a process in, with all of its threads.
    pub fn take(&self, process: u32) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), process.to_string())?)
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Where its processes have not been waited for it stays, empty, until the machine is started anew.
        let _ = fs::remove_dir(&self.0);
    }
}
