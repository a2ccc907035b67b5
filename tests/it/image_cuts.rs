//! Power cuts of a real file system: three nodes on ext4 in a file, whose device is copied while they are in the middle of writing.
//! The copy holds what a machine without power would have: neither what the page cache had still to write nor what the file system had
//! not yet journalled. The cluster goes on from the copy, again and again, and nothing that was acknowledged is lost.
//!
//! That the tests can fail: docs/reliability.md.

use crate::support::cluster::Cluster;
use crate::support::image::Image;
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::{Rng, seed};
use crate::support::{amount, eventually_async, runtime};

const NODES: u64 = 3;
const CLIENTS: u64 = 8;
const CUTS: u64 = 4;
const IMAGE_MIB: u64 = 256;
/// Operations between two cuts, at most.
const OPERATIONS_PER_ROUND: u64 = 400;

#[test]
fn a_copied_file_system_holds_all_that_was_acknowledged() {
    let mut cluster = Cluster::new(NODES);
    let Some(mut image) = Image::new(IMAGE_MIB) else { return };
    let (seed, cuts) = (seed(), amount("FLOTILLA_CUTS", CUTS));
    let mut rng = Rng::new(seed);
    (1..=NODES).for_each(|id| cluster.lay_below(id, &image.root));
    cluster.start_all();
    runtime().block_on(async {
        let recorder = Recorder::new();
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let tasks: Vec<_> =
            (0..CLIENTS).map(|id| tokio::spawn(recorder.clone().run(id, client.clone(), seed))).collect();
        let mut taken_back = 0;
        for _ in 0..cuts {
            let target = recorder.len() + (OPERATIONS_PER_ROUND / 2 + rng.below(OPERATIONS_PER_ROUND / 2)) as usize;
            eventually_async("the clients to go on", || async { recorder.len() >= target }).await;
            (1..=NODES).for_each(|id| cluster.signal(id, libc::SIGSTOP));
            image.copy();
            let written = image.bytes();
            (1..=NODES).for_each(|id| cluster.kill(id));
            image.restore();
            taken_back += written.saturating_sub(image.bytes());
            cluster.start_all();
        }
        recorder.stop();
        for task in tasks {
            task.await.expect("clients do not panic");
        }
        recorder.read_all(&client).await;
        println!(
            "{cuts} power cuts of all nodes, by copies that lack {taken_back} bytes of their files, {}",
            recorder.check()
        );
    });
}
