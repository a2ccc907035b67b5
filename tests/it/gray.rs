//! Gray failure of real nodes: one that is slow, or that hears nobody, and works all the same. What clients get done in numbers
//! is measured by `make gray`; here: leaders leave, nobody is disturbed, and what was acknowledged is linearizable.

use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::v1;
use flotilla_router::Client;
use tokio::task::JoinHandle;

use crate::powercut::{Control, PowerCut};
use crate::support::cluster::{Cluster, routes};
use crate::support::proxy::Proxy;
use crate::support::recorder::{CLIENT_TIMEOUT, Recorder};
use crate::support::rng::seed;
use crate::support::{PATIENCE, eventually, eventually_async, eventually_within, runtime};

const CLIENTS: u64 = 4;
/// The node that is hit.
const HIT: u64 = 2;
/// Far beyond what any disk of the others takes for a sync, on a machine that many tests share.
const SLOW_SYNC_US: u64 = 300_000;
const OPERATIONS: usize = 300;

/// Clients at work, and what they were told.
struct Load {
    recorder: Recorder,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let recorder = Recorder::new();
        let run = |id| tokio::spawn(recorder.clone().run(id, client.clone(), seed()));
        Self { tasks: (0..CLIENTS).map(run).collect(), recorder }
    }

    async fn goes_on(&self, what: &str) {
        let target = self.recorder.len() + OPERATIONS;
        eventually_async(what, || async { self.recorder.len() >= target }).await;
    }

    async fn end(self, client: &Client) {
        self.recorder.stop();
        for task in self.tasks {
            task.await.expect("clients do not panic");
        }
        self.recorder.read_all(client).await;
        println!("{}", self.recorder.check());
    }
}

async fn led(client: &Client, address: &str) -> Option<u32> {
    Some(client.node_status_at(address).await.ok()?.ranges_led)
}

async fn says_that_it_is_slow(client: &Client, address: &str) -> bool {
    let status = client.node_status_at(address).await.expect("the node runs");
    status.problems.iter().any(|problem| problem.starts_with("this node is slow"))
}

/// The ranges of clients, as one node knows them.
fn default_ranges(address: &str) -> Vec<v1::RangeStatus> {
    let mut ranges = routes(address).expect("the node runs").ranges;
    ranges.retain(|range| range.descriptor.as_ref().is_some_and(|range| range.keyspace_id == DEFAULT_KEYSPACE.0));
    assert!(!ranges.is_empty());
    ranges
}

#[test]
fn leaders_leave_a_node_with_a_slow_disk_until_it_is_well() {
    let mut cluster = Cluster::new(3);
    let control = cluster.directory().join("sync-control");
    cluster.set_environment(HIT, PowerCut::faults_only(None).control(&control).vars());
    cluster.start_all();
    let control = Control::open(&control).expect("the shim made it");
    let hit = cluster.node(HIT).client.clone();
    runtime().block_on(async {
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let load = Load::start(&client);
        eventually_async("the node to lead something", || async { led(&client, &hit).await > Some(0) }).await;
        load.goes_on("the clients, while all is well").await;

        control.set_delay_us(SLOW_SYNC_US);
        eventually_async("the leaders to leave", || async { led(&client, &hit).await == Some(0) }).await;
        assert!(says_that_it_is_slow(&client, &hit).await);
        load.goes_on("the clients, while a disk is slow").await;
        assert_eq!(led(&client, &hit).await, Some(0), "it leads nothing as long as it is slow");

        control.set_delay_us(0);
        // Ten good seconds on end it takes, and a process that stood still counts that for twenty times as long.
        let is_well = || async { !says_that_it_is_slow(&client, &hit).await };
        eventually_within(3 * PATIENCE, "the node to be well", is_well).await;
        load.end(&client).await;
    });
}

#[test]
fn a_node_that_hears_nobody_loses_what_it_leads_and_disturbs_nobody() {
    let mut cluster = Cluster::new(3);
    let proxy = Proxy::to(&cluster.node(HIT).peer);
    for id in 1..=3 {
        let advertise = ["--advertise-peer-addr", &proxy.address];
        cluster.set_args(if id == HIT { &advertise } else { &[] });
        cluster.start(id);
        cluster.wait_initialised(id);
    }
    cluster.start_all();
    let other = cluster.node(1).client.clone();
    runtime().block_on(async {
        let client = cluster.client(CLIENT_TIMEOUT).await;
        let load = Load::start(&client);
        load.goes_on("the clients, while all is well").await;

        proxy.cut(true);
        let led_elsewhere = || default_ranges(&other).iter().all(|range| ![0, HIT].contains(&range.leader_node_id));
        eventually("others to lead all ranges", led_elsewhere);
        load.goes_on("the clients, while it hears nobody").await;
        let terms = || default_ranges(&other).iter().map(|range| range.term).collect::<Vec<u64>>();
        let before = terms();
        load.goes_on("the clients, longer").await;
        assert_eq!(terms(), before, "it asks for votes, and is heard: nobody steps down for that");

        proxy.cut(false);
        load.end(&client).await;
    });
    cluster.wait_replicated();
    let hit = cluster.node(HIT).client.clone();
    eventually("it to lead again", || {
        runtime().block_on(async { led(&cluster.client(CLIENT_TIMEOUT).await, &hit).await > Some(0) })
    });
}
