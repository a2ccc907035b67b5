//! A keyspace's settings on the command line: how they are written, and how they are shown.

use std::ffi::OsStr;

use flotilla_proto::v1;
use serde_json::{Value, json};
use v1::split_boundary::Rule;

use crate::cli::bytes::{KeyStyle, escape};
use crate::cli::output::size;

/// Settings that can be given to a new keyspace and changed later.
#[derive(clap::Args, Clone, Debug)]
pub struct Settings {
    /// Replicas of each of its ranges, 1 to 7 [default of a new keyspace: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=7))]
    pub replicas: Option<u32>,
    /// Where its ranges may be split. any: anywhere; after:/ keeps keys together that are equal up to their last
    /// slash (any byte, such as after:\x00); prefix:N those with the same first N bytes [default: any]
    #[arg(long, value_name = "RULE", value_parser = parse_boundary)]
    pub boundary: Option<v1::SplitBoundary>,
    /// Split a range when it holds more, such as 64MiB; never: not by size [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_split_bytes)]
    pub split_bytes: Option<u64>,
    /// Split a range that is asked for more requests in a second, where its load divides; never: not for that
    /// [default: 3000]
    #[arg(long, value_name = "N", value_parser = parse_split_queries)]
    pub split_queries: Option<u64>,
    /// The same for bytes that are read or written in a second, such as 64MiB [default: 30MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_split_bytes)]
    pub split_load: Option<u64>,
    #[command(flatten)]
    pub places: Places,
}

impl Settings {
    /// Whether nothing was named.
    pub fn is_empty(&self) -> bool {
        let numbers = [self.split_bytes, self.split_queries, self.split_load];
        let cuts = self.boundary.is_some() || numbers.iter().any(Option::is_some);
        self.replicas.is_none() && !cuts && self.places.is_empty()
    }
}

/// Where replicas and leaders of a keyspace may be, and what becomes of small neighbours.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Places {
    /// Replicas are on nodes with all of these labels alone
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label, value_delimiter = ',')]
    pub require_label: Vec<v1::Label>,
    /// No replica is on a node with any of these labels
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label, value_delimiter = ',')]
    pub forbid_label: Vec<v1::Label>,
    /// Leaders are on nodes with the first of these labels that they can be on
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label, value_delimiter = ',')]
    pub prefer_leaders: Vec<v1::Label>,
    /// No constraints: replicas and leaders may be anywhere
    #[arg(long, conflicts_with_all = ["require_label", "forbid_label", "prefer_leaders"])]
    pub no_constraints: bool,
    /// Take constraints that the nodes of now cannot satisfy: others will come
    #[arg(long)]
    pub nodes_will_come: bool,
    /// Whether small neighbours with next to nothing to do are merged by themselves [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    pub merge: Option<bool>,
}

impl Places {
    /// Whether nothing of it was named.
    pub fn is_empty(&self) -> bool {
        let lists = [&self.require_label, &self.forbid_label, &self.prefer_leaders];
        lists.iter().all(|list| list.is_empty()) && !self.no_constraints && self.merge.is_none()
    }

    /// All constraints anew: each list that was named replaces the one there is. `None`: as they are.
    pub fn constraints(&self, now: Option<&v1::Constraints>) -> Option<v1::Constraints> {
        if self.no_constraints {
            return Some(v1::Constraints::default());
        }
        let mut all = now.cloned().unwrap_or_default();
        let mut named = false;
        for (given, kept) in [
            (&self.require_label, &mut all.require),
            (&self.forbid_label, &mut all.forbid),
            (&self.prefer_leaders, &mut all.prefer_leaders_in),
        ] {
            if !given.is_empty() {
                kept.clone_from(given);
                named = true;
            }
        }
        named.then_some(all)
    }

    /// The policy of merges, changed in what was named.
    pub fn merge_policy(&self, now: Option<&v1::MergePolicy>) -> Option<v1::MergePolicy> {
        self.merge.map(|on| v1::MergePolicy { off: !on, ..now.copied().unwrap_or_default() })
    }
}

