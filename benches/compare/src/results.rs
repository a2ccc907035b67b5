//! What many runs of many cells came to: medians, spreads, ratios; kept as JSON, printed as tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use flotilla_benches::cluster::Result;
use flotilla_benches::stats::{Spread, Table};
use serde::{Deserialize, Serialize};

use crate::cell::Measured;
use crate::load::workload::Workload;
use crate::store::System;

/// A spread above this share of the median is marked: the figure is worth little.
const SPREAD_MAX: f64 = 0.15;

/// A figure that is smaller is as good as none.
const LEAST: f64 = 0.01;

/// Which cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Which {
    pub system: System,
    pub workload: Workload,
    pub clients: usize,
    pub value_bytes: usize,
    pub keys: u64,
    pub ranges: u32,
    pub nodes: usize,
}

impl Which {
    /// What two systems must have in common to be compared.
    fn load(&self) -> (Workload, usize, usize, u64, usize) {
        (self.workload, self.clients, self.value_bytes, self.keys, self.nodes)
    }

    /// Only ours have.
    pub fn has_ranges(&self) -> bool {
        self.system.is_flotilla()
    }

    fn load_in_words(&self) -> String {
        let (workload, clients, value_bytes) = (self.workload.name(), self.clients, self.value_bytes);
        let ranges = if self.has_ranges() { format!(", {} ranges", self.ranges) } else { String::new() };
        format!("{workload}, {clients} clients, {value_bytes} B, {} nodes{ranges}", self.nodes)
    }
}

/// A cell, and what each run of it came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    pub which: Which,
    pub runs: Vec<Measured>,
}

impl Cell {
    /// Of one figure.
    pub fn spread(&self, figure: impl Fn(&Measured) -> f64) -> Spread {
        Spread::of(&self.runs.iter().map(figure).collect::<Vec<_>>())
    }
}

/// All cells of a comparison, in the order in which they were measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub cells: Vec<Cell>,
}

impl Results {
    pub fn add(&mut self, which: Which, measured: Measured) {
        match self.cells.iter_mut().find(|cell| cell.which == which) {
            Some(cell) => cell.runs.push(measured),
            None => self.cells.push(Cell { which, runs: vec![measured] }),
        }
    }

    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(serde_json::from_slice(&text).map_err(|error| format!("{}: no results: {error}", file.display()))?)
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        Ok(std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?)
    }

    /// Each cell with its medians and spreads.
    pub fn table(&self) -> String {
        const COLUMNS: &[&str] = &[
            "operations/s",
            "server CPU µs/op",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "fsyncs/op",
            "disk bytes/op",
            "packets/op",
            "calls/op",
            "waits/op",
            "resident MB",
        ];
        let mut table = Table::new("All servers of a system together; medians (smallest..largest)", COLUMNS);
        for cell in &self.cells {
            for run in &cell.runs {
                let values = [
                    run.per_second,
                    run.server_us,
                    run.p50_us,
                    run.p99_us,
                    run.p999_us,
                    run.syncs.unwrap_or(f64::NAN),
                    run.disk_bytes,
                    run.packets,
                    run.calls,
                    run.waits,
                    run.resident_bytes / 1e6,
                ];
                table.add(format!("{}, {}", cell.which.load_in_words(), cell.which.system.name()), &values);
            }
        }
        table.to_string()
    }

    /// Each system against the one that is compared with: ratios of medians. `~`: one of the two figures spreads by more
    /// than 15%.
    pub fn ratios(&self, against: System) -> String {
        let mut text = format!(
            "\nRatios to {}\n\n| | throughput | server CPU | p50 | p99 | p99.9 | disk bytes | memory |\n|---|{}\n",
            against.name(),
            "---:|".repeat(7)
        );
        let base: BTreeMap<String, &Cell> = self
            .cells
            .iter()
            .filter(|cell| cell.which.system == against)
            .map(|cell| (format!("{:?}", cell.which.load()), cell))
            .collect();
        for cell in self.cells.iter().filter(|cell| cell.which.system != against) {
            let Some(base) = base.get(&format!("{:?}", cell.which.load())) else { continue };
            let figures: [fn(&Measured) -> f64; 7] = [
                |of| of.per_second,
                |of| of.server_us,
                |of| of.p50_us,
                |of| of.p99_us,
                |of| of.p999_us,
                |of| of.disk_bytes,
                |of| of.resident_bytes,
            ];
            text.push_str(&format!("| {}, {} |", cell.which.load_in_words(), cell.which.system.name()));
            for figure in figures {
                let (own, other) = (cell.spread(figure), base.spread(figure));
                let mark = if is_wide(own) || is_wide(other) { "~" } else { "" };
                // Of next to nothing there is no ratio: gets write no byte.
                text.push_str(&match other.median < LEAST {
                    true => " - |".into(),
                    false => format!(" {mark}{:.2} |", own.median / other.median),
                });
            }
            text.push('\n');
        }
        text
    }

    /// What is to be known of the systems: what one promises less than the others, and what it was not asked for.
    pub fn notes(&self) -> String {
        let systems: BTreeSet<System> = self.cells.iter().map(|cell| cell.which.system).collect();
        let workloads: BTreeSet<Workload> = self.cells.iter().map(|cell| cell.which.workload).collect();
        let mut text = String::new();
        for system in systems {
            let lacks = |of: &Workload| Some(format!("no {}: {}", of.name(), system.lacks(*of)?));
            let notes = system.caveat().map(str::to_owned).into_iter().chain(workloads.iter().filter_map(lacks));
            notes.for_each(|note| text.push_str(&format!("\n{}: {note}.\n", system.name())));
        }
        text
    }
}

