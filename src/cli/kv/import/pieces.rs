//! Cuts a source of text into records, and knows at each border how to find it again.
//!
//! ```text
//! bytes ─▶ Pieces ─▶ one record's bytes ─▶ row.rs ─▶ key and value
//!             └────▶ Place: offset, line, checksum of everything before ─▶ state.rs
//! ```
//! A record of lines is a line; one of CSV ends at a line feed outside of quotes. Memory is bounded:
//! a record above [`RECORD_BYTES_MAX`] is passed over to its end and told as a problem. Where a quote
//! is never closed, nothing behind it is guessed to be rows: that would store parts of values as keys.

use std::io::{self, BufRead};

use crc32fast::Hasher;

/// Longest record. The largest value with every byte escaped, as JSON does it with control characters, and its key.
pub const RECORD_BYTES_MAX: usize = 8 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How a source is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A record is a line.
    Lines,
    /// A record ends with a line, unless its end stands between quotes.
    Csv {
        /// Between fields.
        delimiter: u8,
    },
}

/// A border between records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Bytes before it.
    pub offset: u64,
    /// The number of the line that begins here, from 1.
    pub line: u64,
    /// crc32 of all bytes before it.
    pub checksum: u32,
}

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its first line.
    pub line: u64,
    /// Its bytes without the line's end; only as much of it as may be where that is the problem.
    pub bytes: &'a [u8],
    /// Why it cannot be a row.
    pub problem: Option<&'static str>,
}

/// Where a byte of CSV stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// Behind a quote within quotes: the end of the field, or the first half of a doubled quote.
    QuoteSeen,
    /// Behind a carriage return after the closing quote.
    LineEnding,
}

/// A source, cut into records.
pub struct Pieces<R> {
    source: R,
    rule: Rule,
    /// The record at hand.
    record: Vec<u8>,
    state: State,
    problem: Option<&'static str>,
    offset: u64,
    line: u64,
    hasher: Hasher,
}

impl<R: BufRead> Pieces<R> {
    /// A source from its first byte.
    pub fn new(source: R, rule: Rule) -> Self {
        Self {
            source,
            rule,
            record: Vec::new(),
            state: State::FieldStart,
            problem: None,
            offset: 0,
            line: 1,
            hasher: Hasher::new(),
        }
    }

    /// The border behind the last record.
    pub fn place(&self) -> Place {
        Place { offset: self.offset, line: self.line, checksum: self.hasher.clone().finalize() }
    }

    /// Goes on to a border known from before, without looking at the records. Returns whether the
    /// bytes up to there are still the same; then the records behind it come next.
    pub fn skip_to(&mut self, place: Place) -> io::Result<bool> {
        while self.offset < place.offset {
            let chunk = self.source.fill_buf()?;
            if chunk.is_empty() {
                return Ok(false);
            }
            let length = chunk.len().min(usize::try_from(place.offset - self.offset).unwrap_or(usize::MAX));
            self.hasher.update(&chunk[..length]);
            self.source.consume(length);
            self.offset += length as u64;
        }
        self.line = place.line;
        Ok(self.place() == place)
    }

    /// The next record; `None` at the end.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece<'_>>> {
        let (start, first_line) = (self.offset, self.line);
        (self.state, self.problem) = (State::FieldStart, None);
        self.record.clear();
        let complete = self.read_record()?;
        if self.offset == start {
            return Ok(None);
        }
        if !complete && self.state == State::Quoted && matches!(self.rule, Rule::Csv { .. }) {
            self.problem = Some(
                "a quote is opened that is never closed; everything behind it belongs to this row, and is left out",
            );
        }
        let mut bytes = &self.record[..];
        if complete {
            bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        }
        if start == 0 {
            bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        }
        Ok(Some(Piece { line: first_line, bytes, problem: self.problem }))
    }

    /// Reads up to the record's end; false: the source ended before.
    fn read_record(&mut self) -> io::Result<bool> {
        loop {
            let chunk = match self.source.fill_buf() {
                Ok([]) => return Ok(false),
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (used, end) = match self.rule {
                Rule::Lines => match chunk.iter().position(|byte| *byte == b'\n') {
                    Some(at) => (at + 1, true),
                    None => (chunk.len(), false),
                },
                Rule::Csv { delimiter } => {
                    cut_csv(chunk, delimiter, self.offset == 0, &mut self.state, &mut self.problem)
                }
            };
            let kept = used - usize::from(end);
            let room = RECORD_BYTES_MAX - self.record.len();
            if kept > room {
                self.problem = Some("it is larger than 8 MiB");
            }
            self.record.extend_from_slice(&chunk[..kept.min(room)]);
            self.line += chunk[..used].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.hasher.update(&chunk[..used]);
            self.source.consume(used);
            self.offset += used as u64;
            if end {
                return Ok(true);
            }
        }
    }
}

