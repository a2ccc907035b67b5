//! The story of a cluster that grows: a file tree goes into three nodes while its range splits by size; a fourth node
//! gets its share; one dies for good, and its replicas are rebuilt; the others are restarted one after the other under
//! load, and no request fails; and what comes out is what went in.
//!
//! The tree is made up, so that the test is the same everywhere; with `FLOTILLA_TEST_TREE` (`make growth TREE=/usr/share`)
//! it is a copy of the files that lie there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::v1;
use flotilla_router::Client;

use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::rng::{Rng, seed};
use crate::support::{eventually_async, runtime};

const FILES: u64 = 20_000;
const FOLDERS: u64 = 211;
/// Of a tree that is copied.
const FILE_MAX: u64 = 512 << 10;
const FILES_COPIED_MAX: usize = 60_000;
/// A range of this size splits: the tree makes some forty of them.
const SPLIT_BYTES: &str = "1048576";
const CLIENTS: u64 = 4;

/// Files of some kilobytes, in many folders, with names that spread over the keys.
fn make_tree(root: &Path, rng: &mut Rng) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in 0..FOLDERS {
        fs::create_dir_all(root.join(format!("{folder:03}"))).expect("a directory for the test");
    }
    for number in 0..FILES {
        let path = PathBuf::from(format!("{:03}/{number:05}.bin", number * 7 % FOLDERS));
        let content: Vec<u8> = (0..rng.below(512)).flat_map(|_| rng.next().to_le_bytes()).collect();
        fs::write(root.join(&path), &content).expect("a file for the test");
        files.insert(path, content);
    }
    files
}

/// Copies the files below `from` that fit into a value, folder by folder in the order of their names.
fn copy_tree(from: &Path, root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        fs::create_dir_all(root.join(&folder)).expect("a directory for the test");
        let mut entries: Vec<_> = fs::read_dir(from.join(&folder)).expect("a folder").flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = folder.join(entry.file_name());
            match entry.metadata().expect("a file that stays") {
                meta if meta.is_dir() => folders.push(path),
                meta if meta.is_file() && meta.len() <= FILE_MAX && files.len() < FILES_COPIED_MAX => {
                    let content = fs::read(entry.path()).expect("a file that may be read");
                    fs::write(root.join(&path), &content).expect("a file for the test");
                    files.insert(path, content);
                }
                _ => {}
            }
        }
    }
    files
}

/// The ranges of the default keyspace.
async fn ranges(client: &Client) -> Vec<v1::RangeStatus> {
    let mut ranges = client.list_ranges().await.map(|routes| routes.ranges).unwrap_or_default();
    ranges.retain(|status| status.descriptor.as_ref().is_some_and(|range| range.keyspace_id == DEFAULT_KEYSPACE.0));
    ranges
}

/// Nodes that hold a replica of a range, and whether all of them are voters.
fn nodes_of(status: &v1::RangeStatus) -> (BTreeSet<u64>, bool) {
    let replicas = status.descriptor.iter().flat_map(|range| &range.replicas);
    let voters = replicas.clone().all(|replica| replica.role() == v1::ReplicaRole::Voter);
    (replicas.map(|replica| replica.node_id).collect(), voters)
}

/// Clients that write and read what they wrote, until they are told to stop; nothing may fail.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    fn start(runtime: &tokio::runtime::Runtime, client: &Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let one = |id: u64| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            runtime.spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    // Between the tree's keys, in all its ranges; they are deleted again.
                    let key = format!("{:03}/load-{id}", number * 13 % FOLDERS);
                    client.put(key.clone(), number.to_string()).await.expect("no write fails");
                    let record = client.get(key.clone()).await.expect("no read fails").expect("it was written");
                    assert_eq!(record.value, number.to_string());
                    assert!(client.delete(key).await.expect("no delete fails").existed);
                }
                number
            })
        };
        Self { stop: Arc::clone(&stop), clients: (0..CLIENTS).map(one).collect() }
    }

    fn end(self, runtime: &tokio::runtime::Runtime) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| runtime.block_on(client).expect("no request failed")).sum()
    }
}

