//! Medians with their spread, latencies, and the tables that benches print (Markdown, so that they
//! can be pasted into docs/performance.md as they are).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Median, smallest and largest of some repetitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number, the lower of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1).expect("a bench runs at least one repetition");
        Self { median: sorted[last / 2], min: sorted[0], max: sorted[last] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({}..{})", short(self.median), short(self.min), short(self.max))
    }
}

/// Three significant digits or all digits before the point, with thousands apart.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// What takes longer counts as this long.
const LONGEST: Duration = Duration::from_secs(60);

/// Latencies of one repetition.
#[derive(Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(
            Histogram::new_with_max(LONGEST.as_nanos() as u64, 3).expect("bounds and precision are constants in order"),
        )
    }
}

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The longest, in microseconds.
    pub fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    /// A percentile in microseconds.
    pub fn percentile_us(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1000.0
    }
}

/// Samples by variant and column, in the order in which they first came.
#[derive(Debug)]
pub struct Table {
    title: String,
    columns: Vec<&'static str>,
    order: Vec<String>,
    samples: BTreeMap<String, Vec<Vec<f64>>>,
}

impl Table {
    /// A table whose first column names the variant.
    pub fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), order: Vec::new(), samples: BTreeMap::new() }
    }

    /// Adds a repetition of a variant: one value for each column.
    pub fn add(&mut self, variant: impl Into<String>, values: &[f64]) {
        assert_eq!(values.len(), self.columns.len(), "a value for each column");
        let variant = variant.into();
        let columns = self.samples.entry(variant.clone()).or_insert_with(|| {
            self.order.push(variant);
            vec![Vec::new(); values.len()]
        });
        for (column, value) in columns.iter_mut().zip(values) {
            column.push(*value);
        }
    }

    /// Prints it to standard output.
    pub fn print(&self) {
        print!("{self}");
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "\n{}\n\n| | {} |", self.title, self.columns.join(" | "))?;
        writeln!(out, "|---|{}", "---:|".repeat(self.columns.len()))?;
        for variant in &self.order {
            write!(out, "| {variant} |")?;
            for column in &self.samples[variant] {
                write!(out, " {} |", Spread::of(column))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_medians_with_their_spread() {
        let mut table = Table::new("T", &["rate"]);
        for rate in [1234.0, 5.0, 1_000_000.4] {
            table.add("one", &[rate]);
        }
        assert_eq!(table.to_string(), "\nT\n\n| | rate |\n|---|---:|\n| one | 1,234 (5.00..1,000,000) |\n");
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::from_micros(150));
        assert_eq!(latencies.count(), 1);
        assert!((latencies.percentile_us(99.0) - 150.0).abs() < 1.0);
    }
}
