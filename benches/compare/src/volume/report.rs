//! What the turns came to: tables with a line for each figure, a column for each system, and the ratio.

use std::fmt::{self, Display};
use std::path::Path;

use flotilla_benches::cluster::Result;
use flotilla_benches::stats::{Spread, short};
use serde::Serialize;

use super::Volume;
use super::kernel::Resident;
use super::restart::Restart;
use super::turn::Written;
use super::within::{Loaded, Served, Within};
use crate::results::is_wide;
use crate::run::OTHERS_MAX;
use crate::store::System;

const MIB: f64 = 1024.0 * 1024.0;

/// A turn of a system.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub system: System,
    pub turn: u64,
    pub filled: Written,
    pub overwritten: Option<Written>,
    /// Behind SIGKILL.
    pub killed: Restart,
    /// Behind SIGTERM.
    pub stopped: Restart,
    pub within: Option<Within>,
}

impl Outcome {
    fn served(&self) -> Option<&Served> {
        match self.within.as_ref()? {
            Within::Served(served) => Some(served),
            Within::Ended(_) | Within::Failed(_) => None,
        }
    }
}

/// All turns, and what was asked for.
#[derive(Clone, Serialize)]
pub struct Report {
    asked: Volume,
    pub outcomes: Vec<Outcome>,
}

/// A line: its name, and the figure of a turn, if there is one.
type Line = (String, Box<dyn Fn(&Outcome) -> Option<f64>>);

fn line(name: impl Display, figure: impl Fn(&Outcome) -> Option<f64> + 'static) -> Line {
    (name.to_string(), Box::new(figure))
}

impl Report {
    pub fn new(asked: Volume) -> Self {
        Self { asked, outcomes: Vec::new() }
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        Ok(std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?)
    }

    fn table(&self, out: &mut fmt::Formatter<'_>, title: &str, lines: &[Line]) -> fmt::Result {
        write!(out, "\n{title}\n\n| |")?;
        self.asked.systems.iter().try_for_each(|system| write!(out, " {} |", system.name()))?;
        writeln!(out, " Flotilla : etcd |\n|---|{}", "---:|".repeat(self.asked.systems.len() + 1))?;
        for (name, figure) in lines {
            write!(out, "| {name} |")?;
            for system in &self.asked.systems {
                write!(out, " {} |", self.spread(*system, figure).map_or("-".into(), |of| self.shown(of)))?;
            }
            let (own, other) = (self.spread(System::Stream, figure), self.spread(System::Etcd, figure));
            writeln!(out, " {} |", own.zip(other).and_then(|(own, other)| ratio(own, other)).unwrap_or("-".into()))?;
        }
        Ok(())
    }

    fn spread(&self, system: System, figure: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
        let of: Vec<f64> = self.outcomes.iter().filter(|of| of.system == system).filter_map(figure).collect();
        (!of.is_empty()).then(|| Spread::of(&of))
    }

    fn shown(&self, of: Spread) -> String {
        if self.asked.turns > 1 { of.to_string() } else { short(of.median) }
    }

    /// What a figure does not say by itself.
    fn notes(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for of in &self.outcomes {
            let name = format!("turn {}, {}", of.turn, of.system.name());
            let writes = [("the fill", Some(&of.filled)), ("the overwrites", of.overwritten.as_ref())];
            for (what, written) in writes.into_iter().filter_map(|(what, written)| Some((what, written?))) {
                if !written.settled.in_time {
                    let seconds = written.settled.seconds;
                    writeln!(out, "\n{name}: NOT settled {seconds:.0} s behind {what}: taken as it was then.")?;
                }
            }
            for (signal, restart) in [("SIGKILL", of.killed), ("SIGTERM", of.stopped)] {
                if restart.others > OTHERS_MAX {
                    let cores = restart.others;
                    writeln!(out, "\n{name}: beside the restart after {signal} something else took {cores:.2} cores.")?;
                }
            }
            let mib = self.asked.limit_mib.unwrap_or_default();
            match &of.within {
                Some(Within::Ended(node)) => {
                    writeln!(out, "\n{name}: the kernel ended node {node}, which needs more than {mib} MiB.")?;
                }
                Some(Within::Failed(why)) => writeln!(out, "\n{name}: within {mib} MiB a node: {why}.")?,
                Some(Within::Served(_)) | None => {}
            }
        }
        Ok(())
    }
}

