//! What a keyspace may be called, and what its settings may be.

use flotilla_proto::{Error, Result, v1};

use crate::constraints;

/// The system range's keyspace: it has a name, so that its replicas can be set; clients do not see it.
pub const SYSTEM_KEYSPACE_NAME: &str = "system";

/// Longest name of a keyspace.
pub const NAME_CHARS_MAX: usize = 64;
/// Most replicas that a keyspace may ask for.
pub const REPLICAS_MAX: u32 = 7;
/// Smallest size that a range may be split at: below, splitting would cost more than it could gain.
pub const SPLIT_BYTES_MIN: u64 = 1 << 10;
const SPLIT_QUERIES_MIN: u64 = 100;
const SPLIT_LOAD_BYTES_MIN: u64 = 1 << 20;

/// A label as it is written: `zone=a`.
pub fn parse_label(text: &str) -> Result<v1::Label> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::invalid(format!("label {text:?}"), "a label is a key and a value: zone=a"));
    };
    let label = v1::Label { key: key.into(), value: value.into() };
    check_labels(std::slice::from_ref(&label))?;
    Ok(label)
}

/// Refuses labels that no node may have.
pub fn check_labels(labels: &[v1::Label]) -> Result<()> {
    constraints::check_labels(labels)
}

/// Refuses a name that no new keyspace may have.
pub fn check_name(name: &str) -> Result<()> {
    let hint = format!("names have 1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, \"_\", \"-\" and \".\"");
    if name.is_empty() {
        return Err(Error::invalid("a keyspace needs a name", hint));
    }
    if let Some(bad) = name.chars().find(|char| !char.is_ascii_alphanumeric() && !"_-.".contains(*char)) {
        return Err(Error::invalid(format!("keyspace name {name:?} has the character {bad:?}"), hint));
    }
    if name.len() > NAME_CHARS_MAX {
        return Err(Error::invalid(format!("keyspace name of {} characters", name.len()), hint));
    }
    if name == SYSTEM_KEYSPACE_NAME {
        let what = format!("the name \"{SYSTEM_KEYSPACE_NAME}\" is reserved for the cluster's own records");
        return Err(Error::invalid(what, "choose another name"));
    }
    Ok(())
}

/// Refuses a number of replicas that no keyspace may ask for.
pub fn check_replicas(replicas: u32) -> Result<()> {
    if replicas == 0 || replicas > REPLICAS_MAX {
        let hint = format!("1 to {REPLICAS_MAX} are allowed; odd numbers outlive most failures for their cost");
        return Err(Error::invalid(format!("{replicas} replicas"), hint));
    }
    Ok(())
}

/// Refuses a split boundary that means nothing.
pub fn check_boundary(boundary: &v1::SplitBoundary) -> Result<()> {
    use v1::split_boundary::Rule;
    match boundary.rule {
        Some(Rule::AfterDelimiter(byte)) if byte > 255 => {
            Err(Error::invalid(format!("delimiter {byte}"), "a delimiter is one byte: 0 to 255"))
        }
        Some(Rule::PrefixLen(len)) if !(1..=255).contains(&len) => {
            Err(Error::invalid(format!("a prefix of {len} bytes"), "prefixes have 1 to 255 bytes"))
        }
        _ => Ok(()),
    }
}

/// Refuses a size to split at that would keep a range splitting for nothing.
pub fn check_split_bytes(bytes: u64) -> Result<()> {
    if bytes != 0 && bytes < SPLIT_BYTES_MIN {
        let hint = format!("at least {SPLIT_BYTES_MIN} bytes, or 0 for never by size");
        return Err(Error::invalid(format!("ranges split at {bytes} bytes"), hint));
    }
    Ok(())
}

/// Refuses loads to split at that a range with next to nothing to do would reach: what splits must not be merged again.
/// 0: never.
pub fn check_split_load(queries_per_s: Option<u64>, bytes_per_s: Option<u64>) -> Result<()> {
    let bounds = [
        (queries_per_s, SPLIT_QUERIES_MIN, "requests a second"),
        (bytes_per_s, SPLIT_LOAD_BYTES_MIN, "bytes a second"),
    ];
    for (given, least, unit) in bounds {
        if let Some(given) = given.filter(|given| (1..least).contains(given)) {
            let hint = format!("at least {least} {unit}, or 0 for never for that reason");
            return Err(Error::invalid(format!("ranges split at {given} {unit}"), hint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_the_rules() {
        for good in ["a", "default", "A-b_c.9", &"x".repeat(64)] {
            check_name(good).expect(good);
        }
        for bad in ["", "a b", "a/b", "ä", "system", "a\n", &"x".repeat(65)] {
            let error = check_name(bad).expect_err(bad);
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn labels_are_a_key_and_a_value() {
        let label = |key: &str, value: &str| v1::Label { key: key.into(), value: value.into() };
        assert_eq!(parse_label("zone=eu-1.a"), Ok(label("zone", "eu-1.a")));
        for bad in ["", "zone", "zone=", "=a", "zone=a=b", "zo ne=a", "zone=\u{e4}", &format!("z={}", "x".repeat(65))] {
            let error = parse_label(bad).expect_err(bad);
            assert!(!error.hint().is_empty(), "{bad}");
        }
        assert!(check_labels(&[label("zone", "a"), label("rack", "a")]).is_ok());
        assert!(check_labels(&[label("zone", "a"), label("zone", "b")]).is_err(), "which of them?");
        assert!(check_labels(&vec![label("zone", "a"); 17]).is_err());
    }

    #[test]
    fn settings_are_held_to_their_bounds() {
        use v1::split_boundary::Rule;
        assert!(check_replicas(1).is_ok() && check_replicas(7).is_ok());
        assert!(check_replicas(0).is_err() && check_replicas(8).is_err());
        let boundary = |rule| check_boundary(&v1::SplitBoundary { rule: Some(rule) }).is_ok();
        assert!(boundary(Rule::AfterDelimiter(0)) && boundary(Rule::AfterDelimiter(255)));
        assert!(!boundary(Rule::AfterDelimiter(256)) && !boundary(Rule::PrefixLen(0)));
        assert!(boundary(Rule::PrefixLen(1)) && boundary(Rule::PrefixLen(255)) && !boundary(Rule::PrefixLen(256)));
        assert!(check_boundary(&v1::SplitBoundary { rule: None }).is_ok());
        assert!(check_split_bytes(0).is_ok() && check_split_bytes(4096).is_ok() && check_split_bytes(1).is_err());
        let load = |queries, bytes| check_split_load(queries, bytes).is_ok();
        assert!(load(None, None) && load(Some(0), Some(0)) && load(Some(100), Some(1 << 20)));
        assert!(!load(Some(99), None) && !load(None, Some(1)) && !load(Some(3_000), Some((1 << 20) - 1)));
    }
}
