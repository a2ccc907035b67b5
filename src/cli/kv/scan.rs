//! `kv scan`: keys in order, page by page as they come.

use std::ffi::OsString;
use std::io::Write;

use bytes::Bytes;
use flotilla_router::{Client, Consistency, Record, ScanOptions, ScanPage};
use serde_json::json;
use unicode_width::UnicodeWidthStr;

use super::{Keyspace, record_json};
use crate::cli::bytes::{KeyStyle, base64, excerpt};
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output;

/// Records asked for at once.
const PAGE_RECORDS: u32 = 1_000;
/// Characters of a value that are shown.
const VALUE_CHARACTERS: usize = 60;

#[derive(clap::Args, Debug)]
pub struct ScanArgs {
    /// Only keys that begin so
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
    /// First key
    #[arg(long, value_name = "KEY")]
    start: Option<OsString>,
    /// First key after the span
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
    /// From the end to the start
    #[arg(long)]
    reverse: bool,
    /// At most so many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// At most so many bytes of keys and values in one page
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    limit_bytes: u32,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Only count the keys
    #[arg(long, conflicts_with_all = ["keys_only", "limit"])]
    count: bool,
    /// Go on where an earlier scan with --limit ended
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["prefix", "start", "end", "reverse"])]
    token: Option<String>,
    /// Accept what any replica has applied, which may be old
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: ScanArgs, keyspace: &Keyspace<'_>) -> Result {
    let options = options(&args)?;
    let mut client = keyspace.client().await?;
    if args.stale {
        client = client.with_consistency(Consistency::Stale);
    }
    if args.count {
        return count(&client, options, keyspace.global).await;
    }
    let mut printer = Printer::new(&args, keyspace.global);
    let next = pages(&client, options, args.limit, |page| printer.page(page)).await?;
    printer.end(&next)
}

fn options(args: &ScanArgs) -> Result<ScanOptions> {
    let key = |argument: &Option<OsString>| argument.as_ref().map_or(Ok(Bytes::new()), |key| args.style.key(key));
    let mut options = match &args.prefix {
        Some(prefix) => ScanOptions::prefix(args.style.key(prefix)?),
        None => ScanOptions::span(key(&args.start)?, key(&args.end)?),
    };
    if let Some(token) = &args.token {
        options.token = super::token(token, "kv scan")?;
    }
    options.reverse = args.reverse;
    options.limit_bytes = args.limit_bytes;
    options.keys_only = args.keys_only;
    options.count_only = args.count;
    Ok(options)
}

/// Shows all pages of a span, up to `limit` records; returns the token to go on with, empty at the
/// span's end.
async fn pages(
    client: &Client,
    mut options: ScanOptions,
    limit: Option<u64>,
    mut show: impl FnMut(&ScanPage) -> Result,
) -> Result<Bytes> {
    let mut left = limit.unwrap_or(u64::MAX);
    loop {
        options.limit = left.min(PAGE_RECORDS.into()) as u32;
        let page = client.scan(options.clone()).await?;
        show(&page)?;
        left = left.saturating_sub(page.records.len() as u64);
        if page.next_token.is_empty() || left == 0 {
            return Ok(page.next_token);
        }
        options.token = page.next_token;
    }
}

async fn count(client: &Client, mut options: ScanOptions, global: &Global) -> Result {
    let mut count = 0;
    loop {
        let page = client.scan(options.clone()).await?;
        count += page.count;
        if page.next_token.is_empty() {
            break;
        }
        options.token = page.next_token;
    }
    if global.json() { output::json(&json!({ "count": count })) } else { output::line(count) }
}

/// Prints records as they come: whole scans need not fit into memory.
struct Printer {
    json: bool,
    keys_only: bool,
    style: KeyStyle,
    printed: u64,
    /// Columns' widths, from the first page.
    widths: Option<(usize, usize)>,
}

impl Printer {
    fn new(args: &ScanArgs, global: &Global) -> Self {
        Self { json: global.json(), keys_only: args.keys_only, style: args.style, printed: 0, widths: None }
    }

    fn page(&mut self, page: &ScanPage) -> Result {
        let mut text = String::new();
        for record in &page.records {
            if self.json {
                text.push_str(if self.printed == 0 { "{\"records\":[" } else { "," });
                text.push_str(&self.json_record(record));
            } else {
                self.row(record, &page.records, &mut text);
            }
            self.printed += 1;
        }
        let mut out = output::out();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    fn json_record(&self, record: &Record) -> String {
        if self.keys_only {
            return json!({ "key": base64(&record.key), "version": record.version }).to_string();
        }
        record_json(record).to_string()
    }

    fn row(&mut self, record: &Record, page: &[Record], text: &mut String) {
        let style = self.style;
        let (key_width, version_width) = *self.widths.get_or_insert_with(|| {
            let keys = page.iter().map(|record| style.show(&record.key).width());
            let versions = page.iter().map(|record| record.version.to_string().len());
            (keys.max().unwrap_or(0).clamp(3, 80), versions.max().unwrap_or(0).max(7))
        });
        let value_head = if self.keys_only { "" } else { "  VALUE" };
        if self.printed == 0 {
            text.push_str(&format!("{:key_width$}  {:>version_width$}{value_head}\n", "KEY", "VERSION"));
        }
        let key = style.show(&record.key);
        let padding = " ".repeat(key_width.saturating_sub(key.width()));
        text.push_str(&format!("{key}{padding}  {:>version_width$}", record.version));
        if !self.keys_only {
            text.push_str(&format!("  {}", excerpt(&record.value, VALUE_CHARACTERS)));
        }
        text.push('\n');
    }

    fn end(self, next: &Bytes) -> Result {
        if self.json {
            let start = if self.printed == 0 { "{\"records\":[" } else { "" };
            let rest = json!({ "count": self.printed, "next_token": base64(next) }).to_string();
            return output::line(format_args!("{start}],{}", &rest[1..]));
        }
        if !next.is_empty() {
            // On stderr: the records on stdout stay records.
            eprintln!("there is more: --token {}", base64(next));
        }
        Ok(())
    }
}
