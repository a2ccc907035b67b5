//! `kv import`: a file tree, a table (CSV) or lines of JSON into keys.
//!
//! ```text
//! DIR ──────────▶ files.rs ─────────────────────────────▶ a put for each file
//! FILE, stdin ──▶ source.rs: pieces.rs ▸ row.rs
//!                    └▶ rows.rs ────────────────────────▶ batches of puts
//!                          └▶ state.rs                    how far it got: --resume
//! ```
//! A put whose outcome is unknown is sent again: it writes the same content to the same key, so that
//! once or twice is the same.

mod files;
#[cfg(test)]
mod hostile;
mod pieces;
mod row;
mod rows;
mod source;
mod state;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Keyspace, input};
use crate::cli::bytes::KeyStyle;
use crate::cli::failure::{Failure, Result};
pub use files::{Summary, import, key_and_content};

/// What a source holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// By what it is: a directory, or a name that ends in .csv, .tsv, .jsonl or .ndjson
    #[default]
    Auto,
    /// A file tree: a key for each file, its path below SOURCE
    Files,
    /// Rows of fields; the first row names the columns, unless --columns does
    Csv,
    /// A JSON object in each line
    Jsonl,
}

#[derive(clap::Args, Debug)]
pub struct ImportArgs {
    /// A directory, or a file of rows; `-` is stdin
    source: PathBuf,
    /// What the source holds
    #[arg(long, value_enum, default_value_t, hide_possible_values = false)]
    format: Format,
    /// Put this before each path or key
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// The columns' names, for CSV without a header
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    columns: Vec<String>,
    /// The column or field that is the key
    #[arg(long, value_name = "NAME", default_value = "key")]
    key_column: String,
    /// The column or field that is the value
    #[arg(long, value_name = "NAME", default_value = "value")]
    value_column: String,
    /// Between the fields of CSV: one character, or `\t` [default: a comma; of .tsv a tab]
    #[arg(long, value_name = "CHARACTER", value_parser = parse_delimiter)]
    delimiter: Option<u8>,
    /// Keys and values of rows are base64
    #[arg(long, value_enum, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "both")]
    base64: Option<row::Base64>,
    /// Keep beside SOURCE how far the import got, and go on where an earlier one with --resume ended
    #[arg(long)]
    resume: bool,
    /// Files, or batches of rows, under way at once [default: 64 files, 16 batches]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Option<u16>,
    /// Exit with 0 although files or rows were left out (too large, malformed, ...); they are still listed
    #[arg(long)]
    allow_refused: bool,
    #[command(flatten)]
    style: KeyStyle,
}

pub async fn run(args: ImportArgs, keyspace: &Keyspace<'_>) -> Result {
    let prefix = args.prefix.as_ref().map_or(Ok(Bytes::new()), |prefix| args.style.key(prefix))?;
    match args.format()? {
        Format::Jsonl | Format::Csv => rows::run(&args, prefix, keyspace).await,
        Format::Auto | Format::Files => files::run(&args, &prefix, keyspace).await,
    }
}

impl ImportArgs {
    /// What the source holds: never [`Format::Auto`].
    fn format(&self) -> Result<Format> {
        let format = if self.format == Format::Auto { guess(&self.source)? } else { self.format };
        let no = |given: bool, option: &str, why: &str, hint: &str| match given {
            true => Err(Failure::usage(format!("{option} does not go with {why}")).hint(hint)),
            false => Ok(()),
        };
        if format == Format::Files {
            let hint = "a tree may be imported again as it is: the same content is written to the same keys";
            no(self.resume, "--resume", "a file tree", hint)?;
            no(self.base64.is_some(), "--base64", "a file tree", "files are stored byte for byte")?;
        }
        if format != Format::Csv {
            let hint = "name the two fields by --key-column and --value-column";
            no(!self.columns.is_empty(), "--columns", "anything but CSV", hint)?;
            no(self.delimiter.is_some(), "--delimiter", "anything but CSV", "--format csv says that it is CSV")?;
        }
        let hint = "write it to a file first: its beginning is read again to see that it is the same";
        no(self.resume && input::is_stdin(&self.source), "--resume", "stdin", hint)?;
        Ok(format)
    }

