//! A limit for the memory of each node, page cache included, by control groups (version 1 or 2). Takes root.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flotilla_benches::cluster::Result;
use flotilla_benches::usage::number_after;

/// So long the kernel is given to see that a group's processes are gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a version of control groups calls things.
#[derive(Clone, Copy, Debug)]
struct Names {
    parent: &'static str,
    limit: &'static str,
    /// Where it says how many processes were ended for want of memory.
    ended: &'static str,
}

const FIRST: Names =
    Names { parent: "/sys/fs/cgroup/memory", limit: "memory.limit_in_bytes", ended: "memory.oom_control" };
const SECOND: Names = Names { parent: "/sys/fs/cgroup", limit: "memory.max", ended: "memory.events" };

/// Control groups, one for each node; they go with it, and their processes must have gone before.
pub struct Groups {
    names: Names,
    paths: Vec<PathBuf>,
    pub mib: u64,
}

impl Groups {
    pub fn new(nodes: usize, mib: u64) -> Result<Self> {
        let swaps = fs::read_to_string("/proc/swaps")?;
        if swaps.lines().count() > 1 {
            return Err("with --limit-mib nodes must not swap, or that is what is measured: `swapoff -a` first".into());
        }
        let names = if Path::new(FIRST.parent).exists() { FIRST } else { SECOND };
        let mut groups = Self { names, paths: Vec::new(), mib };
        for at in 1..=nodes {
            let path = Path::new(names.parent).join(format!("flotilla-volume-{}-{at}", std::process::id()));
            let words = |why| format!("{}: {why}: --limit-mib needs root and the memory controller", path.display());
            fs::create_dir(&path).map_err(words)?;
            groups.paths.push(path.clone());
            fs::write(path.join(names.limit), (mib << 20).to_string()).map_err(words)?;
        }
        Ok(groups)
    }

    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The first node that the kernel has ended for want of memory, from 1 on.
    pub fn ended(&self) -> Result<Option<usize>> {
        for (at, path) in (1..).zip(&self.paths) {
            if ended(&fs::read_to_string(path.join(self.names.ended))?)? > 0 {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for path in &self.paths {
            let began = Instant::now();
            while let Err(why) = fs::remove_dir(path) {
                if began.elapsed() > PATIENCE {
                    eprintln!("compare: {}: {why}: it stays; remove it with rmdir", path.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn ended(report: &str) -> Result<u64> {
    Ok(number_after(report, "\noom_kill ")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_were_ended_are_counted_in_both_versions() {
        assert_eq!(ended("oom_kill_disable 5\nunder_oom 0\noom_kill 2\n").expect("there"), 2);
        assert_eq!(ended("low 0\nhigh 0\nmax 9\noom 3\noom_kill 1\noom_group_kill 7\n").expect("there"), 1);
        assert!(ended("oom_kill_disable 5\n").is_err());
    }
}
