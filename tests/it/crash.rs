//! Kills of real processes under load: nothing acknowledged is lost, nothing is invented, and every key's history is
//! linearizable, with unknown outcomes left open.

use crate::support::cluster::Cluster;
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::{Rng, seed};
use crate::support::{amount, eventually_async, runtime};

const CLIENTS: u64 = 8;
/// Operations between two kills.
const OPERATIONS_PER_ROUND: usize = 400;

/// Whom a round kills.
#[derive(Debug)]
enum Victim {
    Leader,
    Follower,
    All,
}

/// Runs `rounds` kills under load and checks what the clients were told.
fn kill_under_load(rounds: u64, victim: impl Fn(u64, &mut Rng) -> Victim) {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::three();
    let runtime = runtime();
    runtime.block_on(async {
        let recorder = Recorder::new();
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let tasks: Vec<_> =
            (0..CLIENTS).map(|id| tokio::spawn(recorder.clone().run(id, client.clone(), seed))).collect();
        let mut kills = 0;
        for round in 0..rounds {
            let target = recorder.len() + OPERATIONS_PER_ROUND;
            eventually_async("the clients to go on", || async { recorder.len() >= target }).await;
            match victim(round, &mut rng) {
                Victim::All => {
                    for id in 1..=3 {
                        cluster.kill(id);
                    }
                    kills += 3;
                    cluster.start_all();
                }
                one => {
                    let id = pick(&client, &one, &mut rng).await;
                    cluster.kill(id);
                    kills += 1;
                    let target = recorder.len() + OPERATIONS_PER_ROUND / 2;
                    eventually_async("two nodes to serve", || async { recorder.len() >= target }).await;
                    cluster.start_all();
                }
            }
        }
        recorder.stop();
        for task in tasks {
            task.await.expect("clients do not panic");
        }
        recorder.read_all(&client).await;
        println!("{kills} kills, in {rounds} rounds, {}", recorder.check());
    });
}

/// A node that leads the range of a hot key, or one that does not.
async fn pick(client: &flotilla_router::Client, victim: &Victim, rng: &mut Rng) -> u64 {
    let ranges = loop {
        if let Ok(ranges) = client.list_ranges().await {
            break ranges.ranges;
        }
    };
    let led = &ranges[rng.below(ranges.len() as u64) as usize];
    let leader = led.leader_node_id.clamp(1, 3);
    match victim {
        Victim::Follower => leader % 3 + 1,
        _ => leader,
    }
}

#[test]
fn a_killed_leader_loses_nothing_acknowledged() {
    kill_under_load(10, |_, _| Victim::Leader);
}

#[test]
fn a_killed_follower_loses_nothing_acknowledged() {
    kill_under_load(5, |_, _| Victim::Follower);
}

#[test]
fn all_killed_at_once_lose_nothing_acknowledged() {
    kill_under_load(5, |_, _| Victim::All);
}

#[test]
fn random_kills_lose_nothing_acknowledged() {
    kill_under_load(amount("FLOTILLA_KILLS", 20), |_, rng| match rng.below(4) {
        0 => Victim::All,
        1 => Victim::Follower,
        _ => Victim::Leader,
    });
}
