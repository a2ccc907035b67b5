//! A way to a node that can be cut: what comes from those who connect is held back, as if the network lost it, and what the
//! node answers still gets through. Connections stay open meanwhile, and new ones are taken.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// Whether the way is cut; and who waits for it.
type Cut = Arc<(Mutex<bool>, Condvar)>;

/// See the module. Its threads end with their connections.
pub struct Proxy {
    /// Where to connect instead.
    pub address: String,
    cut: Cut,
}

impl Proxy {
    /// A way to a node that listens, or will.
    pub fn to(node: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (node, cut) = (node.to_owned(), Cut::default());
        let ways = Arc::clone(&cut);
        std::thread::spawn(move || {
            for from in listener.incoming().flatten() {
                // Nobody listens there yet, or any more: this connection ends, as it would without a proxy.
                let Ok(to) = TcpStream::connect(&node) else { continue };
                connect(from, to, &ways);
            }
        });
        Self { address, cut }
    }

    /// From now on nothing gets through to the node, or all of it again.
    pub fn cut(&self, cut: bool) {
        *self.cut.0.lock().expect("no holder panics") = cut;
        self.cut.1.notify_all();
    }
}

fn connect(from: TcpStream, to: TcpStream, cut: &Cut) {
    let other = |stream: &TcpStream| stream.try_clone().expect("a descriptor is free");
    let (answers, asker) = (other(&to), other(&from));
    std::thread::spawn(move || carry(answers, asker, &Cut::default()));
    let cut = Arc::clone(cut);
    std::thread::spawn(move || carry(from, to, &cut));
}

/// Carries bytes until one side ends; holds them back while the way is cut.
fn carry(mut from: TcpStream, mut to: TcpStream, cut: &Cut) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        let is_cut = cut.0.lock().expect("no holder panics");
        drop(cut.1.wait_while(is_cut, |is_cut| *is_cut).expect("no holder panics"));
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    // What is not connected any more needs no end.
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
