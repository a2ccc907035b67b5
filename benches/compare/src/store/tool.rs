//! etcd loaded by its own tool, `benchmark`: a check that the generator of ours does not hold it back.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use flotilla_benches::cluster::Result;
use tokio::process::Command;

use super::connections;
use crate::cell::Measured;
use crate::load::Load;
use crate::load::workload::{Workload, key};
use crate::machine::{SyncCounter, Watch, Watched, resident_bytes};

/// Operations by which the rate is guessed.
const TRIAL: u64 = 5_000;

/// The tool, and the member that it asks.
pub struct Tool<'a> {
    pub binary: &'a Path,
    pub leader: String,
    pub processes: &'a [u32],
}

impl Tool<'_> {
    /// As many operations as are about so long under way. The tool counts from its first operation to its last, so that
    /// nothing is warmed up but by the trial.
    pub async fn measure(&self, load: Load, length: Duration) -> Result<Measured> {
        let trial = Summary::read(&self.run(load, TRIAL.max(load.clients as u64)).await?)?;
        let total = (trial.per_second * length.as_secs_f64()) as u64;
        let total = total.max(load.clients as u64);
        let syncs = SyncCounter::start(self.processes);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let watch = Watch::start(self.processes)?;
        let output = self.run(load, total).await?;
        let Watched { spent, seconds, others } = watch.end(self.processes)?;
        let counted = syncs.and_then(SyncCounter::stop);
        let summary = Summary::read(&output)?;
        let per = |figure: f64| figure / total as f64;
        Ok(Measured {
            per_second: summary.per_second,
            p50_us: summary.p50_us,
            p99_us: summary.p99_us,
            p999_us: summary.p999_us,
            server_us: per(spent.server_us),
            syncs: counted.map(per),
            disk_bytes: per(spent.disk_bytes),
            packets: per(spent.packets),
            calls: per(spent.calls),
            waits: per(spent.waits),
            resident_bytes: resident_bytes(self.processes)?,
            conflicts: 0.0,
            // What the tool takes counts as this process' children.
            others,
            load_cores: spent.own_us / 1e6 / seconds,
        })
    }

    async fn run(&self, load: Load, total: u64) -> Result<Output> {
        let total = total.to_string();
        let mut command = Command::new(self.binary);
        command.args(["--endpoints", &self.leader, "--precise"]).args([
            "--conns",
            &connections(load.clients).to_string(),
            "--clients",
            &load.clients.to_string(),
        ]);
        match load.workload {
            Workload::Put => command
                .args(["put", "--key-size", "16", "--key-space-size", &load.keys.to_string()])
                .args(["--val-size", &load.value_bytes.to_string(), "--total", &total]),
            // One key: the tool knows no more.
            Workload::Get => command.arg("range").arg(std::str::from_utf8(&key(0))?).args(["--total", &total]),
            other => return Err(format!("etcd's tool knows no {}: only put and get", other.name()).into()),
        };
        let output = command.stdin(Stdio::null()).output().await?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("etcd's tool ended with {}: {text}", output.status).into());
        }
        Ok(output)
    }
}

/// What the tool says at its end.
#[derive(Debug, PartialEq)]
struct Summary {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

impl Summary {
    fn read(output: &Output) -> Result<Self> {
        Self::parse(std::str::from_utf8(&output.stdout)?)
    }

    fn parse(text: &str) -> Result<Self> {
        if text.contains("Error distribution") {
            return Err(format!("operations of etcd's tool failed:\n{text}").into());
        }
        let after = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            let word = word.ok_or_else(|| format!("etcd's tool says nothing of {name}:\n{text}"))?;
            Ok(word.parse()?)
        };
        Ok(Self {
            per_second: after("Requests/sec:")?,
            p50_us: after("50% in")? * 1e6,
            p99_us: after("99% in")? * 1e6,
            p999_us: after("99.9% in")? * 1e6,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tool_says_is_read() {
        let text = "\nSummary:\n  Total:\t0.5 secs.\n  Requests/sec:\t1234.5\n\nLatency distribution:\n  50% in 0.001 secs.\n  \
                    99% in 0.02 secs.\n  99.9% in 0.3 secs.\n";
        let wanted = Summary { per_second: 1234.5, p50_us: 1_000.0, p99_us: 20_000.0, p999_us: 300_000.0 };
        assert_eq!(Summary::parse(text).expect("whole"), wanted);
        assert!(Summary::parse("Summary:\n").is_err());
        let failed = Summary::parse(&format!("{text}\nError distribution:\n  [3]\tboom\n")).expect_err("refused");
        assert!(failed.to_string().contains("boom"));
    }
}
