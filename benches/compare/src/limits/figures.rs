//! What many turns came to: medians and spreads as tables, kept as JSON; and what of it binds puts and reads.

use std::fmt::Write;
use std::path::Path;

use flotilla_benches::cluster::Result;
use flotilla_benches::stats::{Spread, short};
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::network::{Network, Way};
use super::raft::{Beneath, RANGES, Raft};
use super::{Line, Part};
use crate::results::is_wide;

/// One measurement of a line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub per_second: f64,
    /// For each: CPU time of all that took part.
    pub cpu_us: f64,
    /// Of that: the server's, where there is one.
    pub server_us: Option<f64>,
    /// Cores that something else was busy with.
    pub others: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    line: Line,
    runs: Vec<Measured>,
}

/// All lines, in the order in which they were measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    cores: usize,
    limits: Vec<Row>,
}

/// A median, and whether one that is in it spreads by more than 15%.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figure {
    value: f64,
    wide: bool,
}

impl Figure {
    fn of(spread: Spread) -> Self {
        Self { value: spread.median, wide: is_wide(spread) }
    }

    fn plus(self, other: Self, times: f64) -> Self {
        Self { value: self.value + times * other.value, wide: self.wide || other.wide }
    }

    fn shown(self) -> String {
        format!("{}{}", if self.wide { "~" } else { "" }, short(self.value))
    }
}

/// What a put costs in CPU time at least, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PutCost {
    engine: Figure,
    sync: Figure,
    exchanges: Figure,
}

impl PutCost {
    fn sum(self) -> Figure {
        self.engine.plus(self.sync, 1.0).plus(self.exchanges, 1.0)
    }
}

impl Figures {
    pub fn new(cores: usize) -> Self {
        Self { cores, limits: Vec::new() }
    }

    pub(super) fn add(&mut self, line: Line, measured: Measured) {
        match self.limits.iter_mut().find(|row| row.line == line) {
            Some(row) => row.runs.push(measured),
            None => self.limits.push(Row { line, runs: vec![measured] }),
        }
    }

    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(serde_json::from_slice(&text).map_err(|error| format!("{}: no limits: {error}", file.display()))?)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        Ok(std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?)
    }

    /// A table for each part.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        for (part, title) in [
            (Part::Disk, "Disk: made durable"),
            (Part::Network, "Network stack on loopback: operations that are answered without work"),
            (Part::Rocks, "RocksDB as the product opens it: one thread, values of 256 B"),
            (Part::Raft, "Raft loop: puts of 256 B, three replicas in one thread, no network, no sync"),
        ] {
            let rows: Vec<&Row> = self.limits.iter().filter(|row| row.line.part() == part).collect();
            if !rows.is_empty() {
                text.push_str(&table(title, &rows));
            }
        }
        text
    }

    fn spread(&self, line: Line, figure: fn(&Measured) -> f64) -> Option<Figure> {
        let row = self.limits.iter().find(|row| row.line == line)?;
        Some(Figure::of(Spread::of(&row.runs.iter().map(figure).collect::<Vec<_>>())))
    }

    fn per_second(&self, line: Line) -> Option<Figure> {
        self.spread(line, |of| of.per_second)
    }

    fn cpu_us(&self, line: Line) -> Option<Figure> {
        self.spread(line, |of| of.cpu_us)
    }

    /// With so many under way: the engine over RocksDB, all three replicas; a share of the group's syncs; an exchange with the
    /// client by the stream, and one with each follower by what is cheapest, both ends of which cost as much as the
    /// server does: the client's figures hold the generator of load.
    fn put_cost(&self, under_way: usize, ranges: u32) -> Option<PutCost> {
        let raft = Raft { beneath: Beneath::RocksDb, ranges, under_way: under_way as u64 };
        let way = |way| Line::Network(Network { way, callers: under_way });
        let ends = self.spread(way(Way::Tcp), |of| of.server_us.unwrap_or(of.cpu_us / 2.0))?;
        Some(PutCost {
            engine: self.cpu_us(Line::Raft(raft))?,
            sync: self.cpu_us(Line::Disk(Disk::Grouped { writers: under_way as u64 }))?,
            exchanges: self.cpu_us(way(Way::Stream))?.plus(ends, 4.0),
        })
    }

    /// What the aims refer to, as far as it was measured.
    pub fn what_binds(&self) -> String {
        let mut text = String::new();
        for under_way in [256, 1_000] {
            self.say_puts(under_way, &mut text);
        }
        for callers in [256, 1_000] {
            let echo = self.per_second(Line::Network(Network { way: Way::Unary, callers }));
            if let Some(echo) = echo {
                say(
                    &mut text,
                    format_args!(
                        "gets by streams, {callers} under way: at least {}/s, the bare unary echo",
                        echo.shown()
                    ),
                );
            }
        }
        if text.is_empty() {
            text
        } else {
            format!("\nWhat binds ({} cores; ~: of figures that spread)\n\n{text}", self.cores)
        }
    }

    fn say_puts(&self, under_way: usize, text: &mut String) {
        let Some(disk) = self.per_second(Line::Disk(Disk::Grouped { writers: under_way as u64 })) else { return };
        say(text, format_args!("puts, {under_way} under way, grouped fsync: {}/s", disk.shown()));
        for ranges in RANGES {
            let Some(cost) = self.put_cost(under_way, ranges) else { continue };
            let sum = cost.sum();
            let cpu = Figure { value: self.cores as f64 * 1e6 / sum.value, wide: sum.wide };
            let of = if ranges == 1 { "1 range".into() } else { format!("{ranges} ranges") };
            say(
                text,
                format_args!(
                    "puts, {under_way} under way, {of}, CPU: {}/s at {} us (Raft and RocksDB {}, fsync {}, exchanges {})",
                    cpu.shown(),
                    sum.shown(),
                    cost.engine.shown(),
                    cost.sync.shown(),
                    cost.exchanges.shown()
                ),
            );
            let (what, least) = if disk.value < cpu.value { ("fsync", disk) } else { ("CPU", cpu) };
            let half = Figure { value: least.value / 2.0, ..least };
            say(text, format_args!("puts, {under_way} under way, {of}: {what} binds; half of it: {}/s", half.shown()));
        }
    }
}