#[test]
fn three_nodes_take_a_tree_grow_lose_a_node_and_restart_under_load() {
    let mut rng = Rng::new(seed());
    let mut cluster = Cluster::new(4);
    cluster.set_args(&["--initial-ranges", "1", "--split-bytes", SPLIT_BYTES, "--node-dead-after-ms", "4000"]);
    for id in 1..=3 {
        cluster.start(id);
        cluster.wait_initialised(id);
    }
    cluster.wait_ready();
    let source = cluster.directory().join("source");
    let tree = match std::env::var_os("FLOTILLA_TEST_TREE") {
        Some(from) => copy_tree(Path::new(&from), &source),
        None => make_tree(&source, &mut rng),
    };
    assert!(tree.len() as u64 >= FILES, "{} files are not enough", tree.len());
    let runtime = runtime();
    let client = runtime.block_on(cluster.client(Duration::from_secs(30)));
    let begun = Instant::now();
    let load = Load::start(&runtime, &client);
    import(&cluster, &source, tree.len());
    runtime.block_on(split_and_spread(&client));
    println!("imported and split after {:?}", begun.elapsed());

    cluster.start(4);
    cluster.wait_node(4);
    runtime.block_on(share(&client, 4));
    println!("node 4 has its share after {:?}", begun.elapsed());

    // Until here nothing may fail. The death of a node leaves writes that were on their way to it unknown.
    let requests = load.end(&runtime);
    println!("{requests} writes, reads and deletes meanwhile");
    cluster.kill(2);
    fs::remove_dir_all(&cluster.node(2).data).expect("the test's own");
    runtime.block_on(rebuilt(&client, 2));
    println!("node 2 is replaced after {:?}", begun.elapsed());

    let load = Load::start(&runtime, &client);
    for id in [3, 4, 1] {
        assert_eq!(cluster.terminate(id), Some(0), "{}", cluster.log(id));
        cluster.start(id);
        cluster.wait_node(id);
        // Every replica has come to one index: the next one may be restarted.
        at(&cluster.node(id).client, &["range", "check", "--all", "--timeout", "60s"]).exits(0);
    }
    let requests = load.end(&runtime);
    println!("restarted after {:?}; {requests} writes, reads and deletes meanwhile", begun.elapsed());
    export(&cluster, &tree);
}

fn import(cluster: &Cluster, source: &Path, files: usize) {
    let source = source.to_str().expect("a plain path");
    let ran = at(&cluster.node(1).client, &["kv", "import", source, "--timeout", "60s"]).exits(0);
    assert!(ran.text().replace(',', "").starts_with(&format!("stored {files} files (")), "{ran:?}");
}

/// Sixteen ranges at least, that tile the keyspace, with leaders on all three nodes.
async fn split_and_spread(client: &Client) {
    eventually_async("ranges to split, and leaders to be spread", || async {
        let ranges = ranges(client).await;
        let leaders: BTreeSet<u64> = ranges.iter().map(|status| status.leader_node_id).collect();
        ranges.len() >= 16 && leaders == BTreeSet::from([1, 2, 3])
    })
    .await;
    let ranges = ranges(client).await;
    let descriptors: Vec<_> = ranges.iter().filter_map(|status| status.descriptor.as_ref()).collect();
    assert!(descriptors[0].start.is_empty() && descriptors[descriptors.len() - 1].end.is_empty());
    assert!(descriptors.windows(2).all(|pair| pair[0].end == pair[1].start), "ranges tile the keyspace");
}

/// A node that came later holds and leads about as much as the others.
async fn share(client: &Client, node: u64) {
    eventually_async("the new node to get its share", || async {
        let ranges = ranges(client).await;
        if ranges.is_empty() {
            return false;
        }
        let held = ranges.iter().filter(|status| nodes_of(status).0.contains(&node)).count();
        let led = ranges.iter().filter(|status| status.leader_node_id == node).count();
        held * 4 * 3 >= ranges.len() * 3 * 2 && led * 4 * 2 >= ranges.len()
    })
    .await;
}

/// No replica is on the node any more, and every range has three.
async fn rebuilt(client: &Client, node: u64) {
    eventually_async("the replicas of a lost node to be rebuilt", || async {
        let routes = client.list_ranges().await.map(|routes| routes.ranges).unwrap_or_default();
        let whole = |status: &v1::RangeStatus| {
            let (nodes, voters) = nodes_of(status);
            voters && nodes.len() == 3 && !nodes.contains(&node)
        };
        !routes.is_empty() && routes.iter().all(whole)
    })
    .await;
}

fn export(cluster: &Cluster, tree: &BTreeMap<PathBuf, Vec<u8>>) {
    let target = cluster.directory().join("target");
    let words = ["kv", "export", target.to_str().expect("a plain path"), "--timeout", "60s"];
    let ran = at(&cluster.node(4).client, &words).exits(0);
    assert!(ran.text().replace(',', "").starts_with(&format!("wrote {} files (", tree.len())), "{ran:?}");
    for (path, content) in tree {
        let back = fs::read(target.join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(back == *content, "{} differs", path.display());
    }
}