/// How much of a chunk belongs to the record, its end included, and whether that is reached.
fn cut_csv(
    chunk: &[u8],
    delimiter: u8,
    first: bool,
    state: &mut State,
    problem: &mut Option<&'static str>,
) -> (usize, bool) {
    // A byte order mark is no part of the first field, which may begin with a quote behind it.
    let skipped = if first && chunk.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    for (at, byte) in chunk.iter().copied().enumerate().skip(skipped) {
        *state = match (*state, byte) {
            (State::Quoted, b'"') => State::QuoteSeen,
            (State::Quoted, _) => State::Quoted,
            (_, b'\n') => return (at + 1, true),
            (State::FieldStart | State::QuoteSeen, b'"') => State::Quoted,
            (_, byte) if byte == delimiter => State::FieldStart,
            (State::QuoteSeen, b'\r') => State::LineEnding,
            (State::QuoteSeen | State::LineEnding, _) => {
                *problem = Some("there is text between a closing quote and the end of its field");
                State::Plain
            }
            (State::FieldStart | State::Plain, _) => State::Plain,
        };
    }
    (chunk.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: Rule = Rule::Csv { delimiter: b',' };

    /// A source that gives its bytes in chunks of one size, as a pipe may.
    fn source(bytes: &[u8], chunk: usize) -> impl BufRead + use<'_> {
        io::BufReader::with_capacity(chunk, bytes)
    }

    fn all(bytes: &[u8], rule: Rule, chunk: usize) -> Vec<(u64, String, bool)> {
        let mut pieces = Pieces::new(source(bytes, chunk), rule);
        let mut found = Vec::new();
        while let Some(piece) = pieces.next_piece().expect("memory does not fail") {
            found.push((piece.line, String::from_utf8_lossy(piece.bytes).into_owned(), piece.problem.is_some()));
        }
        let end = pieces.place();
        assert_eq!((end.offset, end.checksum), (bytes.len() as u64, crc32fast::hash(bytes)));
        found
    }

    #[test]
    fn records_end_where_they_should_whatever_the_chunks() {
        let csv = b"k,v\r\na,\"x\ny\"\r\n\"b\"\"c\",\"\"\n\nd,e\"f\"\nlast,1";
        let expected = [(1, "k,v"), (2, "a,\"x\ny\""), (4, "\"b\"\"c\",\"\""), (5, ""), (6, "d,e\"f\""), (7, "last,1")];
        for chunk in 1..=csv.len() {
            let found = all(csv, CSV, chunk);
            assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned(), false)), "chunks of {chunk}");
        }
        let lines = b"\xef\xbb\xbf{\"a\n\n\"}\r\nx";
        for chunk in 3..=lines.len() {
            let found = all(lines, Rule::Lines, chunk);
            assert_eq!(
                found.iter().map(|(line, text, _)| (*line, &text[..])).collect::<Vec<_>>(),
                [(1, "{\"a"), (2, ""), (3, "\"}"), (4, "x")]
            );
        }
        assert!(all(b"", CSV, 1).is_empty());
    }

    #[test]
    fn what_is_no_record_is_told_and_the_next_one_is_found() {
        let found = all(b"a,\"x\"y,z\nb,1\n\"x\"\ry\nc,\"open\nd,2\n", CSV, 4);
        let problems: Vec<(u64, bool)> = found.iter().map(|(line, _, problem)| (*line, *problem)).collect();
        assert_eq!(problems, [(1, true), (2, false), (3, true), (4, true)]);
        let mut long = vec![b'x'; RECORD_BYTES_MAX];
        long.extend_from_slice(b"y\nnext\n");
        let found = all(&long, Rule::Lines, 1 << 16);
        assert_eq!(
            (found[0].1.len(), found[0].2, found[1].clone()),
            (RECORD_BYTES_MAX, true, (2, "next".into(), false))
        );
    }

    #[test]
    fn every_border_is_found_again_and_a_change_before_it_is_noticed() {
        let csv = b"k,v\na,\"x\ny\"\nb,2\nc,3\n";
        let mut first = Pieces::new(source(csv, 5), CSV);
        while first.next_piece().expect("memory does not fail").is_some() {
            let place = first.place();
            let mut second = Pieces::new(source(csv, 3), CSV);
            assert!(second.skip_to(place).expect("memory does not fail"));
            assert_eq!(second.place(), place);
            let rest: Vec<_> = std::iter::from_fn(|| {
                let piece = second.next_piece().expect("memory does not fail")?;
                Some((piece.line, piece.bytes.to_vec()))
            })
            .collect();
            assert_eq!(rest.first().map_or(place.line, |(line, _)| *line), place.line);
            let mut changed = csv.to_vec();
            changed[place.offset as usize - 2] ^= 1;
            assert!(!Pieces::new(&changed[..], CSV).skip_to(place).expect("memory does not fail"));
            let shorter = &csv[..place.offset as usize - 1];
            assert!(!Pieces::new(shorter, CSV).skip_to(place).expect("memory does not fail"));
        }
    }
}
