//! What keyspaces may ask of nodes: labels that there are, and constraints that the nodes can satisfy.
//!
//! A label that no node has is most often a slip, and a constraint that too few nodes satisfy leaves ranges short
//! of replicas: both are refused, with what there is. Who prepares for nodes that are yet to come says so
//! (`nodes_will_come`), and `problems` lists what cannot be had until they are there.

use std::collections::BTreeSet;

use flotilla_proto::{Error, Result, v1};

use crate::places::allows;
use crate::state::State;

/// Most labels in one list.
const LABELS_MAX: usize = 16;
const CHARS_MAX: usize = 64;

/// Refuses labels that no node may have.
pub(crate) fn check_labels(labels: &[v1::Label]) -> Result<()> {
    if labels.len() > LABELS_MAX {
        return Err(Error::invalid(format!("{} labels", labels.len()), format!("at most {LABELS_MAX} are allowed")));
    }
    let mut keys = BTreeSet::new();
    for label in labels {
        let fine = |text: &str| {
            let known = |char: char| char.is_ascii_alphanumeric() || "_-./:".contains(char);
            (1..=CHARS_MAX).contains(&text.len()) && text.chars().all(known)
        };
        if !fine(&label.key) || !fine(&label.value) {
            let hint = format!("keys and values have 1 to {CHARS_MAX} characters of a-z, A-Z, 0-9 and \"_-./:\"");
            return Err(Error::invalid(format!("the label {}", text(label)), hint));
        }
        if !keys.insert(label.key.as_str()) {
            let hint = "a node has one value for each key";
            return Err(Error::invalid(format!("two labels with the key {:?}", label.key), hint));
        }
    }
    Ok(())
}

pub(crate) fn text(label: &v1::Label) -> String {
    format!("{}={}", label.key, label.value)
}

/// Refuses constraints that mean nothing, or that the nodes there are cannot satisfy.
pub(crate) fn check(state: &State, constraints: &v1::Constraints, replicas: u32, nodes_will_come: bool) -> Result<()> {
    check_labels(&constraints.require)?;
    for list in [&constraints.forbid, &constraints.prefer_leaders_in] {
        list.iter().try_for_each(|label| check_labels(std::slice::from_ref(label)))?;
        if list.len() > LABELS_MAX {
            return Err(Error::invalid(format!("{} labels", list.len()), format!("at most {LABELS_MAX} are allowed")));
        }
    }
    if let Some(label) = constraints.require.iter().find(|label| constraints.forbid.contains(label)) {
        let what = format!("the label {} is both required and forbidden", text(label));
        return Err(Error::invalid(what, "no node can satisfy that, now or later"));
    }
    if nodes_will_come {
        return Ok(());
    }
    let members: Vec<&v1::NodeRecord> = state.ahead.nodes.values().filter(|record| !record.removed).collect();
    let known: BTreeSet<String> = members.iter().flat_map(|record| &record.labels).map(text).collect();
    let named = constraints.require.iter().chain(&constraints.forbid).chain(&constraints.prefer_leaders_in);
    if let Some(unknown) = named.map(text).find(|label| !known.contains(label)) {
        let known: Vec<String> = known.into_iter().take(20).collect();
        let there = if known.is_empty() { "none at all".into() } else { known.join(", ") };
        let hint = format!("the nodes' labels are {there}; if nodes with it are yet to come, say so (nodes_will_come)");
        return Err(Error::invalid(format!("no node has the label {unknown}"), hint));
    }
    let may = members.iter().filter(|record| allows(constraints, &record.labels) && !state.is_dead(record.node_id));
    let (may, need) = (may.count(), members.len().min(replicas as usize));
    if may < need {
        let what = format!("{may} of the cluster's nodes satisfy the constraints, for {replicas} replicas");
        let hint = "ask for less, for fewer replicas, or, if nodes are yet to come, say so (nodes_will_come)";
        return Err(Error::invalid(what, hint));
    }
    Ok(())
}

/// In words, for people.
pub(crate) fn describe(constraints: &v1::Constraints) -> String {
    let list = |what: &str, labels: &[v1::Label]| {
        let labels: Vec<String> = labels.iter().map(text).collect();
        (!labels.is_empty()).then(|| format!("{what} {}", labels.join(", ")))
    };
    let preferred = list("prefer leaders in", &constraints.prefer_leaders_in);
    let parts = [list("require", &constraints.require), list("forbid", &constraints.forbid), preferred];
    parts.into_iter().flatten().collect::<Vec<String>>().join("; ")
}
