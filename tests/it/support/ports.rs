//! Ports that stay free: below the system's ephemeral ports, so that no outgoing connection takes one while a node
//! that was killed is to come back on it; each given once in this process; and none that another test program gives.

use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 10_000;
const BLOCKS: u16 = 18;
const BLOCK: u16 = 1_200;

/// A port of loopback that nobody listens on, and that no other test gets, of this process or of others.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = own_block() + 1 + NEXT.fetch_add(1, Ordering::Relaxed) % (BLOCK - 1);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The first port of the block that is this process's: whoever listens there has all of it.
fn own_block() -> u16 {
    static OWN: OnceLock<(u16, TcpListener)> = OnceLock::new();
    let claim = || {
        let claim = |block| {
            let first = FIRST + block % BLOCKS * BLOCK;
            Some((first, TcpListener::bind(("127.0.0.1", first)).ok()?))
        };
        let begin = std::process::id() as u16 % BLOCKS;
        (begin..begin + BLOCKS).find_map(claim).expect("fewer test programs at once than there are blocks of ports")
    };
    OWN.get_or_init(claim).0
}

/// Where a local cluster of four nodes can be told to begin (`flotilla run --base-port`).
pub fn free_base_port() -> u16 {
    // Below the others, so that neither takes the other's.
    const BASES: u16 = 30;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = |base: u16| (0..4).flat_map(move |node| (0..3).map(move |port| base + 100 * node + port));
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(step < 20 * BASES, "no free ports from 8,000 on");
        let base = 8_000 + 3 * ((std::process::id() as u16 % BASES + step) % BASES);
        if ports(base).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}
