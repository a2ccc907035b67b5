//! `debug log`.

use flotilla_engine::{command, recover};
use flotilla_proto::{RangeId, v1};
use serde_json::{Value, json};

use super::{LogArgs, copy, find, load};
use crate::cli::bytes::{KeyStyle, base64};
use crate::cli::failure::Result;
use crate::cli::global::Global;
use crate::cli::output::{self, Table};

/// Bytes of entries read at most: a log is short, as it is truncated.
const BYTES_MAX: u64 = 256 << 20;
/// Keys of an entry that are named in the table.
const KEYS_SHOWN: usize = 3;

/// What an entry holds.
struct Content {
    kind: &'static str,
    ops: Vec<v1::WriteOp>,
    /// Why it cannot be read.
    error: Option<String>,
}

pub fn run(args: &LogArgs, global: &Global) -> Result {
    let opened = copy::Opened::open(&args.dir)?;
    let boot = load(&opened)?;
    let range = find(&boot, args.range)?;
    let first = range.raft.truncated_index + 1;
    let end = range.last_index + 1;
    let from = args.from.unwrap_or_else(|| end.saturating_sub(args.limit)).max(first);
    let to = from.saturating_add(args.limit).min(end);
    let entries = if from < to {
        recover::read_log(opened.storage(), RangeId(args.range), from, to, BYTES_MAX)
            .map_err(|error| opened.failure(&error))?
    } else {
        Vec::new()
    };
    let rows = entries.iter().map(|entry| (entry.index, entry.term, entry.data.len(), content(entry.data.clone())));
    if global.json() {
        let list: Vec<Value> =
            rows.map(|(index, term, bytes, content)| to_json(index, term, bytes, &content)).collect();
        return output::json(&json!({
            "range_id": args.range, "first_index": first, "last_index": range.last_index,
            "commit": range.raft.commit, "applied": range.applied.index, "entries": list,
        }));
    }
    let mut table = Table::new(&[">index", ">term", ">bytes", "kind", "content"]);
    for (index, term, bytes, content) in rows {
        table.row(vec![
            index.to_string(),
            term.to_string(),
            bytes.to_string(),
            content.kind.into(),
            text(&content, args.style),
        ]);
    }
    output::line(format_args!(
        "range {}: log {first} to {}, committed {} (as far as this replica wrote down), applied {}\n{table}",
        args.range, range.last_index, range.raft.commit, range.applied.index
    ))
}

fn content(data: bytes::Bytes) -> Content {
    if data.is_empty() {
        return Content { kind: "empty", ops: Vec::new(), error: None };
    }
    match command::decode(data) {
        Ok((command, _)) => {
            let ops = command.requests.into_iter().flat_map(|request| request.ops).collect();
            Content { kind: "writes", ops, error: None }
        }
        Err(error) => Content { kind: "unreadable", ops: Vec::new(), error: Some(error.to_string()) },
    }
}

fn op_name(op: &v1::WriteOp) -> &'static str {
    match op.op {
        Some(v1::write_op::Op::Put(_)) => "put",
        Some(v1::write_op::Op::Delete(_)) => "delete",
        Some(v1::write_op::Op::CompareAndSwap(_)) => "cas",
        None => "nothing",
    }
}

fn text(content: &Content, style: KeyStyle) -> String {
    if let Some(error) = &content.error {
        return error.clone();
    }
    let some = content.ops.iter().take(KEYS_SHOWN).map(|op| {
        let key = command::op_key(op).map(|key| style.show(key)).unwrap_or_default();
        format!("{} {key}", op_name(op))
    });
    let mut text = some.collect::<Vec<_>>().join(", ");
    if content.ops.len() > KEYS_SHOWN {
        text.push_str(&format!(", and {} more", content.ops.len() - KEYS_SHOWN));
    }
    text
}

fn to_json(index: u64, term: u64, bytes: usize, content: &Content) -> Value {
    let op = |op: &v1::WriteOp| {
        json!({
            "op": op_name(op),
            "key": command::op_key(op).map(|key| base64(key)),
            "bytes": command::op_bytes(op),
        })
    };
    json!({
        "index": index, "term": term, "bytes": bytes, "kind": content.kind,
        "ops": content.ops.iter().map(op).collect::<Vec<_>>(), "error": content.error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart() {
        let put = |key: &'static str| {
            let put = v1::Put { key: key.into(), value: "v".into(), if_absent: false, ttl_ms: 0 };
            v1::WriteOp { op: Some(v1::write_op::Op::Put(put)) }
        };
        let request = v1::WriteRequest { ops: vec![put("a\n"), put("b"), put("c"), put("d")], atomic: false };
        let command = v1::Command { range_id: 2, requests: vec![request], ..Default::default() };
        let found = content(command::encode(&command));
        assert_eq!(text(&found, KeyStyle::default()), "put a\\n, put b, put c, and 1 more");
        assert_eq!(to_json(7, 6, 9, &found)["ops"][0]["key"], "YQo=");
        assert_eq!(content(bytes::Bytes::new()).kind, "empty");
        let broken = content(bytes::Bytes::from_static(b"broken bytes"));
        assert_eq!(broken.kind, "unreadable");
        assert!(text(&broken, KeyStyle::default()).contains("corrupt"));
    }
}
