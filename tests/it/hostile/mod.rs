//! Connections that nobody should make, at all three ports of a node: they are let go, refused or bounded, whoever is well
//! behaved beside them is served all the time, and when they are gone the node is as it was.

mod memory;
mod silence;
mod streams;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_proto::v1;

use crate::support::cluster::{Cluster, http_get};
use crate::support::{eventually, runtime};

/// No request beside may take longer, on a machine that is busy with everything else.
const SLOWEST: Duration = Duration::from_secs(10);

/// A node of its own, and a client that asks it all the time.
pub struct Node {
    cluster: Cluster,
    beside: Option<Beside>,
}

struct Beside {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    /// The slowest request, and how many there were.
    thread: JoinHandle<Duration>,
}

impl Node {
    pub fn new() -> Self {
        let mut cluster = Cluster::new(1);
        cluster.start_all();
        let beside = Some(Beside::new(&cluster.node(1).client));
        Self { cluster, beside }
    }

    pub fn client(&self) -> &str {
        &self.cluster.node(1).client
    }

    pub fn peer(&self) -> &str {
        &self.cluster.node(1).peer
    }

    pub fn http(&self) -> &str {
        &self.cluster.node(1).http
    }

    /// The process's memory, in bytes.
    pub fn rss(&self) -> u64 {
        let pid = self.cluster.pid(1).expect("the node runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells it");
        line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number") << 10
    }

    /// A metric's value.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = http_get(self.http(), "/metrics").expect("the node serves it");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).expect("there is such a metric");
        line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).expect("a number")
    }

    /// Waits until the client beside was served some times more.
    pub fn serves(&self) {
        let served = &self.beside.as_ref().expect("until the end").served;
        let before = served.load(Ordering::Acquire);
        eventually("the client beside to be served", || served.load(Ordering::Acquire) >= before + 5);
    }

    /// The end: whoever was beside was served all the time, and the node is well.
    pub fn ends_well(mut self) {
        self.serves();
        let beside = self.beside.take().expect("until the end");
        beside.stop.store(true, Ordering::Release);
        let slowest = beside.thread.join().expect("every request beside was answered");
        assert!(slowest < SLOWEST, "a request beside took {slowest:?}");
        assert_eq!(http_get(self.http(), "/healthz").map(|(status, _)| status), Some(200));
        assert!(!self.cluster.log(1).contains("panicked"), "{}", self.cluster.log(1));
        assert_eq!(self.cluster.terminate(1), Some(0), "and it stops in order");
    }
}

impl Beside {
    fn new(address: &str) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count, address) = (Arc::clone(&stop), Arc::clone(&served), format!("http://{address}"));
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let mut kv = v1::kv_client::KvClient::connect(address).await.expect("the node listens");
                let mut slowest = Duration::ZERO;
                while !stopped.load(Ordering::Acquire) {
                    let begun = Instant::now();
                    let value = count.load(Ordering::Acquire).to_string();
                    let header = || Some(v1::RequestHeader { timeout_ms: 30_000, ..Default::default() });
                    let (key, value) = (Bytes::from_static(b"beside"), Bytes::from(value));
                    let put = v1::PutRequest {
                        header: header(),
                        key: key.clone(),
                        value: value.clone(),
                        if_absent: false,
                        ttl_ms: 0,
                    };
                    kv.put(put).await.expect("a put beside");
                    let get = v1::GetRequest { header: header(), key };
                    let got = kv.get(get).await.expect("a get beside").into_inner().record.expect("it was put");
                    assert_eq!(got.value, value);
                    slowest = slowest.max(begun.elapsed());
                    count.fetch_add(1, Ordering::AcqRel);
                }
                slowest
            })
        });
        Self { stop, served, thread }
    }
}
