//! Very many streams on one connection, and very many connections.

use super::Node;
use super::wire::{Connection, END_HEADERS, GOAWAY, HEADERS, REFUSED, RST_STREAM, call, frame};
use crate::support::eventually;

/// What a node allows (src/server/mod.rs).
const STREAMS_MAX: u32 = 256;
const CONNECTIONS_MAX: usize = 4_096;

#[test]
fn streams_beyond_the_limit_are_refused() {
    let node = Node::new();
    let open = |stream| frame(HEADERS, END_HEADERS, stream, &call("/flotilla.v1.Kv/Stream", &[]));
    let mut connection = Connection::begun(node.client());
    let ids = (0..2 * STREAMS_MAX).map(|at| 2 * at + 1);
    connection.send(&ids.flat_map(open).collect::<Vec<u8>>()).expect("the node takes it");
    // Those beyond the limit are refused, or all of them with the connection.
    let (mut refused, mut last) = (0, 0);
    while refused < STREAMS_MAX {
        match connection.next("streams to be refused") {
            Some(frame) if frame.kind == RST_STREAM => {
                assert_eq!(frame.code(), REFUSED);
                assert!(frame.stream > 2 * STREAMS_MAX - 1, "stream {} is within the limit", frame.stream);
                (refused, last) = (refused + 1, frame.stream);
            }
            Some(frame) if frame.kind == GOAWAY => break,
            Some(_) => {}
            None => break,
        }
    }
    println!("{refused} streams were refused, the last of them {last}");
    assert!(refused > 0);
    node.serves();
    drop(connection);
    node.ends_well();
}

/// CVE-2023-44487: streams that are opened and taken back at once cost their sender nothing.
#[test]
fn streams_that_are_taken_back_at_once_end_their_connection() {
    let node = Node::new();
    let cpu = || {
        let pid = node.cluster.pid(1).expect("the node runs");
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node runs");
        let fields: Vec<&str> = text.rsplit_once(')').expect("its name").1.split_whitespace().collect();
        fields[11..13].iter().map(|field| field.parse::<u64>().expect("clock ticks")).sum::<u64>()
    };
    let before = (node.rss(), cpu());
    for address in [node.client(), node.peer()] {
        let mut connection = Connection::begun(address);
        let headers = call("/flotilla.v1.Kv/Get", &[]);
        let pair =
            |stream| [frame(HEADERS, END_HEADERS, stream, &headers), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])];
        let mut sent = 0_u32;
        // A hundred thousand, if the node lets them come.
        while sent < 100_000 {
            let bytes: Vec<u8> = (sent..sent + 1_000).flat_map(|at| pair(2 * at + 1).concat()).collect();
            if connection.send(&bytes).is_err() {
                break;
            }
            sent += 1_000;
        }
        let mut told = false;
        while let Some(frame) = connection.next("the end of the connection") {
            told |= frame.kind == GOAWAY;
        }
        println!("rapid reset: {sent} streams were sent, GOAWAY came: {told}");
        node.serves();
    }
    let grown = node.rss().saturating_sub(before.0);
    assert!(grown < 64 << 20, "the node grew by {} MiB", grown >> 20);
    println!("rapid reset: {} clock ticks of CPU", cpu() - before.1);
    node.ends_well();
}

/// As many as there may be, each with its HTTP/2 begun; one more is turned away, and counted.
#[test]
fn four_thousand_connections() {
    let node = Node::new();
    raise_limit();
    let (before, begun) = (node.rss(), std::time::Instant::now());
    let mut connections: Vec<Connection> = Vec::with_capacity(CONNECTIONS_MAX);
    // One is that of the client beside, whose place stays its own.
    while connections.len() < CONNECTIONS_MAX - 1 {
        connections.push(Connection::begun(node.client()));
        if connections.len().is_multiple_of(512) {
            keep(&mut connections);
        }
    }
    println!("{CONNECTIONS_MAX} connections: open after {:?}", begun.elapsed());
    node.serves();
    let refused = || node.metric("flotilla_connections_refused_total");
    let mut further = Vec::new();
    eventually("one too many to be turned away", || {
        keep(&mut connections);
        further.push(Connection::silent(node.client()));
        refused() > 0
    });
    let grown = node.rss().saturating_sub(before);
    println!("{CONNECTIONS_MAX} connections: {} KiB each", grown / 1_024 / CONNECTIONS_MAX as u64);
    assert!(grown < 256 << 20, "the node grew by {} MiB", grown >> 20);
    further.last_mut().expect("just made").until_closed("one too many", |_| {});
    drop((connections, further));
    // Their places are free again.
    eventually("a new connection to be taken", || {
        let mut connection = Connection::begun(node.client());
        // Whoever is taken is told the node's settings.
        let taken = !connection.closed() && !connection.closed();
        taken && refused() > 0
    });
    node.ends_well();
}

/// Answers what the node has asked of those that are open: whether they live.
fn keep(connections: &mut [Connection]) {
    connections.iter_mut().for_each(Connection::keep);
}

/// This process needs as many descriptors as the node.
fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a limit that lives as long as they do.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    let needed = CONNECTIONS_MAX as u64 + 1_024;
    assert!(done == 0 && limit.rlim_max >= needed, "this test needs {needed} descriptors: ulimit -Hn");
}
