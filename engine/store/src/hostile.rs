//! Files of a data directory that nobody should have written: refused, or taken as they are.

use flotilla_hostile::Decoder;

use crate::directory::hostile_identity;
use crate::scrub::hostile as hostile_tables;
use crate::watermark::Watermark;

/// Makes the crc of the watermark right.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(body) = bytes.len().checked_sub(4) {
        let crc = crc32fast::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_be_bytes());
    }
    bytes
}

#[test]
fn watermarks() {
    let watermark = Watermark { synced: 258, opened_at: 7, first_wal: 12, clean_stop: true };
    Decoder::new("file: WATERMARK", vec![watermark.to_bytes(), Watermark::default().to_bytes()])
        .sealed(seal)
        .check(|input| Watermark::parse(input), |watermark| watermark.to_bytes());
}

/// Makes the crc in the last line of an IDENTITY, or of TABLES, right.
fn seal_text(bytes: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8_lossy(&bytes);
    let body = text.rsplit_once("crc32 ").map_or(&text[..], |(body, _)| body);
    format!("{body}crc32 {:08x}\n", crc32fast::hash(body.as_bytes())).into_bytes()
}

#[test]
fn identities() {
    Decoder::new("file: IDENTITY", vec![hostile_identity::sample()])
        .sealed(seal_text)
        .words(&["\n", "format ", "cluster ", "node ", "0", "18446744073709551616", "+1"])
        .memory(16, 4_096)
        .check(|input| hostile_identity::parse(input), |identity| hostile_identity::encode(*identity));
}

#[test]
fn tables() {
    Decoder::new("file: TABLES", vec![hostile_tables::sample()])
        .sealed(seal_text)
        .words(&["\n", "\r\n", "pass ", " ", "0", "18446744073709551616", "+1", "FFFFFFFFF"])
        .memory(32, 4_096)
        .check(|input| hostile_tables::parse(input), Vec::clone);
}
