//! Plans of recoveries that nobody should carry out.

use flotilla_hostile::Decoder;
use flotilla_placement::recovery::{Kept, Plan};
use flotilla_proto::v1;
use serde_json::{Value, json};

use super::file;

/// Makes the checksum of what is JSON still right.
fn seal(text: Vec<u8>) -> Vec<u8> {
    match serde_json::from_slice::<Value>(&text) {
        Ok(mut value) if value.is_object() => {
            value["crc32"] = json!(file::checksum(&value));
            value.to_string().into_bytes()
        }
        _ => text,
    }
}

#[test]
fn plans() {
    let kept = Kept {
        node: 2,
        order: v1::RecoverReplica { range_id: 7, last_index: 9, ..Default::default() },
        living_voters: (1, 3),
        uncommitted: 1,
        data_bytes: 5,
        warnings: vec!["a warning".into()],
    };
    let plan = Plan { cluster_id: 0xab, kept: vec![kept], living: [(1, 11)].into(), ..Plan::default() };
    Decoder::new("recovery plan", vec![file::render(&plan).to_string().into_bytes()])
        .sealed(seal)
        .words(&["\"", "{", "[", "null", "-1", "1e999", "\\ud800", "[[[[[[[[", "\"node_id\":", ","])
        // JSON's trees, twice: the checksum is that of a copy.
        .memory(512, 16 << 10)
        .check(
            |input| file::parse(std::str::from_utf8(input).ok()?).ok().map(|_| input.clone()),
            |input| input.to_vec(),
        );
}
