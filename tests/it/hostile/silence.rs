//! Connections that say nothing, or a byte now and then.

use std::io::Write;
use std::time::Duration;

use super::Node;
use super::wire::{Connection, PREFACE};

/// Beyond every time that a port allows.
const LONGEST: Duration = Duration::from_secs(30);

#[test]
fn who_says_nothing_or_a_byte_now_and_then_is_let_go() {
    let node = Node::new();
    let hello = PREFACE.to_vec();
    let cut = PREFACE[..20].to_vec();
    let request = [&b"GET /metrics HTTP/1.1\r\nx-long: "[..], &[b'a'; 1_000]].concat();
    let cases = [
        ("a silent connection to the client port", node.client(), Vec::new(), false),
        ("a silent connection to the peer port", node.peer(), Vec::new(), false),
        ("a silent connection to the http port", node.http(), Vec::new(), false),
        ("a slow preface at the client port", node.client(), cut.clone(), true),
        ("a slow preface at the peer port", node.peer(), cut, true),
        ("a slow request at the http port", node.http(), request, true),
        ("HTTP/2 and no handshake at the peer port", node.peer(), hello.clone(), false),
        ("HTTP/2 and then nothing at the client port", node.client(), hello, false),
    ];
    let before = node.metric("flotilla_connections_timed_out_total");
    std::thread::scope(|scope| {
        for (what, address, bytes, slowly) in &cases {
            scope.spawn(move || {
                let mut connection = Connection::silent(address);
                let mut rest = bytes.iter().copied();
                if !slowly && !bytes.is_empty() {
                    connection.send(bytes).expect("the node takes it");
                }
                let took = connection.until_closed(what, |connection| {
                    // A node that has closed it takes no more.
                    let byte = rest.next().filter(|_| *slowly);
                    drop(byte.map(|byte| connection.stream.write(&[byte])));
                });
                assert!(took < LONGEST, "{what} stayed for {took:?}");
                println!("{what}: closed after {took:?}");
            });
        }
        node.serves();
    });
    // The last one is closed by HTTP/2 itself, which asked it for a sign of life.
    let closed = node.metric("flotilla_connections_timed_out_total") - before;
    assert!(closed >= 7, "{closed} were counted");
    node.ends_well();
}

#[test]
fn half_open_and_broken_connections_leave_nothing() {
    use super::wire::{END_HEADERS, HEADERS, call, frame};
    let node = Node::new();
    let descriptors = || {
        let pid = node.cluster.pid(1).expect("the node runs");
        std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the node runs").count()
    };
    let before = descriptors();
    let open = frame(HEADERS, END_HEADERS, 1, &call("/flotilla.v1.Kv/Stream", &[]));
    let mut half_open = Vec::new();
    for round in 0..200 {
        for address in [node.client(), node.peer(), node.http()] {
            let mut connection = Connection::begun(address);
            // One that was refused meanwhile is as good.
            connection.send(&open).ok();
            if round % 2 == 0 {
                // Nothing more comes from here; answers would be taken.
                connection.stream.shutdown(std::net::Shutdown::Write).ok();
                half_open.push(connection);
            } else {
                reset(connection);
            }
        }
    }
    node.serves();
    crate::support::eventually("all of them to be gone", || descriptors() <= before + 4);
    drop(half_open);
    node.ends_well();
}

/// Ends a connection by RST.
fn reset(connection: Connection) {
    use std::os::fd::AsRawFd;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a linger of the size that is named, and the descriptor is open.
    let done = unsafe {
        libc::setsockopt(
            connection.stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    drop(connection);
}
