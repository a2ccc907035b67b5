//! What the kernel says of processes and of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use flotilla_benches::cluster::Result;
use flotilla_benches::usage::{self, number_after};

/// What some processes, and the machine, have spent until now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// CPU time of the servers.
    pub server_us: f64,
    /// CPU time of this process, and of those that it ran and that have ended.
    pub own_us: f64,
    /// CPU time of the whole machine, and what a hypervisor took of it.
    pub machine_us: f64,
    pub stolen_us: f64,
    /// Bytes that the servers gave to the disk.
    pub disk_bytes: f64,
    /// Packets on loopback.
    pub packets: f64,
    /// System calls of the servers that read or write.
    pub calls: f64,
    /// Times that a thread of the servers gave its core up to wait.
    pub waits: f64,
}

impl Spent {
    pub fn until_now(processes: &[u32]) -> Result<Self> {
        let mut spent = Self { own_us: own_us()?, packets: loopback_packets()?, ..Self::default() };
        for process in processes {
            spent.server_us += cpu_us(&format!("/proc/{process}/stat"))?;
            let io = fs::read_to_string(format!("/proc/{process}/io"))?;
            spent.disk_bytes += number_after(&io, "\nwrite_bytes:")? as f64;
            spent.calls += (number_after(&io, "syscr:")? + number_after(&io, "syscw:")?) as f64;
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                // A thread may have ended since it was listed.
                let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
                spent.waits += number_after(&status, "\nvoluntary_ctxt_switches:")? as f64;
            }
        }
        let (machine, stolen) = machine_us()?;
        Ok(Self { machine_us: machine, stolen_us: stolen, ..spent })
    }

    pub fn since(self, earlier: Self) -> Self {
        Self {
            server_us: self.server_us - earlier.server_us,
            own_us: self.own_us - earlier.own_us,
            machine_us: self.machine_us - earlier.machine_us,
            stolen_us: self.stolen_us - earlier.stolen_us,
            disk_bytes: self.disk_bytes - earlier.disk_bytes,
            packets: self.packets - earlier.packets,
            calls: self.calls - earlier.calls,
            waits: self.waits - earlier.waits,
        }
    }

    /// What neither servers nor load took of the machine.
    fn others_us(self) -> f64 {
        self.machine_us - self.server_us - self.own_us + self.stolen_us
    }
}

/// The parent of all threads of the kernel.
const KTHREADD: u32 = 2;

/// CPU time of the kernel's own threads, by their ids: what they do for a disk that is measured disturbs nobody.
struct Kernel(BTreeMap<u32, f64>);

impl Kernel {
    fn until_now() -> Result<Self> {
        let mut spent = BTreeMap::new();
        for process in fs::read_dir("/proc")? {
            let Some(id) = process?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // It may have ended since it was listed.
            let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
            if parent(&stat) == Some(KTHREADD) {
                let ticks = ticks_of(&stat)?;
                spent.insert(id, (ticks[0] + ticks[1]) / TICKS * 1e6);
            }
        }
        Ok(Self(spent))
    }

    /// Those that have ended in between are left out.
    fn us_since(&self, earlier: &Self) -> f64 {
        self.0.iter().map(|(id, us)| us - earlier.0.get(id).unwrap_or(&0.0)).sum()
    }
}

/// What servers spend from its start on, and what else the machine does meanwhile.
pub struct Watch {
    kernel: Kernel,
    spent: Spent,
    began: Instant,
}

/// What it saw.
pub struct Watched {
    pub spent: Spent,
    pub seconds: f64,
    /// Cores that something else was busy with: neither servers, load nor the kernel for their disk.
    pub others: f64,
}

impl Watch {
    pub fn start(processes: &[u32]) -> Result<Self> {
        Ok(Self { kernel: Kernel::until_now()?, spent: Spent::until_now(processes)?, began: Instant::now() })
    }

    pub fn end(self, processes: &[u32]) -> Result<Watched> {
        let (spent, seconds) = (Spent::until_now(processes)?.since(self.spent), self.began.elapsed().as_secs_f64());
        let others_us = spent.others_us() - Kernel::until_now()?.us_since(&self.kernel);
        Ok(Watched { spent, seconds, others: (others_us / 1e6 / seconds).max(0.0) })
    }
}

fn parent(stat: &str) -> Option<u32> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(1)?.parse().ok()
}

/// Resident bytes of all of them.
pub fn resident_bytes(processes: &[u32]) -> Result<f64> {
    let of = |process: &u32| Ok(usage::resident_bytes_of(*process)? as f64);
    processes.iter().map(of).sum()
}

