//! Keys and values on the command line and in what is printed.
//!
//! A key is taken as its bytes, with `\xNN`, `\n`, `\r`, `\t`, `\0` and `\\` as escapes; printing
//! escapes whatever would not read back as the same bytes, so a printed key can be pasted. With
//! `--hex` keys and values are hexadecimal both ways. In JSON, bytes are base64.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::failure::{Failure, Result};

/// How keys are written on the command line and printed.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct KeyStyle {
    /// Keys, and values given as arguments, are hexadecimal; keys are printed so
    #[arg(long)]
    pub hex: bool,
}

impl KeyStyle {
    /// The bytes of a key given as an argument.
    pub fn key(self, argument: &OsStr) -> Result<Bytes> {
        if self.hex { from_hex(argument) } else { unescape(argument.as_bytes()) }
    }

    /// The bytes of a value given as an argument: the argument as it stands, without escapes.
    pub fn value(self, argument: &OsStr) -> Result<Bytes> {
        if self.hex { from_hex(argument) } else { Ok(Bytes::copy_from_slice(argument.as_bytes())) }
    }

    /// A key as it is printed.
    pub fn show(self, key: &[u8]) -> String {
        if self.hex { to_hex(key) } else { escape(key) }
    }
}

/// Base64, as JSON output carries bytes.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of base64.
pub fn from_base64(text: &str) -> Option<Bytes> {
    STANDARD.decode(text.trim()).ok().map(Bytes::from)
}

/// Hexadecimal, two digits a byte.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(argument: &OsStr) -> Result<Bytes> {
    let digits = argument.as_bytes();
    let wrong = || {
        Failure::usage(format!("{argument:?} is not hexadecimal"))
            .hint("--hex takes two digits for each byte, such as 00ff10")
    };
    if !digits.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let pairs = digits.chunks_exact(2).map(|pair| Some((hex_digit(pair[0])? << 4) | hex_digit(pair[1])?));
    pairs.collect::<Option<Vec<u8>>>().map(Bytes::from).ok_or_else(wrong)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

fn unescape(text: &[u8]) -> Result<Bytes> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let (byte, used) = escaped(after).ok_or_else(|| {
            Failure::usage(format!("\"{}\" has an escape that is not known", String::from_utf8_lossy(text))).hint(
                "known are \\xNN, \\n, \\r, \\t, \\0 and \\\\ (a backslash); or give the key in hexadecimal with --hex",
            )
        })?;
        bytes.push(byte);
        rest = &after[used..];
    }
    Ok(bytes.into())
}

/// The byte that an escape stands for, and its length behind the backslash.
fn escaped(after: &[u8]) -> Option<(u8, usize)> {
    match *after.first()? {
        b'\\' => Some((b'\\', 1)),
        b'n' => Some((b'\n', 1)),
        b'r' => Some((b'\r', 1)),
        b't' => Some((b'\t', 1)),
        b'0' => Some((0, 1)),
        b'x' => Some(((hex_digit(*after.get(1)?)? << 4) | hex_digit(*after.get(2)?)?, 3)),
        _ => None,
    }
}

/// Text for bytes: what is printable as it is, everything else escaped.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                // Control characters, and the invisible ones that turn a terminal's text around.
                _ if letter.is_control() || is_invisible(letter) => {
                    let mut buffer = [0; 4];
                    push_hex(&mut text, letter.encode_utf8(&mut buffer).as_bytes());
                }
                _ => text.push(letter),
            }
        }
        push_hex(&mut text, chunk.invalid());
    }
    text
}

fn is_invisible(letter: char) -> bool {
    matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push_str(&format!("\\x{byte:02x}"));
    }
}

/// [`escape`], cut to about `length` characters, with the size of what was cut.
pub fn excerpt(bytes: &[u8], length: usize) -> String {
    // One character comes from at most four bytes; the rest need not be looked at.
    let head = &bytes[..bytes.len().min(length * 4)];
    let text = escape(head);
    if head.len() == bytes.len() && text.chars().count() <= length {
        return text;
    }
    let cut: String = text.chars().take(length).collect();
    format!("{cut}… ({} bytes)", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<Bytes> {
        KeyStyle::default().key(OsStr::new(text))
    }

    #[test]
    fn escapes_are_understood_and_unknown_ones_refused() {
        assert_eq!(key("a/b").as_deref(), Ok(&b"a/b"[..]));
        assert_eq!(key(r"\x00\xfF\\\n\t\r\0").as_deref(), Ok(&b"\x00\xff\\\n\t\r\0"[..]));
        for bad in [r"\", r"\q", r"\x", r"\x1", r"\xg0", r"a\"] {
            assert_eq!(key(bad).expect_err(bad).code(), 2, "{bad}");
        }
    }

    #[test]
    fn hexadecimal_is_checked() {
        let hex = KeyStyle { hex: true };
        assert_eq!(hex.key(OsStr::new("00fF10")).as_deref(), Ok(&[0, 255, 16][..]));
        assert_eq!(hex.value(OsStr::new("")).as_deref(), Ok(&[][..]));
        for bad in ["0", "0g", "+1", "zz"] {
            assert_eq!(hex.key(OsStr::new(bad)).expect_err(bad).code(), 2, "{bad}");
        }
        assert_eq!(hex.show(&[0, 255]), "00ff");
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same_bytes() {
        let all: Vec<u8> = (0..=255).collect();
        let samples: [&[u8]; 6] =
            [&all, "größe/日本".as_bytes(), b"", b"\\x00", b"\xf0\x9f\x98", "a\u{202e}b\u{200b}".as_bytes()];
        for bytes in samples {
            let text = escape(bytes);
            assert!(!text.chars().any(|letter| letter.is_control() || is_invisible(letter)), "{text:?}");
            assert_eq!(key(&text).as_deref(), Ok(bytes), "{text}");
        }
        assert_eq!(escape("größe".as_bytes()), "größe");
    }

    #[test]
    fn values_are_taken_as_they_stand() {
        let value = KeyStyle::default().value(OsStr::new(r"a\n"));
        assert_eq!(value.as_deref(), Ok(&br"a\n"[..]));
    }

    #[test]
    fn excerpts_say_what_is_missing() {
        assert_eq!(excerpt(b"abc", 3), "abc");
        assert_eq!(excerpt(b"abcd", 3), "abc… (4 bytes)");
        assert_eq!(excerpt(&[b'x'; 100], 3), "xxx… (100 bytes)");
    }

    #[test]
    fn base64_both_ways() {
        assert_eq!(base64(b"\x00\xff"), "AP8=");
        assert_eq!(from_base64(" AP8= ").as_deref(), Some(&b"\x00\xff"[..]));
        assert_eq!(from_base64("?"), None);
    }
}