/// Of medians. `~`: one of the two spreads by more than 15%.
fn ratio(own: Spread, other: Spread) -> Option<String> {
    let mark = if is_wide(own) || is_wide(other) { "~" } else { "" };
    // Of nothing there is no ratio.
    (other.median > 0.0).then(|| format!("{mark}{:.2}", own.median / other.median))
}

impl Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = &self.asked;
        let keys = short(of.keys as f64);
        let title = format!(
            "{keys} keys of 16 B, values of {} B, {} nodes; Flotilla: {} ranges, {} MiB a node for RocksDB",
            of.value_bytes,
            of.nodes,
            of.ranges,
            short(of.memory_bytes as f64 / MIB)
        );
        writeln!(out, "\n{title}")?;
        self.table(out, "Resident memory of all nodes together, MiB", &memory())?;
        self.table(out, "Bytes written by one replica for each byte of values", &writes())?;
        self.table(out, "Restart of all nodes, files in the page cache: seconds until gets succeed", &restarts())?;
        if let Some(mib) = of.limit_mib {
            let title = format!("Each node within {mib} MiB, page cache included, 64 clients");
            self.table(out, &title, &within(of.nodes as f64))?;
        }
        self.notes(out)
    }
}

fn memory() -> Vec<Line> {
    let of = |when: &'static str, resident: fn(&Outcome) -> Option<Resident>| {
        [
            line(format_args!("{when}: all"), move |of| Some(resident(of)?.all() / MIB)),
            line(format_args!("{when}: anonymous"), move |of| Some(resident(of)?.anonymous / MIB)),
            line(format_args!("{when}: of files"), move |of| Some(resident(of)?.of_files / MIB)),
            line(format_args!("{when}: shared"), move |of| Some(resident(of)?.shared / MIB)),
        ]
    };
    let moments = [
        of("filled", |of| Some(of.filled.resident)),
        of("overwritten", |of| Some(of.overwritten?.resident)),
        of("after SIGKILL and restart", |of| Some(of.killed.resident)),
        of("after SIGTERM and restart", |of| Some(of.stopped.resident)),
    ];
    moments.into_iter().flatten().collect()
}

fn writes() -> Vec<Line> {
    let of = |what: &'static str, written: fn(&Outcome) -> Option<Written>| {
        let split = move |of: &Outcome| Some((written(of)?, written(of)?.split?));
        [
            line(format_args!("{what}: all"), move |of| Some(written(of)?.for_each_byte(written(of)?.bytes))),
            line(format_args!("{what}: WAL"), move |of| split(of).map(|(of, split)| of.for_each_byte(split.wal))),
            line(format_args!("{what}: flushes"), move |of| split(of).map(|(of, split)| of.for_each_byte(split.flush))),
            line(format_args!("{what}: compactions"), move |of| {
                split(of).map(|(of, split)| of.for_each_byte(split.compaction))
            }),
            // Pages that are written whole for a part of them, the manifest, logs.
            line(format_args!("{what}: the rest"), move |of| {
                split(of).map(|(of, split)| of.for_each_byte(of.bytes - split.wal - split.flush - split.compaction))
            }),
            line(format_args!("{what}: puts/s"), move |of| Some(written(of)?.operations / written(of)?.seconds)),
            line(format_args!("{what}: settled, s"), move |of| Some(written(of)?.settled.seconds)),
        ]
    };
    [of("fill", |of| Some(of.filled)), of("overwrites", |of| of.overwritten)].into_iter().flatten().collect()
}