fn say(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "- {line}").expect("a string takes all");
}

/// A column's name, and its figure.
type Column = (&'static str, fn(&Measured) -> f64);

fn table(title: &str, rows: &[&Row]) -> String {
    let served = rows.iter().any(|row| row.runs.iter().any(|run| run.server_us.is_some()));
    let mut columns: Vec<Column> = vec![("per second", |of| of.per_second), ("CPU µs each", |of| of.cpu_us)];
    if served {
        columns.push(("of it the server", |of| of.server_us.unwrap_or(f64::NAN)));
        columns.push(("the client", |of| of.cpu_us - of.server_us.unwrap_or(f64::NAN)));
    }
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "\n{title}; medians (smallest..largest), ~: spreads by more than 15%\n\n| | {} |\n|---|{}\n",
        names.join(" | "),
        "---:|".repeat(names.len())
    );
    for row in rows {
        text.push_str(&format!("| {} |", row.line.name()));
        for (_, figure) in &columns {
            let spread = Spread::of(&row.runs.iter().map(figure).collect::<Vec<_>>());
            text.push_str(&format!(" {}{spread} |", if is_wide(spread) { "~" } else { "" }));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(per_second: f64, cpu_us: f64) -> Measured {
        Measured { per_second, cpu_us, server_us: None, others: 0.0 }
    }

    fn network(way: Way) -> Line {
        Line::Network(Network { way, callers: 256 })
    }

    /// What it takes to say what binds puts and gets with 256 under way.
    fn figures() -> Figures {
        let mut figures = Figures::new(2);
        for turn in [1.0, 1.01, 0.99] {
            figures.add(Line::Disk(Disk::Grouped { writers: 256 }), measured(100_000.0 * turn, 2.0));
            figures.add(network(Way::Unary), Measured { server_us: Some(12.0), ..measured(80_000.0 * turn, 25.0) });
            figures.add(network(Way::Stream), measured(1.0, 2.0));
            figures.add(network(Way::Tcp), Measured { server_us: Some(0.25), ..measured(1.0, 0.5) });
            for (ranges, cpu_us) in [(1, 5.0), (256, 35.0)] {
                let raft = Raft { beneath: Beneath::RocksDb, ranges, under_way: 256 };
                figures.add(Line::Raft(raft), measured(1.0, cpu_us));
            }
        }
        figures
    }

    #[test]
    fn the_lesser_of_disk_and_cpu_binds() {
        let text = figures().what_binds();
        // One range: 5 + 2 + 3 us on two cores are 200,000 a second; 256 ranges: 40 us.
        for wanted in [
            "puts, 256 under way, grouped fsync: 100,000/s",
            "256 under way, 1 range, CPU: 200,000/s at 10.0 us (Raft and RocksDB 5.00, fsync 2.00, exchanges 3.00)",
            "256 under way, 1 range: fsync binds; half of it: 50,000/s",
            "256 under way, 256 ranges: CPU binds; half of it: 25,000/s",
            "gets by streams, 256 under way: at least 80,000/s",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in {text}");
        }
        assert!(!text.contains("1000 under way"), "nothing is said of what was not measured: {text}");
        assert_eq!(Figures::new(2).what_binds(), "");
    }

    #[test]
    fn what_spreads_is_marked() {
        let mut figures = figures();
        assert!(!figures.tables().contains("| ~") && !figures.what_binds().contains("/s at ~"));
        figures.add(network(Way::Tcp), Measured { server_us: Some(2.5), ..measured(1.0, 5.0) });
        assert!(figures.tables().contains("TCP, frames, 256 under way | 1.00 (1.00..1.00) | ~0.50 (0.50..5.00)"));
        assert!(figures.what_binds().contains("CPU: ~200,000/s at ~10.0 us"), "{}", figures.what_binds());
    }

    #[test]
    fn the_server_is_told_from_the_client() {
        let text = figures().tables();
        let wanted = "| 25.0 (25.0..25.0) | 12.0 (12.0..12.0) | 13.0 (13.0..13.0) |";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn figures_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("limits.json");
        figures().write(&file).expect("written");
        let read = Figures::read(&file).expect("read");
        assert_eq!((read.tables(), read.what_binds()), (figures().tables(), figures().what_binds()));
        std::fs::write(&file, r#"{ "cells": [] }"#).expect("written");
        assert!(Figures::read(&file).expect_err("refused").to_string().contains("no limits"));
    }
}
