//! The source of an import of rows: opened, its header read, and then read by a thread of its own.
//!
//! The thread is there for stdin, which may be silent for long while batches are under way.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::pieces::{Piece, Pieces, Place, Rule};
use super::row::{self, Pair, RowReader, Shape};
use super::state::{State, StateFile};
use super::{Format, ImportArgs};
use crate::cli::failure::{Failure, Result};
use crate::cli::kv::input;

/// Rows between the thread that reads and the batches.
const ROWS_AHEAD: usize = 64;

/// What the thread has read.
pub enum Item {
    /// A row.
    Row { line: u64, pair: Pair, end: Place },
    /// A record that is none.
    Bad { line: u64, why: String, end: Place },
    /// The source cannot be read any further.
    Broken(Failure),
}

/// A source of rows, behind its header.
pub struct Source {
    name: String,
    pieces: Pieces<Box<dyn BufRead + Send>>,
    reader: RowReader,
    /// Its bytes, as far as that is known; otherwise 0.
    pub length: u64,
}

impl Source {
    /// Opens it, and reads the header where there is one.
    pub fn open(args: &ImportArgs, prefix: Bytes) -> Result<Self> {
        let csv = args.format()? == Format::Csv;
        let rule = if csv { Rule::Csv { delimiter: args.delimiter() } } else { Rule::Lines };
        let name = args.source.display().to_string();
        let (bytes, length) = open(args)?;
        let mut pieces = Pieces::new(bytes, rule);
        let shape = shape(args, csv, &mut pieces, &name)?;
        Ok(Self { name, pieces, reader: RowReader { shape, base64: args.base64, prefix }, length })
    }

    /// Everything that decides what a row becomes.
    pub fn settings(&self, keyspace: &str) -> String {
        let RowReader { shape, base64, prefix } = &self.reader;
        format!("keyspace {keyspace:?}, prefix {prefix:?}, {shape:?}, base64 {base64:?}")
    }

    /// Where it stands.
    pub fn place(&self) -> Place {
        self.pieces.place()
    }

    /// Goes on where an earlier import ended, if there was one.
    pub fn resume(&mut self, args: &ImportArgs, file: &StateFile, fresh: State) -> Result<State> {
        let Some(earlier) = file.load(&fresh)? else { return Ok(fresh) };
        let same = self.pieces.skip_to(earlier.place()).map_err(|error| Failure::file("read", &args.source, &error))?;
        if same { Ok(earlier) } else { Err(file.changed(&args.source, &earlier)) }
    }

    /// Starts the thread. The channel ends with the source.
    pub fn rows(self) -> Result<mpsc::Receiver<Item>> {
        let (send, receive) = mpsc::channel(ROWS_AHEAD);
        let spawned = std::thread::Builder::new().name("flotilla-rows".into()).spawn(move || self.read(&send));
        spawned.map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        Ok(receive)
    }

    /// Until the source ends, or nobody takes rows any more.
    fn read(mut self, send: &mpsc::Sender<Item>) {
        loop {
            let (line, row) = match self.pieces.next_piece() {
                Ok(Some(Piece { line, problem: Some(why), .. })) => (line, Err(why.to_owned())),
                Ok(Some(Piece { line, bytes, problem: None })) => (line, self.reader.read(bytes)),
                Ok(None) => return,
                Err(error) => {
                    let failure = Failure::failed(format!("cannot read {}: {error}", self.name));
                    // Whether anyone still listens makes no difference: it is over.
                    let _ = send.blocking_send(Item::Broken(failure));
                    return;
                }
            };
            let end = self.pieces.place();
            let item = match row {
                Ok(Some(pair)) => Item::Row { line, pair, end },
                Ok(None) => continue,
                Err(why) => Item::Bad { line, why, end },
            };
            if send.blocking_send(item).is_err() {
                return;
            }
        }
    }
}

/// The source, and its length as far as it has one.
fn open(args: &ImportArgs) -> Result<(Box<dyn BufRead + Send>, u64)> {
    if input::is_stdin(&args.source) {
        return Ok((Box::new(BufReader::new(io::stdin())), 0));
    }
    let failed = |error: io::Error| Failure::file("read", &args.source, &error);
    let file = File::open(&args.source).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?;
    if kind.is_dir() {
        return Err(Failure::usage(format!("{} is a directory", args.source.display()))
            .hint("name a file of rows, or import the tree with --format files"));
    }
    Ok((Box::new(BufReader::with_capacity(1 << 18, file)), kind.len()))
}

/// How rows are read; takes the header off where there is one.
fn shape<R: BufRead>(args: &ImportArgs, csv: bool, pieces: &mut Pieces<R>, name: &str) -> Result<Shape> {
    if !csv {
        return Ok(Shape::Json { key: args.key_column.clone(), value: args.value_column.clone() });
    }
    let delimiter = args.delimiter();
    if !args.columns.is_empty() {
        return Shape::csv(delimiter, &args.columns, &args.key_column, &args.value_column);
    }
    let bad = |why: &str| {
        Failure::usage(format!("{name} has no row that names the columns: {why}"))
            .hint("for CSV without a header, name its columns with --columns key,value")
    };
    let header = match pieces.next_piece() {
        Ok(Some(Piece { bytes, problem: None, .. })) => row::fields(bytes, delimiter).map_err(|why| bad(&why))?,
        Ok(Some(Piece { problem: Some(why), .. })) => return Err(bad(why)),
        Ok(None) => return Err(bad("it is empty")),
        Err(error) => return Err(Failure::failed(format!("cannot read {name}: {error}"))),
    };
    let columns: Vec<String> =
        header.iter().map(|column| String::from_utf8_lossy(column.trim_ascii()).into_owned()).collect();
    Shape::csv(delimiter, &columns, &args.key_column, &args.value_column)
}
