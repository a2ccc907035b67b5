//! What is too new for this version is refused in words, and left as it is: records in a store, a command in a log. (Too
//! new a directory: `bad_input/directory.rs`; too new a neighbour: flotilla-node's `handshake.rs`.)

use std::path::Path;
use std::sync::Arc;

use flotilla_engine::storage::{Family, Storage, WriteBatch};
use flotilla_engine::{keys, recover};
use flotilla_proto::RangeId;
use flotilla_store::{Options, RocksStorage, StoreDirectory};

use crate::support::cli::{at, run_until_refused};
use crate::support::cluster::Cluster;

const MEMORY_BYTES: u64 = 32 << 20;

fn change(data: &Path, change: impl FnOnce(&RocksStorage, &mut <RocksStorage as Storage>::Batch)) {
    let directory = StoreDirectory::open(data, None).expect("the node does not run");
    let options = Options { memory_bytes: MEMORY_BYTES, ..Options::default() };
    let storage = RocksStorage::open(Arc::new(directory), &options).expect("a sound store");
    let mut batch = storage.batch();
    change(&storage, &mut batch);
    storage.write(batch).and_then(|()| storage.close()).expect("it writes");
}

/// A node that holds a key, and does not run.
fn stopped() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.start_all();
    at(&cluster.node(1).client, &["kv", "put", "k", "v"]).exits(0);
    assert_eq!(cluster.terminate(1), Some(0), "{}", cluster.log(1));
    cluster
}

#[test]
fn records_of_a_newer_version_stop_the_start_and_stay() {
    let mut cluster = stopped();
    let data = cluster.node(1).data.clone();
    // Locks, one day; a record of a range that this version does not know; one of the store's own.
    let of_range = [&keys::range_record(RangeId(2), keys::RangeRecord::Applied)[..9], &[0x7F]].concat();
    let cases = [
        (Family::State, vec![0x05, 0, 0, 0, 1], "the family state has a record"),
        (Family::State, of_range, "record of unknown kind 127"),
        (Family::Meta, vec![0x01, 0x10], "the family meta has a record"),
        (Family::Log, vec![0x03; 17], "the family log has a record"),
    ];
    for (family, key, words) in cases {
        change(&data, |_, batch| batch.put(family, &key, b"from the future"));
        for _ in 0..2 {
            run_until_refused(&mut cluster.command(1)).fails(1, &["newer version of flotilla", words]);
        }
        assert!(!data.join("DAMAGED").exists(), "nothing is wrong with it");
        change(&data, |_, batch| batch.delete(family, &key));
    }
    cluster.start_all();
    assert_eq!(at(&cluster.node(1).client, &["kv", "get", "k"]).exits(0).stdout, b"v");
}

/// Skipping it would make this replica differ from the others.
#[test]
fn a_command_of_a_newer_version_stops_the_store_before_it_and_no_start_skips_it() {
    let cluster = stopped();
    let data = cluster.node(1).data.clone();
    let sealed = |head: &[u8]| [&crc32fast::hash(head).to_be_bytes()[..], head].concat();
    change(&data, |storage, batch| {
        let boot = recover::load(storage).expect("it reads").expect("it holds a store");
        let range = boot.ranges.iter().find(|range| range.descriptor.range_id == 2).expect("the first range");
        let command = sealed(&[flotilla_engine::command::VERSION + 1, 1, 2, 3]);
        // Format, type, term, command: what the leader of a newer version would have sent.
        let entry = sealed(&[&[1, 0][..], &range.raft.term.to_be_bytes(), &command].concat());
        batch.put(Family::Log, &keys::log_entry(RangeId(2), range.last_index + 1), &entry);
    });
    for _ in 0..2 {
        let newer = format!("log entry has command version {}", flotilla_engine::command::VERSION + 1);
        run_until_refused(&mut cluster.command(1)).fails(1, &[&newer, "run a newer version of flotilla"]);
    }
    assert!(!data.join("DAMAGED").exists(), "nothing is wrong with it");
}