/// Whether a figure is to be marked.
pub fn is_wide(of: Spread) -> bool {
    of.max - of.median > SPREAD_MAX * of.median || of.median - of.min > SPREAD_MAX * of.median
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn measured(per_second: f64) -> Measured {
        Measured {
            per_second,
            p50_us: 1.0,
            p99_us: 2.0,
            p999_us: 3.0,
            server_us: 10.0,
            syncs: None,
            disk_bytes: 100.0,
            packets: 1.0,
            calls: 1.0,
            waits: 1.0,
            resident_bytes: 1e6,
            conflicts: 0.0,
            others: 0.0,
            load_cores: 0.5,
        }
    }

    pub fn which(system: System) -> Which {
        Which { system, workload: Workload::Put, clients: 16, value_bytes: 256, keys: 10, ranges: 16, nodes: 3 }
    }

    #[test]
    fn ratios_are_of_medians_and_wide_ones_are_marked() {
        let mut results = Results::default();
        for rate in [100.0, 101.0, 99.0] {
            results.add(which(System::Etcd), measured(rate));
            results.add(which(System::Stream), measured(3.0 * rate));
            results.add(which(System::Unary), measured(rate * rate / 50.0));
        }
        results.add(which(System::Unary), measured(1_000.0));
        let text = results.ratios(System::Etcd);
        assert!(text.contains("Flotilla, streams | 3.00 | 1.00 |"), "{text}");
        assert!(text.contains("Flotilla, unary | ~2.0"), "{text}");
        assert!(
            results.table().contains("put, 16 clients, 256 B, 3 nodes, etcd, leader | 100 (99.0..101)"),
            "{}",
            results.table()
        );
    }

    #[test]
    fn what_is_to_be_known_of_a_system_stands_below_the_figures() {
        let mut results = Results::default();
        results.add(Which { workload: Workload::YcsbE, ..which(System::Etcd) }, measured(1.0));
        assert_eq!(results.notes(), "");
        results.add(which(System::Zookeeper), measured(1.0));
        let notes = results.notes();
        assert!(notes.contains("ZooKeeper, leader, gets not linearizable: gets are NOT linearizable"), "{notes}");
        assert!(
            notes.contains("ZooKeeper, leader, gets not linearizable: no YCSB E: ZooKeeper has no scan"),
            "{notes}"
        );
    }

    #[test]
    fn results_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("results.json");
        let mut results = Results::default();
        results.add(which(System::Etcd), measured(1.0));
        results.write(&file).expect("written");
        assert_eq!(Results::read(&file).expect("read").table(), results.table());
        std::fs::write(&file, "nonsense").expect("written");
        assert!(Results::read(&file).expect_err("refused").to_string().contains("no results"));
    }
}