/// The clock ticks of `stat`, in a second; it is 100 on every Linux.
const TICKS: f64 = 100.0;

/// User and system time.
fn cpu_us(stat: &str) -> Result<f64> {
    let ticks = ticks(stat)?;
    Ok((ticks[0] + ticks[1]) / TICKS * 1e6)
}

/// The same of this process, with that of its children.
fn own_us() -> Result<f64> {
    Ok(ticks("/proc/self/stat")?.iter().sum::<f64>() / TICKS * 1e6)
}

/// User and system time, its own and that of children that have ended.
fn ticks(stat: &str) -> Result<[f64; 4]> {
    ticks_of(&fs::read_to_string(stat)?)
}

fn ticks_of(text: &str) -> Result<[f64; 4]> {
    // The name in parentheses may hold anything.
    let (_, after) = text.rsplit_once(')').ok_or("a stat without a name")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).ok_or("a stat that is too short");
    Ok([ticks(11)?, ticks(12)?, ticks(13)?, ticks(14)?])
}

/// What all cores did that was not waiting, and what was taken from them.
fn machine_us() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().ok_or("an empty /proc/stat")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else {
        return Err("/proc/stat is too short".into());
    };
    let us = |ticks: f64| ticks / TICKS * 1e6;
    Ok((us(user + nice + system + irq + softirq), us(steal)))
}

fn loopback_packets() -> Result<f64> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let line = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:")).ok_or("no loopback device")?;
    Ok(line.split_whitespace().nth(1).ok_or("/proc/net/dev is too short")?.parse()?)
}

/// Counts the syncs of processes, whatever they are written in, by the kernel's trace points; `perf` does it.
pub struct SyncCounter(Child);

impl SyncCounter {
    /// Begins; `None`: there is no `perf`, or it may not.
    pub fn start(processes: &[u32]) -> Option<Self> {
        let of: Vec<String> = processes.iter().map(u32::to_string).collect();
        let mut command = Command::new("perf");
        command
            .args(["stat", "-x", ",", "-e", "syscalls:sys_enter_fdatasync,syscalls:sys_enter_fsync"])
            .args(["-p", &of.join(",")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().ok().map(Self)
    }

    /// Ends; how many there were.
    pub fn stop(self) -> Option<f64> {
        let pid = i32::try_from(self.0.id()).ok()?;
        // SAFETY: kill takes no pointers, and the child has not been waited for, so that the id is still its own.
        unsafe { libc::kill(pid, libc::SIGINT) };
        let output = self.0.wait_with_output().ok()?;
        let text = String::from_utf8(output.stderr).ok()?;
        let counts = text.lines().filter_map(|line| line.split(',').next()?.parse::<f64>().ok());
        let counts: Vec<f64> = counts.collect();
        (counts.len() == 2).then(|| counts.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_the_kernel_are_known_by_their_parent() {
        let text = "77 (a) b) S 2 0 0 0 -1 0 0 0 0 0 5 6 7 8 20";
        assert_eq!((parent(text), ticks_of(text).expect("read")), (Some(KTHREADD), [5.0, 6.0, 7.0, 8.0]));
        let kernel = |of: &[(u32, f64)]| Kernel(of.iter().copied().collect());
        let (before, after) = (kernel(&[(3, 10.0), (4, 1e9)]), kernel(&[(3, 25.0), (5, 1.0)]));
        assert_eq!(after.us_since(&before), 16.0);
        assert!(!Kernel::until_now().expect("readable").0.contains_key(&std::process::id()));
    }

    #[test]
    fn the_kernel_tells_of_this_process() {
        let before = Spent::until_now(&[std::process::id()]).expect("readable");
        let (mut sum, mut spent) = (0u64, Spent::default());
        // The machine's time is sampled by ticks, which may all fall beside so short a load: it goes on until both tell of it.
        while spent.server_us < 20_000.0 || spent.machine_us < 10_000.0 {
            assert!(spent.server_us < 10e6, "the machine's time stands still: {spent:?}");
            sum = (0..1_000_000u64).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
            spent = Spent::until_now(&[std::process::id()]).expect("readable").since(before);
        }
        assert!(resident_bytes(&[std::process::id()]).expect("readable") > 1e6);
        let own = [std::process::id()];
        let watched = Watch::start(&own).expect("readable").end(&own).expect("readable");
        assert!(watched.others >= 0.0 && watched.spent.server_us >= 0.0);
    }
}
