//! `keyspace map`: a keyspace's ranges from the first key to the last, by size and heat, in characters that any terminal
//! has.
//!
//! Few ranges have a line each, with bars. Many are cells: one character for what a range, or a group of
//! neighbours, holds, and below it one for what it is asked for. Both are in proportion to the largest on the map.

use flotilla_proto::v1;
use serde_json::{Value, json};

use crate::cli::bytes::KeyStyle;
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, count, plural, size};
use crate::cli::range::describe::{load_json, start, status_json};
use crate::cli::range::of_keyspace;

/// From nothing to the largest.
const LEVELS: &[u8] = b" .:-=+*#%@";
/// Up to so many ranges have a line each.
const LINES_MAX: usize = 40;
/// Up to so many rows of cells, each of two lines.
const ROWS_MAX: usize = 12;
const WIDTH_MIN: usize = 40;
const WIDTH_DEFAULT: usize = 100;
const WIDTH_MAX: usize = 400;
/// Characters of a key on the map.
const KEY_CHARS: usize = 16;

#[derive(clap::Args, Debug)]
pub struct MapArgs {
    /// Its name; `system` is the cluster's own
    name: String,
    /// Characters in a line [default: the terminal's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(WIDTH_MIN as i64..=WIDTH_MAX as i64))]
    width: Option<u32>,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: &MapArgs, global: &Global) -> Result {
    let client = global.client().await?;
    let (ranges, _) = of_keyspace(&client, &args.name).await?;
    if global.json() {
        let one = |status: &v1::RangeStatus| {
            let mut value = status_json(status);
            value["load"] = load_json(status.load.as_ref());
            value
        };
        return output::json(&json!({
            "keyspace": args.name, "ranges": ranges.iter().map(one).collect::<Vec<Value>>(),
        }));
    }
    let width = args.width.map_or_else(terminal_width, |width| width as usize);
    output::line(draw(&args.name, &ranges, width, args.style))
}

/// The terminal's, as far as it tells.
fn terminal_width() -> usize {
    let told = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    let width = told.filter(|columns| *columns > 0).or_else(said).unwrap_or(WIDTH_DEFAULT);
    width.clamp(WIDTH_MIN, WIDTH_MAX)
}

/// One range, or a group of neighbours.
#[derive(Clone, Copy, Debug, Default)]
struct Cell<'a> {
    start: &'a [u8],
    bytes: u64,
    requests: u64,
}

fn requests(status: &v1::RangeStatus) -> u64 {
    status.load.map_or(0, |load| load.reads_per_s.saturating_add(load.writes_per_s))
}

fn cells(ranges: &[v1::RangeStatus], group: usize) -> Vec<Cell<'_>> {
    ranges.chunks(group.max(1)).map(cell).collect()
}

fn cell(ranges: &[v1::RangeStatus]) -> Cell<'_> {
    let first = ranges.first().and_then(|status| status.descriptor.as_ref());
    ranges.iter().fold(Cell { start: first.map_or(&[], |range| &range.start), ..Cell::default() }, |cell, status| {
        Cell { bytes: cell.bytes + status.data_bytes, requests: cell.requests + requests(status), ..cell }
    })
}

/// The map, without a line feed at its end.
fn draw(name: &str, ranges: &[v1::RangeStatus], width: usize, style: KeyStyle) -> String {
    let (bytes, hot) = ranges.iter().fold((0, 0), |(bytes, hot), one| (bytes + one.data_bytes, hot + requests(one)));
    let head = format!(
        "keyspace \"{name}\": {}, {}, {} requests/s",
        plural(ranges.len() as u64, "range"),
        size(bytes),
        count(hot)
    );
    if ranges.is_empty() {
        return head;
    }
    let body = if ranges.len() <= LINES_MAX { lines(ranges, width, style) } else { grid(ranges, width, style) };
    format!("{head}\n{body}")
}

/// A line for each range, with bars.
fn lines(ranges: &[v1::RangeStatus], width: usize, style: KeyStyle) -> String {
    let cells = cells(ranges, 1);
    let (bytes_max, requests_max) = largest(&cells);
    // Range, start, and two figures with their spaces; what is left is for two bars.
    let bar = (width.saturating_sub(8 + KEY_CHARS + 2 + 12 + 12)) / 2;
    let mut text = format!("{:>6}  {:<KEY_CHARS$}{:>11} {:<bar$} {:>9}", "RANGE", "START", "SIZE", "", "REQ/S");
    for (status, cell) in ranges.iter().zip(&cells) {
        let id = status.descriptor.as_ref().map_or(0, |range| range.range_id);
        let line = format!(
            "{id:>6}  {:<KEY_CHARS$}{:>11} {:<bar$} {:>9} {}",
            key(cell.start, style),
            size(cell.bytes),
            "#".repeat(share(cell.bytes, bytes_max, bar)),
            count(cell.requests),
            "*".repeat(share(cell.requests, requests_max, bar)),
        );
        text.push('\n');
        text.push_str(line.trim_end());
    }
    text
}

