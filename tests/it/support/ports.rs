//! Ports that stay free: below the system's ephemeral ports, so that no outgoing connection takes one while a node
//! that was killed is to come back on it; and each given once in this process.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 10_000;
const LAST: u16 = 32_000;

/// A port of loopback that nobody listens on, and that no other test of this process gets.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        // Two test programs at the same time begin at different places.
        let begin = (std::process::id() % 17) as u16 * 1_200;
        let port = FIRST + (begin + step) % (LAST - FIRST);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
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
