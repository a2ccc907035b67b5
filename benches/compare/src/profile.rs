//! Where Flotilla's processor time goes under a load: a flame graph for each node, the functions that take most, and what
//! an operation costs in system calls and switches between threads. By `perf`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla_benches::cluster::{Result, binary};
use inferno::collapse::Collapse;
use inferno::collapse::perf::Folder;
use inferno::flamegraph::{self, Options};
use tokio::process::Command;

use crate::load::threads::{Placed, sessions};
use crate::load::workload::Workload;
use crate::load::{Load, Running, fill};
use crate::machine::Spent;
use crate::store::Session;
use crate::store::flotilla::Flotilla;

/// Samples a second.
const FREQUENCY: &str = "199";
/// Bytes of each stack that are kept: what is deeper is cut off.
const STACK: &str = "dwarf,16384";
/// Functions that are listed.
const LISTED: usize = 30;

#[derive(clap::Args, Clone)]
pub struct Profile {
    /// What the clients do
    #[arg(value_enum)]
    workload: Workload,
    /// Clients, each with one operation under way
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// Size of a value
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Different keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Ranges; with one, one node leads and the others follow
    #[arg(long, default_value_t = 1)]
    ranges: u32,
    /// By unary calls instead of streams
    #[arg(long)]
    unary: bool,
    /// How long samples are taken
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The disk that is used
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Where the graphs go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub async fn profile(profile: &Profile) -> Result<()> {
    std::fs::create_dir_all(&profile.out)?;
    let store = Flotilla::start(&binary()?, &profile.dir, 3, profile.ranges).await?;
    let processes = store.processes()?;
    match profile.unary {
        true => {
            let sessions = sessions(profile.clients, async |clients| store.unary(clients).await).await?;
            of(profile, &sessions, &processes).await
        }
        false => of(profile, &sessions(profile.clients, async |_| store.stream().await).await?, &processes).await,
    }
}

async fn of<S: Session>(profile: &Profile, sessions: &[Placed<S>], processes: &[u32]) -> Result<()> {
    let load = Load {
        workload: profile.workload,
        clients: profile.clients,
        value_bytes: profile.value_bytes,
        keys: profile.keys,
        seed: 1,
    };
    fill(sessions, load).await?;
    let mut running = Running::start(sessions, load);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Counted first: taking samples costs calls and switches of its own.
    let length = Duration::from_secs_f64(profile.seconds);
    let before: Vec<Spent> = processes.iter().map(|of| Spent::until_now(&[*of])).collect::<Result<_>>()?;
    let counted = counts(processes, profile.seconds);
    running.measure();
    let counted = counted.await?;
    let after: Vec<Spent> = processes.iter().map(|of| Spent::until_now(&[*of])).collect::<Result<_>>()?;
    let done = running.so_far();
    println!("{}, {} clients: {done} operations", profile.workload.name(), profile.clients);
    println!("all nodes, per operation: {:.2} system calls", counted / done as f64);
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        let spent = after.since(*before);
        println!(
            "node {}, per operation: {:.2} us of processor time, {:.3} waits, {:.0} bytes to the disk",
            at + 1,
            spent.server_us / done as f64,
            spent.waits / done as f64,
            spent.disk_bytes / done as f64
        );
    }
    for (at, process) in processes.iter().enumerate() {
        let stacks = record(*process, length, &profile.out.join(format!("node-{}.data", at + 1))).await?;
        let graph = profile.out.join(format!("{}-node-{}.svg", profile.workload.name(), at + 1));
        draw(&stacks, &format!("{}, node {}", profile.workload.name(), at + 1), &graph)?;
        println!("\nnode {}: {}\n{}", at + 1, graph.display(), functions(&stacks));
    }
    running.stop().await.map(drop)
}

/// System calls of processes in some time.
async fn counts(processes: &[u32], seconds: f64) -> Result<f64> {
    let of: Vec<String> = processes.iter().map(u32::to_string).collect();
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &of.join(",")]);
    let output = command.args(["sleep", &seconds.to_string()]).output().await;
    let output = output.map_err(|error| format!("perf: {error}: a profile needs it"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let count = text.lines().find_map(|line| line.split(',').next()?.parse::<f64>().ok());
    Ok(count.ok_or_else(|| format!("perf counts no system calls: {text}"))?)
}

/// Samples of a process: stacks, innermost function last, and how often each was met.
async fn record(process: u32, length: Duration, file: &Path) -> Result<Vec<(String, u64)>> {
    let mut command = Command::new("perf");
    command.args(["record", "-q", "-F", FREQUENCY, "--call-graph", STACK, "-p", &process.to_string(), "-o"]).arg(file);
    let status = command.args(["sleep", &length.as_secs_f64().to_string()]).status().await?;
    if !status.success() {
        return Err(format!("perf record ended with {status}").into());
    }
    let script = Command::new("perf").args(["script", "-i"]).arg(file).output().await?;
    std::fs::remove_file(file)?;
    let mut folded = Vec::new();
    Folder::default().collapse(&script.stdout[..], &mut folded)?;
    let lines = String::from_utf8(folded)?;
    let stacks = lines.lines().filter_map(|line| {
        let (stack, count) = line.rsplit_once(' ')?;
        Some((stack.to_owned(), count.parse().ok()?))
    });
    Ok(stacks.collect())
}

fn draw(stacks: &[(String, u64)], title: &str, file: &Path) -> Result<()> {
    let lines: Vec<String> = stacks.iter().map(|(stack, count)| format!("{stack} {count}")).collect();
    let mut options = Options::default();
    options.title = title.into();
    let out = std::fs::File::create(file)?;
    Ok(flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)?)
}

/// What takes most: of all samples, how many were in the function itself, and how many in it or in what it called.
fn functions(stacks: &[(String, u64)]) -> String {
    let mut found: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut all = 0;
    for (stack, count) in stacks {
        all += count;
        let mut names: Vec<&str> = stack.split(';').collect();
        if let Some(last) = names.last() {
            found.entry(last).or_default().0 += count;
        }
        // A function that calls itself is counted once.
        names.sort_unstable();
        names.dedup();
        names.into_iter().for_each(|name| found.entry(name).or_default().1 += count);
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|(_, (own, _))| std::cmp::Reverse(*own));
    let share = |count: u64| 100.0 * count as f64 / all.max(1) as f64;
    let lines = found.iter().take(LISTED).map(|(name, (own, total))| {
        let name: String = name.chars().take(100).collect();
        format!("{:5.1}% {:5.1}%  {name}\n", share(*own), share(*total))
    });
    format!(" itself  whole\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_counted_by_themselves_and_with_what_they_call() {
        let stacks = [("a;b;a;c".to_owned(), 6), ("a;b".to_owned(), 2), ("d".to_owned(), 2)];
        let text = functions(&stacks);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines, ["itself  whole", "60.0%  60.0%  c", "20.0%  80.0%  b", "20.0%  20.0%  d", "0.0%  80.0%  a"]);
    }

    #[test]
    fn a_graph_is_drawn() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("graph.svg");
        draw(&[("main;work".to_owned(), 3)], "a title", &file).expect("drawn");
        assert!(std::fs::read_to_string(file).expect("written").contains("work"));
    }
}
