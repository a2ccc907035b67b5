//! Rows that nobody should import: told as problems, one by one, and nothing else is lost by them.

use bytes::Bytes;
use flotilla_hostile::Decoder;

use super::pieces::{Pieces, Rule};
use super::row::{Base64, RowReader, Shape};
use super::state::State;

const CSV_WORDS: &[&str] = &["\"", "\"\"", ",", "\n", "\r", "\r\n", "\u{feff}", "=", "YQ==", "\0"];
const JSON_WORDS: &[&str] =
    &["\"", "{", "}", "[", "]", ":", ",", "\\u0000", "\\ud800", "null", "1e999", "\"k\":", "[[[[[["];
/// The parsers' own tables.
const PARSER_BYTES: usize = 64 << 10;

fn rows(name: &'static str, shape: Shape, base64: Option<Base64>, samples: &[&str], words: &'static [&'static str]) {
    let reader = RowReader { shape, base64, prefix: Bytes::new() };
    let samples = samples.iter().map(|sample| sample.as_bytes().to_vec()).collect();
    // What is read is not written again: only that it is read the same way is checked.
    Decoder::new(name, samples)
        .words(words)
        .memory(128, PARSER_BYTES)
        .check(|input| reader.read(input).ok().map(|pair| (pair, input.clone())), |(_, input)| input.to_vec());
}

#[test]
fn rows_of_csv() {
    let shape = |delimiter| Shape::Csv { delimiter, columns: 3, key: 1, value: 2 };
    let samples = ["1,a,x", "1,\"a,\"\"b\",\"x\ny\"", "", "2,k,"];
    rows("import: row of CSV", shape(b','), None, &samples, CSV_WORDS);
    let samples = ["1\ta\tx", "1\t\"a\t\"\tx"];
    rows("import: row of TSV", shape(b'\t'), None, &samples, CSV_WORDS);
    rows("import: row of base64", shape(b','), Some(Base64::Both), &["1,YQ==,eA=="], CSV_WORDS);
}

#[test]
fn lines_of_json() {
    let shape = Shape::Json { key: "k".into(), value: "v".into() };
    let samples = [r#"{"k":"a","v":"x","other":[1,{"z":null}]}"#, r#"{"v":1.0,"k":"\n"}"#, "  "];
    rows("import: line of JSON", shape, None, &samples, JSON_WORDS);
}

/// A source is cut into records that are all of it, in order, whatever it is.
#[test]
fn sources() {
    for rule in [Rule::Lines, Rule::Csv { delimiter: b',' }] {
        Decoder::new("import: source", vec![b"k,v\n\"a\nb\",x\r\n1,2".to_vec(), b"one\n\ntwo".to_vec()])
            .of(if rule == Rule::Lines { "lines" } else { "CSV" })
            .words(CSV_WORDS)
            .memory(4, 4_096)
            .check(
                |input| {
                    let mut pieces = Pieces::new(&input[..], rule);
                    let mut before = pieces.place();
                    while let Some(piece) = pieces.next_piece().expect("it lies in memory") {
                        assert_eq!(piece.line, before.line);
                        let place = pieces.place();
                        assert!(place.offset > before.offset);
                        before = place;
                    }
                    assert_eq!(before.offset, input.len() as u64);
                    assert!(Pieces::new(&input[..], rule).skip_to(before).expect("it lies in memory"));
                    Some(input.clone())
                },
                |input| input.to_vec(),
            );
    }
}

#[test]
fn states() {
    let state = State::new("00ab".into(), "csv".into());
    Decoder::new("import: state", vec![serde_json::to_vec(&state).expect("it is JSON")])
        .words(JSON_WORDS)
        .memory(16, 4_096)
        .check(
            |input| serde_json::from_slice::<State>(input).ok(),
            |state| serde_json::to_vec(state).expect("it is JSON"),
        );
}