fn parse_label(text: &str) -> Result<v1::Label, String> {
    flotilla_placement::names::parse_label(text).map_err(|error| format!("{error}; {}", error.hint()))
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

fn labels_text(labels: &[v1::Label]) -> String {
    labels.iter().map(|label| format!("{}={}", label.key, label.value)).collect::<Vec<_>>().join(",")
}

/// A keyspace's constraints for people; empty: it has none.
pub fn constraints_text(constraints: Option<&v1::Constraints>) -> String {
    let Some(constraints) = constraints else { return String::new() };
    let lists = [
        ("require", &constraints.require),
        ("forbid", &constraints.forbid),
        ("prefer leaders in", &constraints.prefer_leaders_in),
    ];
    let named = lists.into_iter().filter(|(_, labels)| !labels.is_empty());
    named.map(|(word, labels)| format!("{word} {}", labels_text(labels))).collect::<Vec<_>>().join("; ")
}

/// `any`, `after:BYTE` or `prefix:N`.
pub fn parse_boundary(text: &str) -> Result<v1::SplitBoundary, String> {
    let rule = match text.split_once(':') {
        None if text == "any" => None,
        Some(("after", byte)) => Some(Rule::AfterDelimiter(parse_byte(byte)?.into())),
        Some(("prefix", length)) => {
            let length = length.parse().ok().filter(|length| (1..=255).contains(length));
            Some(Rule::PrefixLen(length.ok_or("prefix: takes a number of bytes, 1 to 255, such as prefix:3")?))
        }
        _ => return Err("write any, after:CHARACTER (such as after:/ or after:\\x00) or prefix:N".into()),
    };
    Ok(v1::SplitBoundary { rule })
}

fn parse_byte(text: &str) -> Result<u8, String> {
    let hex = |digits: &str| u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2);
    let byte = match text.strip_prefix("0x") {
        Some(digits) => hex(digits),
        None => match KeyStyle::default().key(OsStr::new(text)).as_deref() {
            Ok([byte]) => Some(*byte),
            _ => None,
        },
    };
    byte.ok_or_else(|| "after: takes one byte, such as after:/ or after:\\x00 or after:0x2f".into())
}

/// A size, or `never`.
pub fn parse_split_bytes(text: &str) -> Result<u64, String> {
    if text == "never" {
        return Ok(0);
    }
    match parse_size(text)? {
        0 => Err("a range cannot be split at 0 bytes; write never to split none by size".into()),
        bytes => Ok(bytes),
    }
}

/// A number of requests a second, or `never`.
pub fn parse_split_queries(text: &str) -> Result<u64, String> {
    match text.parse() {
        _ if text == "never" => Ok(0),
        Ok(0) => Err("every range is asked for more than 0; write never to split none for its requests".into()),
        Ok(queries) => Ok(queries),
        Err(_) => Err("write a number of requests a second, such as 3000, or never".into()),
    }
}

/// The loads that a keyspace's ranges are split at, where it names any.
fn load_text(keyspace: &v1::Keyspace) -> String {
    let queries = keyspace.split_queries_per_s.map(|queries| match queries {
        0 => "not for their requests".to_owned(),
        queries => format!("at {queries} requests/s"),
    });
    let bytes = keyspace.split_load_bytes_per_s.map(|bytes| match bytes {
        0 => "not for the bytes they are asked for".to_owned(),
        bytes => format!("at {}/s", size(bytes)),
    });
    let named: Vec<String> = queries.into_iter().chain(bytes).collect();
    if named.is_empty() { String::new() } else { format!("split {}", named.join(", ")) }
}

/// A number of bytes: `4096`, `64KiB`, `256MiB`, `1.5GiB`; `K`, `M` and `G` mean the same.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match &unit.to_ascii_lowercase()[..] {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("\"{unit}\" is no unit of size: write B, KiB, MiB, GiB or TiB")),
    };
    let wrong = || "write a number and a unit, such as 64MiB".to_owned();
    let number = number.trim();
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| "that is too large".into());
    }
    let amount = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if amount.is_finite() && (0.0..2f64.powi(63)).contains(&amount) { Ok(amount as u64) } else { Err(wrong()) }
}

/// Where a keyspace may be split, as it is written on the command line.
pub fn boundary_text(boundary: Option<&v1::SplitBoundary>) -> String {
    match boundary.and_then(|boundary| boundary.rule) {
        None => "any".into(),
        Some(Rule::AfterDelimiter(byte)) => format!("after:{}", escape(&[byte as u8])),
        Some(Rule::PrefixLen(length)) => format!("prefix:{length}"),
    }
}

/// When a keyspace's ranges are split by size.
pub fn split_text(bytes: u64) -> String {
    if bytes == 0 { "never".into() } else { size(bytes) }
}

/// A keyspace's state.
pub fn state_text(keyspace: &v1::Keyspace) -> &'static str {
    match keyspace.state() {
        v1::KeyspaceState::Normal => "normal",
        v1::KeyspaceState::Dropped => "dropped",
    }
}

/// A keyspace for people, in one line.
pub fn line(keyspace: &v1::Keyspace) -> String {
    let merged = match keyspace.merge.as_ref().is_some_and(|merge| merge.off) {
        true => "not merged by themselves".into(),
        false => String::new(),
    };
    let parts = [load_text(keyspace), constraints_text(keyspace.constraints.as_ref()), merged];
    let more: String = parts.iter().filter(|part| !part.is_empty()).map(|part| format!("; {part}")).collect();
    format!(
        "keyspace \"{}\" (id {}): {} replicas, boundary {}, ranges split at {}{more}",
        keyspace.name,
        keyspace.keyspace_id,
        keyspace.replicas,
        boundary_text(keyspace.boundary.as_ref()),
        split_text(keyspace.split_bytes),
    )
}