fn restarts() -> Vec<Line> {
    let of = |what: &'static str, restart: fn(&Outcome) -> Restart| {
        [
            line(format_args!("{what}: the first"), move |of| Some(restart(of).first_seconds)),
            line(format_args!("{what}: 64 keys"), move |of| Some(restart(of).all_seconds)),
        ]
    };
    [of("after SIGKILL", |of| of.killed), of("after SIGTERM", |of| of.stopped)].into_iter().flatten().collect()
}

fn within(nodes: f64) -> Vec<Line> {
    let of = |what: &'static str, loaded: fn(&Served) -> Loaded| {
        let figure = move |name, figure: fn(Loaded) -> f64| {
            line(format_args!("{what}: {name}"), move |of| Some(figure(loaded(of.served()?))))
        };
        [
            figure("operations/s", |of| of.per_second),
            figure("p50 µs", |of| of.p50_us),
            figure("p99 µs", |of| of.p99_us),
            figure("server CPU µs/op", |of| of.server_us),
            figure("bytes read/op", |of| of.read_bytes),
        ]
    };
    let began = [
        line("on disk, MiB a node", move |of| Some(of.served()?.bytes_on_disk / nodes / MIB)),
        line("started: the first get, s", |of| Some(of.served()?.restart.first_seconds)),
        line("started: 64 keys, s", |of| Some(of.served()?.restart.all_seconds)),
    ];
    began.into_iter().chain(of("get", |of| of.get)).chain(of("YCSB A", |of| of.ycsb_a)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::volume::metrics::Split;
    use crate::volume::settle::Settled;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        volume: Volume,
    }

    fn report(flags: &[&str]) -> Report {
        Report::new(Line::parse_from([&["volume"], flags].concat()).volume)
    }

    fn outcome(system: System, bytes: f64) -> Outcome {
        let resident = Resident { anonymous: 2.0 * MIB, of_files: MIB, shared: 0.0 };
        let restart = Restart { first_seconds: 1.0, all_seconds: 2.0, resident, others: 0.0 };
        let filled = Written {
            operations: 10.0,
            replicated_bytes: 100.0,
            seconds: 2.0,
            others: 0.0,
            settled: Settled { seconds: 10.0, in_time: true },
            bytes,
            split: (system == System::Stream).then_some(Split { wal: 100.0, flush: 50.0, compaction: 20.0 }),
            resident,
        };
        Outcome { system, turn: 1, filled, overwritten: None, killed: restart, stopped: restart, within: None }
    }

    #[test]
    fn lines_stand_beside_their_ratio() {
        let mut report = report(&["--limit-mib", "64"]);
        report.outcomes = vec![outcome(System::Stream, 200.0), outcome(System::Etcd, 400.0)];
        report.outcomes[1].filled.settled.in_time = false;
        report.outcomes[1].within = Some(Within::Ended(2));
        report.outcomes[0].stopped.others = 0.5;
        let text = report.to_string();
        for part in [
            "| filled: all | 3.00 | 3.00 | 1.00 |",
            "| fill: all | 2.00 | 4.00 | 0.50 |",
            "| fill: the rest | 0.30 | - | - |",
            "| overwrites: all | - | - | - |",
            "| fill: puts/s | 5.00 | 5.00 | 1.00 |",
            "| after SIGKILL: 64 keys | 2.00 | 2.00 | 1.00 |",
            "| get: operations/s | - | - | - |",
            "turn 1, Flotilla, streams: beside the restart after SIGTERM something else took 0.50 cores.",
            "turn 1, etcd, leader: NOT settled 10 s behind the fill",
            "turn 1, etcd, leader: the kernel ended node 2, which needs more than 64 MiB.",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn of_several_turns_the_spread_is_shown() {
        let mut report = report(&["--turns", "2", "--systems", "stream"]);
        report.outcomes = vec![outcome(System::Stream, 200.0), outcome(System::Stream, 300.0)];
        assert!(report.to_string().contains("| fill: all | 2.00 (2.00..3.00) | - |"), "{report}");
        assert_eq!(ratio(Spread::of(&[1.0, 2.0]), Spread::of(&[2.0])), Some("~0.50".into()));
        assert_eq!(ratio(Spread::of(&[1.0]), Spread::of(&[0.0])), None);
    }
}
