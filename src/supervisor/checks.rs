//! What must hold before a local cluster is started, said before anything is changed.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

use flotilla_store::{Options, disk_space, raise_open_files};

use super::plan::{MEMORY_BYTES, NodePlan, Plan};
use crate::cli::failure::{Failure, Result};
use crate::cli::output::size;

/// A node that stores nothing needs about so much beside its ballast: logs, an empty store.
const EMPTY_NODE_BYTES: u64 = 128 << 20;
/// Open files wanted for each node (RocksDB's table files and connections), and the fewest.
const OPEN_FILES: u64 = 16_384;
const OPEN_FILES_MIN: u64 = 2_048;

/// Checks all.
pub fn all(plan: &Plan) -> Result {
    ports(&plan.nodes)?;
    disk(plan)?;
    open_files()
}

/// Whether these nodes can listen where they are to.
pub fn ports(nodes: &[NodePlan]) -> Result {
    for node in nodes {
        for (what, address) in node.addresses() {
            let Err(error) = TcpListener::bind(address) else { continue };
            let why = match error.kind() {
                ErrorKind::AddrInUse => "is in use".into(),
                _ => format!("cannot be used: {error}"),
            };
            return Err(Failure::failed(format!("{address} (node {}, {what}) {why}", node.id))
                .hint("is another cluster running? End it, or choose other ports with --base-port"));
        }
    }
    Ok(())
}

/// Room for the nodes above what they keep free.
fn disk(plan: &Plan) -> Result {
    // The nearest directory that is there already.
    let place = plan.data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let space = disk_space(place).map_err(|error| Failure::file("tell the free space at", place, &error))?;
    let margin = (1 << 30).max(space.total_bytes / 50);
    let ballast = Options { memory_bytes: MEMORY_BYTES, ..Options::default() }.bytes_to_open();
    let needed = margin + if plan.fresh { (ballast + EMPTY_NODE_BYTES) * plan.nodes.len() as u64 } else { 0 };
    if space.free_bytes >= needed {
        return Ok(());
    }
    let (free, needed) = (size(space.free_bytes), size(needed));
    Err(Failure::failed(format!("{free} of disk are free at {}, {needed} are needed", place.display()))
        .hint("make room, or name a directory on another disk with --data"))
}

/// Raises the limit, which the nodes inherit.
fn open_files() -> Result {
    let limit = raise_open_files(OPEN_FILES)
        .map_err(|error| Failure::failed(format!("cannot raise the limit of open files: {error}")))?;
    if limit >= OPEN_FILES_MIN {
        return Ok(());
    }
    Err(Failure::failed(format!("a process may open {limit} files, a node needs {OPEN_FILES_MIN}"))
        .hint(format!("raise the hard limit: ulimit -Hn {OPEN_FILES}, or in /etc/security/limits.conf")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_its_node() {
        let folder = tempfile::tempdir().expect("tempdir");
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = taken.local_addr().expect("address").port();
        let mut plan = Plan::new(folder.path(), Some(1), None, 7300).expect("plan");
        plan.nodes[0].client = "127.0.0.1:0".into();
        plan.nodes[0].http = "127.0.0.1:0".into();
        plan.nodes[0].peer = format!("127.0.0.1:{port}");
        let error = ports(&plan.nodes).expect_err("in use").to_string();
        assert!(error.contains(&format!("127.0.0.1:{port} (node 1, other nodes) is in use")), "{error}");
        drop(taken);
        assert_eq!(ports(&plan.nodes), Ok(()));
        assert_eq!(open_files(), Ok(()));
    }
}
