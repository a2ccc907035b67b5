//! What the supervisor prints.

use std::fmt::Display;
use std::io::Write;

use super::cluster::Cluster;
use crate::cli::output::{Table, plural};

/// Prints a line at once. Whether anyone reads it does not matter: the cluster goes on.
pub fn say(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The nodes, and the line that scripts wait for.
pub fn table(cluster: &Cluster) {
    let mut table = Table::new(&[">node", ">pid", "client", "peer", "http", "log file"]);
    for (node, process) in cluster.plan.nodes.iter().zip(&cluster.processes) {
        table.row(vec![
            node.id.to_string(),
            process.pid().to_string(),
            node.client.clone(),
            node.peer.clone(),
            node.http.clone(),
            node.log_file().display().to_string(),
        ]);
    }
    say(table);
    say(format_args!("ready: {}", cluster.plan.client_addresses()));
}

/// Four lines to paste.
pub fn lines(cluster: &Cluster) {
    let plan = &cluster.plan;
    let (Some(first), Some(last)) = (plan.nodes.first(), plan.nodes.last()) else { return };
    let command = |node: &super::plan::NodePlan, words: &[&str]| {
        plan.line(["--addr", &node.client].into_iter().chain(words.iter().copied()))
    };
    say(format_args!(
        "\nLines to paste. Write through node {}, read through node {}, list the ranges:",
        first.id, last.id
    ));
    say(command(first, &["kv", "put", "hello", "world"]));
    say(command(last, &["kv", "get", "hello"]));
    say(command(first, &["range", "list"]));
    if let Some((node, led)) = victim(cluster) {
        let pid = cluster.processes.iter().find(|process| process.node == node).map_or(0, super::child::Process::pid);
        say(format_args!("Kill node {node}, which leads {}:", plural(led, "range")));
        say(format_args!("kill -9 {pid}"));
    }
    say("Ctrl-C ends all nodes.");
}

/// A node that leads something, with how many ranges: one in the middle if it can be, as the other
/// lines go through the first and the last.
pub fn victim(cluster: &Cluster) -> Option<(u64, u64)> {
    let led = |node: u64| cluster.leaders.values().filter(|leader| **leader == Some(node)).count() as u64;
    let (first, last) = (cluster.plan.nodes.first()?.id, cluster.plan.nodes.last()?.id);
    let mut nodes: Vec<(u64, u64)> = cluster.plan.nodes.iter().map(|node| (node.id, led(node.id))).collect();
    nodes.sort_by_key(|(node, _)| (*node == first || *node == last, *node == first));
    nodes.into_iter().find(|(_, led)| *led > 0)
}
