//! One cluster for all tests that neither stop its nodes nor change what it is: starting three nodes for each would
//! take longer than the tests themselves.
//!
//! Tests run at the same time, so each keeps to keys of its own. By agreement:
//!
//! | first characters | whose |
//! |---|---|
//! | `0` | grpc.rs, a prefix for each test |
//! | `t` | cli.rs, a prefix for each test |
//! | all others | the one test in grpc.rs that scans over many ranges |

use std::sync::OnceLock;
use std::sync::mpsc;

use super::cluster::{Cluster, signal};

static SHARED: OnceLock<Cluster> = OnceLock::new();

/// The cluster; started when the first test asks for it.
pub fn shared() -> &'static Cluster {
    SHARED.get_or_init(|| {
        let (send, receive) = mpsc::channel();
        // Nodes end with the thread that started them: this one lasts as long as the process.
        std::thread::spawn(move || {
            send.send(Cluster::three()).expect("the test waits for it");
            loop {
                std::thread::park();
            }
        });
        // SAFETY: the function lives as long as the program, and does not unwind.
        unsafe { libc::atexit(clean_up) };
        receive.recv().expect("the cluster starts; the panic above says why not")
    })
}

/// Statics are not dropped: ends the nodes and removes their data when the test program ends.
extern "C" fn clean_up() {
    let Some(cluster) = SHARED.get() else { return };
    for pid in cluster.nodes().iter().filter_map(|node| cluster.pid(node.id)) {
        signal(pid, libc::SIGKILL);
        // SAFETY: a null pointer for the status is allowed; the process is a child of ours.
        unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0) };
    }
    // What cannot be removed stays in the system's directory for such things.
    std::fs::remove_dir_all(cluster.directory()).ok();
}
