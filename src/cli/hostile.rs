//! Arguments that nobody should give.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use flotilla_hostile::Decoder;

use super::bytes::{KeyStyle, base64, from_base64};
use super::global::parse_duration;
use super::keyspace::settings::{parse_boundary, parse_size};
use super::kv::put::parse_ttl;

const WORDS: &[&str] =
    &["\\", "\\x", "\\x00", "=", "-", "+", "1e308", "inf", "NaN", "ms", "d", "KiB", "T", ":", "0x", "\u{fc}", " "];
/// Words of refusals hold the argument, escaped.
const WORDS_BYTES: usize = 4_096;

#[test]
fn keys() {
    for (hex, sample) in [(false, &b"a\\x00b"[..]), (true, b"00ff10")] {
        let style = KeyStyle { hex };
        Decoder::new("argument: key", vec![sample.to_vec()])
            .of(if hex { "hexadecimal" } else { "escaped" })
            .words(WORDS)
            .memory(32, WORDS_BYTES)
            .check(|input| style.key(OsStr::from_bytes(input)).ok(), |key| style.show(key).into_bytes());
    }
    Decoder::new("argument: base64", vec![b"YQ==".to_vec(), b"eHl6".to_vec()])
        .words(&["=", "==", " ", "\n", "-", "_"])
        .check(|input| from_base64(std::str::from_utf8(input).ok()?), |bytes: &Bytes| base64(bytes).into_bytes());
}

/// What is taken is a number within bounds; it is written in one way only by people.
fn measure<T>(name: &'static str, sample: &str, parse: impl Fn(&str) -> Result<T, String>) {
    Decoder::new(name, vec![sample.as_bytes().to_vec()])
        .words(WORDS)
        .memory(32, WORDS_BYTES)
        .check(|input| parse(std::str::from_utf8(input).ok()?).ok().map(|_| input.clone()), |input| input.to_vec());
}

#[test]
fn measures() {
    measure("argument: time", "1.5h", parse_duration);
    measure("argument: ttl", "30s", parse_ttl);
    measure("argument: size", "1.5GiB", parse_size);
    measure("argument: boundary", "after:\\x00", parse_boundary);
}