/// A keyspace for programs.
pub fn to_json(keyspace: &v1::Keyspace) -> Value {
    let boundary = match keyspace.boundary.as_ref().and_then(|boundary| boundary.rule) {
        None => json!({ "rule": "any" }),
        Some(Rule::AfterDelimiter(byte)) => json!({ "rule": "after", "byte": byte }),
        Some(Rule::PrefixLen(length)) => json!({ "rule": "prefix", "bytes": length }),
    };
    let of = |list: fn(&v1::Constraints) -> &Vec<v1::Label>| -> Vec<String> {
        let labels = keyspace.constraints.iter().flat_map(list);
        labels.map(|label| format!("{}={}", label.key, label.value)).collect()
    };
    json!({
        "keyspace_id": keyspace.keyspace_id,
        "name": keyspace.name,
        "replicas": keyspace.replicas,
        "boundary": boundary,
        "split_bytes": keyspace.split_bytes,
        "split_queries_per_s": keyspace.split_queries_per_s,
        "split_load_bytes_per_s": keyspace.split_load_bytes_per_s,
        "state": state_text(keyspace),
        "version": keyspace.version,
        "constraints": {
            "require": of(|constraints| &constraints.require),
            "forbid": of(|constraints| &constraints.forbid),
            "prefer_leaders": of(|constraints| &constraints.prefer_leaders_in),
        },
        "merge": !keyspace.merge.as_ref().is_some_and(|merge| merge.off),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_written_as_they_are_shown() {
        for text in ["any", "after:/", "after::", "after:\\x00", "after:\\xff", "after:\\\\", "prefix:1", "prefix:255"]
        {
            let boundary = parse_boundary(text).expect(text);
            assert_eq!(boundary_text(Some(&boundary)), text);
        }
        assert_eq!(parse_boundary("after:0x2F"), parse_boundary("after:/"));
        for bad in [
            "",
            "none",
            "after:",
            "after",
            "after:ab",
            "after:ö",
            "after:0x",
            "after:0x2",
            "prefix:0",
            "prefix:256",
            "prefix:x",
        ] {
            assert!(parse_boundary(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loads_to_split_at_are_numbers_or_never() {
        assert_eq!(parse_split_queries("3000"), Ok(3_000));
        assert_eq!(parse_split_queries("never"), Ok(0));
        for bad in ["0", "-1", "3k", "", "1.5", "Never"] {
            assert!(parse_split_queries(bad).is_err(), "{bad}");
        }
        let of = |split_queries_per_s, split_load_bytes_per_s| {
            load_text(&v1::Keyspace { split_queries_per_s, split_load_bytes_per_s, ..Default::default() })
        };
        assert_eq!(of(None, None), "");
        assert_eq!(of(Some(500), Some(0)), "split at 500 requests/s, not for the bytes they are asked for");
    }

    #[test]
    fn constraints_change_by_list() {
        let label = |text: &str| parse_label(text).expect("a label");
        let now =
            v1::Constraints { require: vec![label("disk=ssd")], forbid: vec![label("zone=c")], ..Default::default() };
        let none = Places::default();
        assert!(none.is_empty() && none.constraints(Some(&now)).is_none() && none.merge_policy(None).is_none());
        let some = Places { require_label: vec![label("zone=a"), label("disk=hdd")], ..Places::default() };
        let then = some.constraints(Some(&now)).expect("changed");
        assert_eq!(constraints_text(Some(&then)), "require zone=a,disk=hdd; forbid zone=c");
        let gone = Places { no_constraints: true, ..Places::default() };
        assert_eq!(gone.constraints(Some(&now)), Some(v1::Constraints::default()));
        let off = Places { merge: Some(false), ..Places::default() };
        assert!(!off.is_empty() && off.merge_policy(None).is_some_and(|merge| merge.off));
        let keyspace = v1::Keyspace { name: "x".into(), constraints: Some(now), ..Default::default() };
        assert!(
            line(&keyspace).ends_with("ranges split at never; require disk=ssd; forbid zone=c"),
            "{}",
            line(&keyspace)
        );
        assert_eq!(to_json(&keyspace)["constraints"]["forbid"], json!(["zone=c"]));
        assert!(parse_label("zone").is_err() && parse_switch("yes").is_err());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("never", 0), ("4096", 4096), ("4KiB", 4096), ("64mib", 64 << 20), ("1.5G", 3 << 29), ("1b", 1)]
        {
            assert_eq!(parse_split_bytes(text), Ok(bytes), "{text}");
        }
        for bad in
            ["", "0", "0KiB", "x", "1XB", "-1", "MiB", "nan", "inf", "99999999999999999999", "18446744073709551615K"]
        {
            assert!(parse_split_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_keyspace_is_shown() {
        let keyspace = v1::Keyspace {
            keyspace_id: 7,
            name: "x".into(),
            replicas: 5,
            boundary: parse_boundary("after:/").ok(),
            split_bytes: 1 << 20,
            ..Default::default()
        };
        assert_eq!(line(&keyspace), "keyspace \"x\" (id 7): 5 replicas, boundary after:/, ranges split at 1.0 MiB");
        let value = to_json(&keyspace);
        assert_eq!((&value["boundary"]["byte"], &value["state"]), (&47.into(), &"normal".into()));
    }
}