/// Rows of cells: what they hold, and below it what they are asked for.
fn grid(ranges: &[v1::RangeStatus], width: usize, style: KeyStyle) -> String {
    let across = width.saturating_sub(KEY_CHARS + 9).max(1);
    let group = ranges.len().div_ceil(across * ROWS_MAX);
    let cells = cells(ranges, group);
    let (bytes_max, requests_max) = largest(&cells);
    let each = if group == 1 { "a range".into() } else { plural(group as u64, "range") };
    let mut text = format!(
        "a cell is {each}; \"@\" is the most: {} (size), {} requests/s (heat)",
        size(bytes_max),
        count(requests_max)
    );
    for row in cells.chunks(across) {
        let strip = |measure: fn(&Cell<'_>) -> u64, max: u64| -> String {
            row.iter().map(|cell| level(measure(cell), max)).collect()
        };
        let from = key(row[0].start, style);
        let (held, heat) = (strip(|cell| cell.bytes, bytes_max), strip(|cell| cell.requests, requests_max));
        text.push_str(&format!("\n{from:<KEY_CHARS$} size |{held}|\n{:<KEY_CHARS$} heat |{heat}|", ""));
    }
    text
}

fn largest(cells: &[Cell<'_>]) -> (u64, u64) {
    let most = |measure: fn(&Cell<'_>) -> u64| cells.iter().map(measure).max().unwrap_or(0);
    (most(|cell| cell.bytes), most(|cell| cell.requests))
}

/// How much of `full` a bar takes; what is there at all is seen.
fn share(part: u64, max: u64, full: usize) -> usize {
    if part == 0 || max == 0 {
        return 0;
    }
    ((part as f64 / max as f64 * full as f64).round() as usize).clamp(1, full.max(1))
}

fn level(part: u64, max: u64) -> char {
    char::from(LEVELS[share(part, max, LEVELS.len() - 1).min(LEVELS.len() - 1)])
}

/// A key, shortened.
fn key(bytes: &[u8], style: KeyStyle) -> String {
    let text = start(bytes, style);
    if text.chars().count() < KEY_CHARS {
        return text;
    }
    let short: String = text.chars().take(KEY_CHARS - 3).collect();
    format!("{short}..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(number: u64, bytes: impl Fn(u64) -> u64, reads: impl Fn(u64) -> u64) -> Vec<v1::RangeStatus> {
        let range = |at: u64| v1::RangeStatus {
            descriptor: Some(v1::RangeDescriptor {
                range_id: at + 2,
                keyspace_id: 1,
                start: if at == 0 { Default::default() } else { format!("k{at:05}").into() },
                ..Default::default()
            }),
            data_bytes: bytes(at),
            load: (reads(at) > 0).then(|| v1::RangeLoad { reads_per_s: reads(at), ..Default::default() }),
            ..Default::default()
        };
        (0..number).map(range).collect()
    }

    #[test]
    fn few_ranges_have_a_line_each() {
        let map = draw("x", &ranges(3, |at| at << 20, |at| 100 * (2 - at)), 70, KeyStyle::default());
        let golden = "\
keyspace \"x\": 3 ranges, 3.0 MiB, 300 requests/s
 RANGE  START                  SIZE                REQ/S
     2  (first)                 0 B                  200 **********
     3  k00001              1.0 MiB #####            100 *****
     4  k00002              2.0 MiB ##########         0";
        assert_eq!(map, golden);
    }

    #[test]
    fn many_ranges_are_cells_and_no_line_is_too_long() {
        for (number, width) in [(41, 40), (500, 80), (10_000, 100), (10_000, 40), (100_000, 400)] {
            let map = draw("x", &ranges(number, |at| at % 7 * 1_000, |at| at % 90), width, KeyStyle::default());
            assert!(map.lines().count() <= 2 + 2 * ROWS_MAX, "{number} ranges: {} lines", map.lines().count());
            let rows: Vec<&str> = map.lines().skip(2).collect();
            assert!(rows.iter().all(|line| line.chars().count() <= width), "{map}");
            assert!(map.is_ascii());
        }
    }

    #[test]
    fn a_hot_range_is_seen_among_cold_ones() {
        let map = draw("x", &ranges(64, |_| 5, |at| u64::from(at == 63) * 900), 100, KeyStyle::default());
        let golden = format!(
            "keyspace \"x\": 64 ranges, 320 B, 900 requests/s\n\
             a cell is a range; \"@\" is the most: 5 B (size), 900 requests/s (heat)\n\
             (first)          size |{}|\n                 heat |{}@|",
            "@".repeat(64),
            " ".repeat(63)
        );
        assert_eq!(map, golden);
    }

    #[test]
    fn nothing_is_drawn_of_nothing_and_long_keys_are_cut() {
        assert_eq!(draw("x", &[], 80, KeyStyle::default()), "keyspace \"x\": 0 ranges, 0 B, 0 requests/s");
        assert_eq!(key(b"0123456789abcdef", KeyStyle::default()), "0123456789abc..");
        assert_eq!(level(1, 1_000_000), '.', "what is there is seen");
        assert_eq!(level(0, 0), ' ');
    }
}
