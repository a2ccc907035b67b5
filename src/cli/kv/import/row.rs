//! What a record says: its key and its value, or why it has none.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use serde_json::value::RawValue;

use crate::cli::bytes::from_base64;
use crate::cli::failure::{Failure, Result};

/// Which fields of a record are base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Base64 {
    /// Keys and values
    Both,
    /// Keys only
    Keys,
    /// Values only
    Values,
}

/// How a record is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A row of fields.
    Csv {
        /// Between fields.
        delimiter: u8,
        /// Fields of every row.
        columns: usize,
        /// Which of them is the key, from 0.
        key: usize,
        /// Which of them is the value, from 0.
        value: usize,
    },
    /// A JSON object.
    Json {
        /// The field that is the key.
        key: String,
        /// The field that is the value.
        value: String,
    },
}

/// Reads records.
#[derive(Clone, Debug)]
pub struct RowReader {
    /// How.
    pub shape: Shape,
    /// What is encoded.
    pub base64: Option<Base64>,
    /// Put before each key.
    pub prefix: Bytes,
}

/// A key and its value.
pub type Pair = (Bytes, Bytes);

impl Shape {
    /// The shape of rows with these columns.
    pub fn csv(delimiter: u8, columns: &[String], key: &str, value: &str) -> Result<Self> {
        let find = |name: &str, option: &str| {
            let mut found = columns.iter().enumerate().filter(|(_, column)| *column == name);
            match (found.next(), found.next()) {
                (Some((at, _)), None) => Ok(at),
                (None, _) => Err(Failure::usage(format!("there is no column \"{name}\""))
                    .hint(format!("the columns are {}; choose one with {option}", columns.join(", ")))),
                _ => Err(Failure::usage(format!("two columns have the name \"{name}\""))
                    .hint("give the columns other names with --columns, and leave the header out")),
            }
        };
        let (key, value) = (find(key, "--key-column")?, find(value, "--value-column")?);
        Ok(Self::Csv { delimiter, columns: columns.len(), key, value })
    }
}

/// The fields of one record of CSV.
pub fn fields(record: &[u8], delimiter: u8) -> std::result::Result<csv::ByteRecord, String> {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(delimiter).buffer_capacity(record.len().max(1));
    let mut reader = builder.from_reader(record);
    let mut fields = csv::ByteRecord::new();
    reader.read_byte_record(&mut fields).map_err(|error| error.to_string())?;
    let mut more = csv::ByteRecord::new();
    if reader.read_byte_record(&mut more).map_err(|error| error.to_string())? {
        return Err("a carriage return stands outside of quotes without a line feed behind it".into());
    }
    Ok(fields)
}

impl RowReader {
    /// A record's key and value; `None`: an empty line. The error says what is wrong with it.
    pub fn read(&self, record: &[u8]) -> std::result::Result<Option<Pair>, String> {
        if record.is_empty() {
            return Ok(None);
        }
        let (key, value) = match &self.shape {
            Shape::Csv { delimiter, columns, key, value } => {
                let fields = fields(record, *delimiter)?;
                if fields.len() != *columns {
                    return Err(format!("it has {} fields instead of {columns}", fields.len()));
                }
                (fields[*key].to_vec(), fields[*value].to_vec())
            }
            Shape::Json { .. } if record.iter().all(u8::is_ascii_whitespace) => return Ok(None),
            Shape::Json { key, value } => json_fields(record, key, value)?,
        };
        let key = self.decode(key, "key", Base64::Keys)?;
        let value = self.decode(value, "value", Base64::Values)?;
        if key.is_empty() {
            return Err("its key is empty".into());
        }
        let key = if self.prefix.is_empty() { key } else { [&self.prefix[..], &key].concat().into() };
        self.check(&key, &value)?;
        Ok(Some((key, value)))
    }

    fn decode(&self, text: Vec<u8>, what: &str, which: Base64) -> std::result::Result<Bytes, String> {
        if self.base64 != Some(Base64::Both) && self.base64 != Some(which) {
            return Ok(text.into());
        }
        let decoded = std::str::from_utf8(&text).ok().and_then(from_base64);
        decoded.ok_or_else(|| format!("its {what} is not base64"))
    }

    fn check(&self, key: &Bytes, value: &Bytes) -> std::result::Result<(), String> {
        if key.len() > KEY_BYTES_MAX {
            return Err(format!("its key has {} bytes, at most {KEY_BYTES_MAX} are allowed", key.len()));
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(format!("its value has {} bytes, at most {VALUE_BYTES_MAX} are allowed", value.len()));
        }
        Ok(())
    }
}

/// Two fields of a JSON object: a string's text, anything else as it is written.
fn json_fields(record: &[u8], key: &str, value: &str) -> std::result::Result<(Vec<u8>, Vec<u8>), String> {
    let object: BTreeMap<Cow<str>, &RawValue> =
        serde_json::from_slice(record).map_err(|error| format!("it is not a JSON object: {}", reason(&error)))?;
    let field = |name: &str| object.get(name).ok_or_else(|| format!("it has no field \"{name}\""));
    let text = |name: &str, raw: &RawValue| match raw.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(raw.get())
            .map(String::into_bytes)
            .map_err(|error| format!("its field \"{name}\" is not text: {}", reason(&error))),
        Some(b'n') => Err(format!("its field \"{name}\" is null")),
        _ => Ok(raw.get().as_bytes().to_vec()),
    };
    let raw_key = field(key)?;
    if !raw_key.get().starts_with('"') {
        return Err(format!("its field \"{key}\" is not a string"));
    }
    Ok((text(key, raw_key)?, text(value, field(value)?)?))
}

