//! What commands print: aligned tables for people, JSON documents for programs.
//!
//! A command builds both from the same figures. JSON is one document in one line; bytes in it are
//! base64. Tables are aligned text without lines or colours, so that `awk` can read them too.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::failure::Result;

/// For whom output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs; bytes as base64
    Json,
}

/// Where commands write their results.
pub fn out() -> impl Write {
    #[cfg(not(test))]
    return io::stdout().lock();
    #[cfg(test)]
    return captured::Captured;
}

/// What commands wrote, for tests: by thread, as each test has one.
#[cfg(test)]
pub mod captured {
    use std::cell::RefCell;

    thread_local! {
        static WRITTEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    /// Keeps what is written.
    pub struct Captured;

    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            WRITTEN.with_borrow_mut(|written| written.extend_from_slice(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What was written since the last call.
    pub fn take() -> Vec<u8> {
        WRITTEN.take()
    }
}

/// Prints a JSON document.
pub fn json(value: &Value) -> Result {
    let mut out = out();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// Prints text and a line feed.
pub fn line(text: impl fmt::Display) -> Result {
    let mut out = out();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Rows under heads. A column whose head begins with `>` is aligned to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, of as many cells as there are heads.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    /// Without a line feed at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads: Vec<String> =
            self.heads.iter().map(|head| head.trim_start_matches('>').to_ascii_uppercase()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&heads).chain(&self.rows).collect();
        let columns = 0..heads.len();
        let widths: Vec<usize> =
            columns.map(|at| lines.iter().map(|cells| cells[at].width()).max().unwrap_or(0)).collect();
        for (number, cells) in lines.iter().enumerate() {
            let mut text = String::new();
            for (at, cell) in cells.iter().enumerate() {
                let padding = " ".repeat(widths[at] - cell.width());
                let (before, after) =
                    if self.heads[at].starts_with('>') { (&padding[..], "") } else { ("", &padding[..]) };
                text.push_str(&format!("{}{before}{cell}{after}", if at > 0 { "  " } else { "" }));
            }
            write!(f, "{}{}", if number > 0 { "\n" } else { "" }, text.trim_end())?;
        }
        Ok(())
    }
}

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// A time for people.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time {
        _ if time < Duration::from_millis(1) => format!("{} µs", time.as_micros()),
        _ if time < Duration::from_secs(1) => format!("{:.1} ms", seconds * 1e3),
        _ if time < Duration::from_secs(120) => format!("{seconds:.2} s"),
        _ if time < Duration::from_secs(2 * 3600) => format!("{} min", time.as_secs() / 60),
        _ if time < Duration::from_secs(48 * 3600) => format!("{} h", time.as_secs() / 3600),
        _ => format!("{} days", time.as_secs() / 86_400),
    }
}

/// A number with a comma between thousands.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 file`, `2 files`.
pub fn plural(number: u64, one: &str) -> String {
    format!("{} {one}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A progress bar on stderr; nothing where that is no terminal. Length 0: the end is not known.
pub fn progress(length: u64, what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target((length > 0).then_some(length), ProgressDrawTarget::stderr());
    let shape = if length > 0 {
        "{prefix} [{bar:30}] {human_pos}/{human_len} {eta} {msg}"
    } else {
        "{prefix} {human_pos} {elapsed} {msg}"
    };
    // A style that does not parse would be a bug; the default one will do then.
    if let Ok(style) = ProgressStyle::with_template(shape) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_what_the_eye_sees() {
        let mut table = Table::new(&["key", ">bytes", "state"]);
        table.row(vec!["größe".into(), "7".into(), "ok".into()]);
        table.row(vec!["日本".into(), "12345".into(), String::new()]);
        assert_eq!(table.to_string(), "KEY    BYTES  STATE\ngröße      7  ok\n日本   12345");
    }

    #[test]
    fn an_empty_table_is_its_head() {
        assert_eq!(Table::new(&["a", "b"]).to_string(), "A  B");
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
        assert_eq!(duration(Duration::from_micros(250)), "250 µs");
        assert_eq!(duration(Duration::from_millis(12)), "12.0 ms");
        assert_eq!(duration(Duration::from_millis(1500)), "1.50 s");
        assert_eq!(duration(Duration::from_secs(600)), "10 min");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "file"), "1 file");
        assert_eq!(plural(2_000, "file"), "2,000 files");
    }
}
