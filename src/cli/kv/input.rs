//! Where a value comes from: an argument, a file, or stdin.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use bytes::Bytes;
use flotilla_proto::limits::VALUE_BYTES_MAX;

use crate::cli::bytes::KeyStyle;
use crate::cli::failure::{Failure, Result};
use crate::cli::output;

/// A value to write.
pub fn value(argument: Option<&OsString>, file: Option<&Path>, style: KeyStyle) -> Result<Bytes> {
    match (argument, file) {
        (Some(argument), None) => style.value(argument),
        (None, Some(path)) if is_stdin(path) => read(io::stdin().lock(), "stdin"),
        (None, Some(path)) => {
            let file = File::open(path).map_err(|error| Failure::file("read", path, &error))?;
            read(file, &path.display().to_string())
        }
        (None, None) if io::stdin().is_terminal() => Err(Failure::usage("no value is given")
            .hint("give it as an argument, with --file FILE, or on stdin (`... | flotilla kv put KEY`)")),
        (None, None) => read(io::stdin().lock(), "stdin"),
        (Some(_), Some(_)) => Err(Failure::usage("a value and --file are given").hint("give one of them")),
    }
}

/// Whether a file's name means stdin.
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads up to the largest value, so that a wrong file is not read whole.
fn read(source: impl Read, name: &str) -> Result<Bytes> {
    read_value(source)
        .map_err(|error| Failure::failed(format!("cannot read {name}: {error}")))?
        .ok_or_else(|| too_large(name))
}

/// A source's content; `None`: larger than a value may be.
pub fn read_value(source: impl Read) -> io::Result<Option<Bytes>> {
    let mut content = Vec::new();
    source.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut content)?;
    Ok((content.len() <= VALUE_BYTES_MAX).then(|| content.into()))
}

fn too_large(name: &str) -> Failure {
    Failure::failed(format!("{name} is larger than a value may be ({})", output::size(VALUE_BYTES_MAX as u64)))
        .hint("cut it into several keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_the_largest_size_is_taken_and_one_more_byte_is_not() {
        let largest = vec![7; VALUE_BYTES_MAX];
        assert_eq!(read_value(&largest[..]).expect("read").map(|value| value.len()), Some(VALUE_BYTES_MAX));
        assert_eq!(read_value(io::repeat(7)).expect("read"), None);
        assert_eq!(read(io::repeat(7), "x").expect_err("too large").code(), 1);
    }

    #[test]
    fn values_come_from_files_too() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("v");
        std::fs::write(&path, b"\x00\xff").expect("write");
        let read = value(None, Some(&path), KeyStyle::default());
        assert_eq!(read.as_deref(), Ok(&b"\x00\xff"[..]));
        assert_eq!(value(None, Some(&folder.path().join("none")), KeyStyle::default()).expect_err("none").code(), 1);
        let both = value(Some(&"v".into()), Some(&path), KeyStyle::default());
        assert_eq!(both.expect_err("both").code(), 2);
    }
}
