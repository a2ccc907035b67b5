//! Disks that are full: small file systems, filled to the margin and to the brim. What was acknowledged stays, what cannot be taken is
//! refused in words, and room makes it well again.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::Error;
use flotilla_router::Client;

use crate::support::cli::at;
use crate::support::cluster::Cluster;
use crate::support::image::Image;
use crate::support::{eventually, eventually_async, runtime};

const VALUE_BYTES: usize = 256 << 10;
const MIB: u64 = 1 << 20;
const MIB_OF_EACH: u64 = 256;

fn value(number: u64) -> Bytes {
    // What compression cannot make small.
    let mut rng = crate::support::rng::Rng::new(number);
    (0..VALUE_BYTES / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
}

fn key(number: u64) -> String {
    format!("{}{number:05}", char::from(b'a' + (number % 26) as u8))
}

/// Takes the room that is left on a file system, to the last byte.
fn fill(file: &Path) {
    let mut filler = File::create(file).expect("a file of the test's own");
    let block = vec![1; MIB as usize];
    while filler.write_all(&block).is_ok() {}
    while filler.write_all(&block[..4096]).is_ok() {}
}

async fn all_there(client: &Client, acknowledged: &[u64]) {
    for number in acknowledged {
        let mut read = None;
        eventually_async("a key to be read", || async { client.get(key(*number)).await.is_ok() }).await;
        while read.is_none() {
            read = client.get(key(*number)).await.ok();
        }
        let kept = read.flatten().unwrap_or_else(|| panic!("key {} is lost", key(*number)));
        assert_eq!(kept.value, value(*number), "key {}", key(*number));
    }
}

/// All three nodes reach their margin: writes are refused in words, reads and deletes go on; then the disk is full to the brim, and
/// nodes that go down come back to serve reads all the same; room makes them take writes again.
#[test]
fn full_disks_refuse_writes_and_lose_nothing() {
    let mut cluster = Cluster::new(3);
    let Some(mut images) = (1..=3).map(|_| Image::new(MIB_OF_EACH)).collect::<Option<Vec<_>>>() else { return };
    (1..).zip(&images).for_each(|(id, image)| cluster.lay_below(id, &image.root));
    cluster.set_args(&["--initial-ranges", "4", "--disk-margin-bytes", "67108864", "--ballast-bytes", "0"]);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    runtime().block_on(async {
        let client = cluster.client(Duration::from_secs(2)).await;
        let mut acknowledged = Vec::new();
        let mut refused = None;
        for number in 0.. {
            match client.put(key(number), value(number)).await {
                Ok(_) => acknowledged.push(number),
                Err(error @ Error::DiskFull { .. }) => {
                    refused = Some(error);
                    break;
                }
                // A range whose leader moves; the client has tried it for two seconds.
                Err(_) => assert!(number < 10_000, "the disk is never full"),
            }
        }
        let words = refused.expect("the loop ends with one").to_string();
        assert!(words.contains("disk"), "{words}");
        assert!(acknowledged.len() > 40, "{} values on {MIB_OF_EACH} MiB", acknowledged.len());
        all_there(&client, &acknowledged).await;
        let deleted = acknowledged.pop().expect("there are many");
        eventually_async("a delete to be taken", || async { client.delete(key(deleted)).await.is_ok() }).await;

        // Somebody else takes the rest, and the machine goes down: each node has the ballast that it chose itself to start with.
        images.iter().for_each(|image| fill(&image.root.join("filler")));
        (1..=3).for_each(|id| cluster.kill(id));
        (1..=3).for_each(|id| cluster.start(id));
        (1..=3).for_each(|id| cluster.wait_node(id));
        for (id, words) in (1..=3).flat_map(|id| [(id, "gave the ballast file up"), (id, "compactions wait for room")])
        {
            assert!(cluster.log(id).contains(words), "{}", cluster.log(id));
        }
        all_there(&client, &acknowledged).await;

        (1..=3).for_each(|id| cluster.kill(id));
        for image in &mut images {
            std::fs::remove_file(image.root.join("filler")).expect("the test's own file");
            image.grow(1_024);
        }
        cluster.start_all();
        all_there(&client, &acknowledged).await;
        eventually_async("writes to be taken", || async { client.put("room", "again").await.is_ok() }).await;
        println!(
            "{} values of {} KiB filled three disks, all of them are there",
            acknowledged.len(),
            VALUE_BYTES >> 10
        );
    });
    at(&address, &["range", "check", "--all", "--timeout", "60s"]).exits(0);
}

/// One node's disk is full to the brim, beside two that have room: the node ends, the others go on, and it comes back with room.
#[test]
fn one_full_disk_does_not_stop_the_cluster() {
    let mut cluster = Cluster::new(3);
    let Some(mut image) = Image::new(128) else { return };
    cluster.lay_below(2, &image.root);
    cluster.set_args(&["--initial-ranges", "4"]);
    cluster.start_all();
    let address = cluster.node(1).client.clone();
    fill(&image.root.join("filler"));
    runtime().block_on(async {
        let client = cluster.client(Duration::from_secs(10)).await;
        let mut acknowledged = Vec::new();
        let mut number = 0;
        while cluster.is_running(2) {
            if client.put(key(number), value(number)).await.is_ok() {
                acknowledged.push(number);
            }
            number += 1;
            assert!(number < 4_000, "node 2 never ends; its log:\n{}", cluster.log(2));
        }
        assert_eq!(cluster.wait_end(2), Some(1));
        assert!(cluster.log(2).contains("No space left on device"), "{}", cluster.log(2));
        client.put("after", "2").await.expect("two nodes are a majority");
        std::fs::remove_file(image.root.join("filler")).expect("the test's own file");
        image.grow(1_024);
        cluster.start_all();
        eventually("node 2 to be level", || at(&address, &["range", "check", "--all", "--timeout", "60s"]).code == 0);
        all_there(&client, &acknowledged).await;
    });
}