    /// Between fields.
    fn delimiter(&self) -> u8 {
        let tabs = self.source.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
        self.delimiter.unwrap_or(if tabs { b'\t' } else { b',' })
    }
}

fn guess(source: &Path) -> Result<Format> {
    let unclear =
        |what: String| Failure::usage(what).hint("say it with --format csv, --format jsonl or --format files");
    if input::is_stdin(source) {
        return Err(unclear("what stdin holds cannot be guessed".into()));
    }
    let kind = std::fs::metadata(source).map_err(|error| Failure::file("read", source, &error))?;
    if kind.is_dir() {
        return Ok(Format::Files);
    }
    let extension = source.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match &extension.to_ascii_lowercase()[..] {
        "csv" | "tsv" => Ok(Format::Csv),
        "jsonl" | "ndjson" => Ok(Format::Jsonl),
        _ => Err(unclear(format!("what {} holds cannot be told from its name", source.display()))),
    }
}

fn parse_delimiter(text: &str) -> std::result::Result<u8, String> {
    match text.as_bytes() {
        b"\\t" | b"tab" => Ok(b'\t'),
        [b'"' | b'\n' | b'\r'] => Err("a quote or the end of a line cannot stand between fields".into()),
        [byte] if byte.is_ascii() => Ok(*byte),
        _ => Err("it is one ASCII character, or \\t".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ImportArgs,
    }

    fn format(words: &[&str]) -> Result<Format> {
        Line::try_parse_from([&["import"], words].concat()).expect("valid").args.format()
    }

    #[test]
    fn the_format_is_told_by_what_the_source_is() {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").expect("write");
            path.display().to_string()
        };
        assert_eq!(format(&[&folder.path().display().to_string()]), Ok(Format::Files));
        for (name, expected) in
            [("a.csv", Format::Csv), ("a.TSV", Format::Csv), ("a.jsonl", Format::Jsonl), ("a.ndjson", Format::Jsonl)]
        {
            assert_eq!(format(&[&at(name)]), Ok(expected));
        }
        assert_eq!(format(&[&at("a.txt")]).expect_err("unclear").code(), 2);
        assert_eq!(format(&["-"]).expect_err("unclear").code(), 2);
        assert_eq!(format(&["-", "--format", "csv"]), Ok(Format::Csv));
        assert_eq!(format(&["/nowhere.csv"]).expect_err("none").code(), 1);
    }

    #[test]
    fn options_that_say_nothing_are_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let folder = folder.path().display().to_string();
        for words in [
            &["-", "--format", "csv", "--resume"][..],
            &[&folder, "--resume"],
            &[&folder, "--base64"],
            &["-", "--format", "jsonl", "--columns", "a,b"],
            &["-", "--format", "jsonl", "--delimiter", ";"],
        ] {
            assert_eq!(format(words).expect_err("refused").code(), 2, "{words:?}");
        }
    }

    #[test]
    fn delimiters() {
        assert_eq!(parse_delimiter(";"), Ok(b';'));
        assert_eq!(parse_delimiter("\\t"), Ok(b'\t'));
        for bad in ["", "\"", "ab", "ö", "\n"] {
            assert!(parse_delimiter(bad).is_err(), "{bad:?}");
        }
        let args = Line::try_parse_from(["import", "x.tsv", "--base64"]).expect("valid").args;
        assert_eq!((args.delimiter(), args.base64), (b'\t', Some(row::Base64::Both)));
        let args = Line::try_parse_from(["import", "--base64=keys", "x.csv"]).expect("valid").args;
        assert_eq!((args.delimiter(), args.base64), (b',', Some(row::Base64::Keys)));
    }
}