/// An error of JSON without the line, which is the record's own and always 1.
fn reason(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at character ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(base64: Option<Base64>, prefix: &'static str) -> RowReader {
        let columns = ["id", "key", "value"].map(String::from);
        let shape = Shape::csv(b',', &columns, "key", "value").expect("both are there");
        RowReader { shape, base64, prefix: prefix.into() }
    }

    fn json() -> RowReader {
        let shape = Shape::Json { key: "k".into(), value: "v".into() };
        RowReader { shape, base64: None, prefix: Bytes::new() }
    }

    fn pair(reader: &RowReader, record: &str) -> std::result::Result<(String, String), String> {
        let (key, value) = reader.read(record.as_bytes())?.ok_or("empty")?;
        Ok((String::from_utf8_lossy(&key).into(), String::from_utf8_lossy(&value).into()))
    }

    #[test]
    fn rows_of_csv() {
        let reader = csv(None, "p/");
        assert_eq!(pair(&reader, "1,a,x"), Ok(("p/a".into(), "x".into())));
        assert_eq!(pair(&reader, "1,\"a,\"\"b\",\"x\ny\""), Ok(("p/a,\"b".into(), "x\ny".into())));
        assert_eq!(pair(&reader, "1,a,"), Ok(("p/a".into(), String::new())));
        assert_eq!(reader.read(b""), Ok(None));
        assert!(pair(&reader, "1,a").expect_err("short").contains("2 fields instead of 3"));
        assert!(pair(&reader, "1,a,x,y").expect_err("long").contains("4 fields"));
        assert!(pair(&reader, "1,a,x\r2,b,y").expect_err("return").contains("carriage return"));
        assert!(pair(&csv(None, ""), "1,,x").expect_err("empty").contains("empty"));
        let long = format!("1,{},x", "k".repeat(KEY_BYTES_MAX + 1));
        assert!(pair(&csv(None, ""), &long).expect_err("long").contains("8192"));
        let large = format!("1,k,{}", "v".repeat(VALUE_BYTES_MAX + 1));
        assert!(pair(&csv(None, ""), &large).expect_err("large").contains("1048576"));
    }

    #[test]
    fn encoded_rows() {
        assert_eq!(pair(&csv(Some(Base64::Both), ""), "1,YQ==,eA=="), Ok(("a".into(), "x".into())));
        assert_eq!(pair(&csv(Some(Base64::Keys), ""), "1,YQ==,eA=="), Ok(("a".into(), "eA==".into())));
        assert_eq!(pair(&csv(Some(Base64::Values), ""), "1,YQ==,eA=="), Ok(("YQ==".into(), "x".into())));
        assert!(pair(&csv(Some(Base64::Both), ""), "1,YQ==,?").expect_err("bad").contains("value is not base64"));
    }

    #[test]
    fn columns_are_found_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let failure = Shape::csv(b',', &names(&["a", "b"]), "key", "b").expect_err("no key").to_string();
        assert!(failure.contains("no column \"key\"") && failure.contains("a, b"), "{failure}");
        assert_eq!(Shape::csv(b',', &names(&["a", "a"]), "a", "a").expect_err("twice").code(), 2);
    }

    #[test]
    fn lines_of_json() {
        assert_eq!(pair(&json(), r#"{"k":"a\n","v":"x","other":[1]}"#), Ok(("a\n".into(), "x".into())));
        // What is no string is stored as it is written: no number is rounded, no order changed.
        for raw in ["1.0", "12345678901234567890123", "true", r#"{"z":1,"a":[null]}"#] {
            assert_eq!(pair(&json(), &format!(r#"{{"k":"a","v":{raw}}}"#)), Ok(("a".into(), raw.into())));
        }
        assert_eq!(json().read(b"  "), Ok(None));
        for (bad, word) in [
            (r#"{"k":"a""#, "not a JSON object"),
            ("[1]", "not a JSON object"),
            (r#"{"v":"x"}"#, "no field \"k\""),
            (r#"{"k":"a"}"#, "no field \"v\""),
            (r#"{"k":1,"v":"x"}"#, "not a string"),
            (r#"{"k":"a","v":null}"#, "null"),
            (r#"{"k":"","v":"x"}"#, "empty"),
            (r#"{"k":"\ud800","v":"x"}"#, "not text"),
            (r#"{"k":"a","v":"x"} more"#, "not a JSON object"),
        ] {
            let why = pair(&json(), bad).expect_err(bad);
            assert!(why.contains(word), "{bad}: {why}");
        }
        let deep = format!(r#"{{"k":"a","v":{}}}"#, "[".repeat(100_000));
        assert!(pair(&json(), &deep).is_err(), "deep nesting does not overflow the stack");
    }
}
