//! Nodes over loopback, in this process: the Kv stream and the Admin service over one shared truth,
//! with a few ways to misbehave. No replication: the truth is a map.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::{Error, NodeId, RangeId, v1};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use v1::admin_server::AdminServer;
use v1::kv_server::{Kv, KvServer};
use v1::placement_server::PlacementServer;
use v1::request::Body;
use v1::response::Body as Answer;
use v1::write_op::Op;

/// How the nodes behave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Manner {
    #[default]
    Answer,
    /// Requests are kept until the manner changes, and answered in reverse order then.
    Hold,
    /// The stream ends when a request arrives; nothing is applied.
    Break,
    /// Every answer is larger than a decoder accepts.
    Flood,
}

#[derive(Default)]
pub struct Truth {
    pub data: BTreeMap<Bytes, (Bytes, u64)>,
    pub leaders: BTreeMap<u64, NodeId>,
    pub addresses: BTreeMap<u64, SocketAddr>,
    /// Keys asked for, in order of arrival.
    pub arrived: Vec<Bytes>,
    /// Orders given, in order of arrival, in words.
    pub orders: Vec<String>,
    /// Orders are taken and never answered.
    pub hold_orders: bool,
    pub keyspaces: BTreeMap<String, v1::Keyspace>,
    /// Messages that requests arrived in, and streams opened.
    pub batches: usize,
    pub streams: usize,
    version: u64,
}

/// Nodes 1 and 2, with r2 [, m) and r3 [m, ).
#[derive(Clone)]
pub struct World {
    truth: Arc<Mutex<Truth>>,
    manner: watch::Sender<Manner>,
    changed: watch::Sender<u64>,
}

impl World {
    pub fn new() -> Self {
        let truth =
            Truth { leaders: BTreeMap::from([(1, NodeId(2)), (2, NodeId(1)), (3, NodeId(2))]), ..Truth::default() };
        Self {
            truth: Arc::new(Mutex::new(truth)),
            manner: watch::Sender::new(Manner::Answer),
            changed: watch::Sender::new(0),
        }
    }

    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().expect("no test panics while it holds the truth")
    }

    pub fn behave(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    /// Waits until the truth is as wanted.
    pub async fn until(&self, wanted: impl Fn(&Truth) -> bool) {
        let mut changed = self.changed.subscribe();
        while !wanted(&self.truth()) {
            changed.changed().await.expect("the world has a sender itself");
        }
    }

    /// Starts a node on a free port.
    pub fn start(&self, node: u64) -> Node {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        listener.set_nonblocking(true).expect("sockets can be made non-blocking");
        let address = listener.local_addr().expect("it is bound");
        self.truth().addresses.insert(node, address);
        let service = Service { node: NodeId(node), world: self.clone() };
        let runtime =
            Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads can be started");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("it is non-blocking");
            tonic::transport::Server::builder()
                .add_service(KvServer::new(service.clone()))
                .add_service(PlacementServer::new(service.clone()))
                .add_service(AdminServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        Node { address, runtime: Some(runtime) }
    }
}

/// A node in threads of its own, so that it can be ended with all its connections.
pub struct Node {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Node {
    /// Ends the node; its connections are cut.
    pub async fn stop(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5)));
            ended.await.expect("no panic");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
pub(super) struct Service {
    pub(super) node: NodeId,
    pub(super) world: World,
}

pub(super) fn descriptor(range: u64) -> v1::RangeDescriptor {
    let (start, end) = if range == 2 { ("", "m") } else { ("m", "") };
    v1::RangeDescriptor {
        range_id: range,
        keyspace_id: 1,
        start: start.into(),
        end: end.into(),
        epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
        replicas: (1..=2).map(|node| v1::ReplicaDescriptor { replica_id: node, node_id: node, role: 0 }).collect(),
        next_replica_id: 3,
    }
}

impl Truth {
    fn put(&mut self, key: Bytes, value: Bytes) -> v1::WriteResult {
        self.version += 1;
        let existed = self.data.insert(key, (value, self.version)).is_some();
        v1::WriteResult { applied: true, version: self.version, existed, current: None }
    }

    fn write(&mut self, op: v1::WriteOp) -> v1::WriteResult {
        match op.op.expect("the client names an operation") {
            Op::Put(put) => match self.data.get(&put.key) {
                Some((_, version)) if put.if_absent => {
                    v1::WriteResult { version: *version, existed: true, ..Default::default() }
                }
                _ => self.put(put.key, put.value),
            },
            Op::Delete(delete) => {
                let existed = self.data.remove(&delete.key).is_some();
                v1::WriteResult { applied: true, existed, ..Default::default() }
            }
            Op::CompareAndSwap(swap) => self.swap(swap),
        }
    }

    fn swap(&mut self, swap: v1::CompareAndSwap) -> v1::WriteResult {
        use v1::compare_and_swap::Expect;
        let found = self.data.get(&swap.key).cloned();
        let holds = match (swap.expect.expect("the client names a condition"), &found) {
            (Expect::Value(value), Some((current, _))) => value == *current,
            (Expect::Version(version), Some((_, current))) => version == *current,
            (Expect::Absent(_), found) => found.is_none(),
            _ => false,
        };
        match (holds, swap.new_value) {
            (true, Some(value)) => self.put(swap.key, value),
            (true, None) => {
                self.data.remove(&swap.key);
                v1::WriteResult { applied: true, existed: true, ..Default::default() }
            }
            (false, _) => v1::WriteResult {
                version: found.as_ref().map_or(0, |(_, version)| *version),
                existed: found.is_some(),
                current: found.map(|(value, version)| v1::Record { key: Bytes::new(), value, version }),
                applied: false,
            },
        }
    }

    fn read(&self, key: &Bytes) -> Option<v1::Record> {
        let (value, version) = self.data.get(key)?;
        Some(v1::Record { key: Bytes::new(), value: value.clone(), version: *version })
    }

    fn scan(&self, scan: &v1::ScanRequest) -> v1::ScanResponse {
        let inside = |key: &Bytes| *key >= scan.start && (scan.end.is_empty() || *key < scan.end);
        let mut records: Vec<v1::Record> = self
            .data
            .iter()
            .filter(|(key, _)| inside(key))
            .map(|(key, (value, version))| v1::Record { key: key.clone(), value: value.clone(), version: *version })
            .collect();
        if scan.reverse {
            records.reverse();
        }
        let limit = scan.limit as usize;
        let mut next_token = Bytes::new();
        if limit > 0 && records.len() > limit {
            next_token = if scan.reverse { records[limit - 1].key.clone() } else { records[limit].key.clone() };
            records.truncate(limit);
        }
        v1::ScanResponse { count: records.len() as u64, records, next_token, ..Default::default() }
    }
}

impl Service {
    fn arrive(&self, message: &v1::StreamRequest) {
        let mut truth = self.world.truth();
        truth.batches += 1;
        for request in &message.requests {
            let key = match request.body.as_ref().expect("a body") {
                Body::Get(get) => get.key.clone(),
                Body::Write(batch) => match batch.ops[0].op.as_ref().expect("an operation") {
                    Op::Put(put) => put.key.clone(),
                    Op::Delete(delete) => delete.key.clone(),
                    Op::CompareAndSwap(swap) => swap.key.clone(),
                },
                Body::MultiGet(get) => get.keys[0].clone(),
                Body::Scan(scan) => scan.start.clone(),
            };
            truth.arrived.push(key);
        }
        drop(truth);
        self.world.changed.send_modify(|count| *count += 1);
    }

    fn serve(&self, request: v1::Request) -> v1::Response {
        let body = self.carry_out(request.body.expect("a body"));
        let body = body.unwrap_or_else(|error| Answer::Error((&error).into()));
        v1::Response { id: request.id, body: Some(body) }
    }

    fn carry_out(&self, body: Body) -> Result<Answer, Error> {
        let mut truth = self.world.truth();
        let header = match &body {
            Body::Get(request) => request.header.as_ref(),
            Body::MultiGet(request) => request.header.as_ref(),
            Body::Write(request) => request.header.as_ref(),
            Body::Scan(request) => request.header.as_ref(),
        };
        let range = RangeId(header.expect("a header").range_id);
        let leader = truth.leaders[&range.0];
        if leader != self.node {
            return Err(Error::NotLeader { range, leader: Some(leader), descriptors: vec![descriptor(range.0)] });
        }
        let header = Some(v1::ResponseHeader { node_id: self.node.0, range_id: range.0, ..Default::default() });
        Ok(match body {
            Body::Get(get) => Answer::Get(v1::GetResponse { header, record: truth.read(&get.key) }),
            Body::MultiGet(get) => {
                let results = get.keys.iter().map(|key| v1::MultiGetResult { record: truth.read(key) }).collect();
                Answer::MultiGet(v1::MultiGetResponse { header, results })
            }
            Body::Scan(scan) => Answer::Scan(v1::ScanResponse { header, ..truth.scan(&scan) }),
            Body::Write(batch) => {
                let result = |op| v1::BatchResult { outcome: Some(v1::batch_result::Outcome::Result(truth.write(op))) };
                Answer::Write(v1::BatchResponse { header, results: batch.ops.into_iter().map(result).collect() })
            }
        })
    }

    async fn run(
        self,
        mut requests: Streaming<v1::StreamRequest>,
        answers: mpsc::Sender<Result<v1::StreamResponse, Status>>,
    ) {
        let mut manner = self.world.manner.subscribe();
        let mut held: Vec<v1::Request> = vec![];
        loop {
            tokio::select! {
                message = requests.message() => {
                    let Ok(Some(message)) = message else { return };
                    self.arrive(&message);
                    held.extend(message.requests);
                }
                changed = manner.changed() => if changed.is_err() { return },
            }
            let now = *manner.borrow_and_update();
            match now {
                Manner::Hold => continue,
                Manner::Break if held.is_empty() => continue,
                Manner::Break => {
                    let _ = answers.send(Err(Status::unavailable("broken by the test"))).await;
                    return;
                }
                Manner::Answer | Manner::Flood => {}
            }
            let flood = |response: v1::Response| match now {
                Manner::Flood => {
                    let record = v1::Record { value: vec![0; 5 << 20].into(), ..Default::default() };
                    let body = Answer::Get(v1::GetResponse { header: None, record: Some(record) });
                    v1::Response { body: Some(body), ..response }
                }
                _ => response,
            };
            let responses = held.drain(..).rev().map(|request| flood(self.serve(request))).collect();
            if answers.send(Ok(v1::StreamResponse { responses })).await.is_err() {
                return;
            }
        }
    }

    pub(super) fn nodes(&self) -> Vec<v1::NodeInfo> {
        let truth = self.world.truth();
        let info = |(node, address): (&u64, &SocketAddr)| v1::NodeInfo {
            node_id: *node,
            client_addr: address.to_string(),
            live: true,
            ..Default::default()
        };
        truth.addresses.iter().map(info).collect()
    }

    pub(super) fn status(&self, range: u64) -> v1::RangeStatus {
        let leader = self.world.truth().leaders[&range];
        v1::RangeStatus { descriptor: Some(descriptor(range)), leader_node_id: leader.0, term: 1, data_bytes: 0 }
    }

    pub(super) fn lead(&self, range: u64) -> Result<(), Status> {
        let known: BTreeSet<u64> = [1, 2, 3].into();
        if !known.contains(&range) {
            return Err(Error::RangeNotFound { range: RangeId(range) }.into());
        }
        let leader = self.world.truth().leaders[&range];
        if leader == self.node {
            return Ok(());
        }
        Err(Error::NotLeader { range: RangeId(range), leader: Some(leader), descriptors: vec![] }.into())
    }
}

pub(super) type Rpc<A> = Result<Response<A>, Status>;

fn only_streams<A>() -> Rpc<A> {
    Err(Status::unimplemented("the client uses the stream"))
}

#[tonic::async_trait]
impl Kv for Service {
    type StreamStream = ReceiverStream<Result<v1::StreamResponse, Status>>;

    async fn stream(&self, request: Request<Streaming<v1::StreamRequest>>) -> Rpc<Self::StreamStream> {
        self.world.truth().streams += 1;
        self.world.changed.send_modify(|count| *count += 1);
        let (answers, responses) = mpsc::channel(16);
        tokio::spawn(self.clone().run(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Rpc<v1::GetResponse> {
        only_streams()
    }

    async fn multi_get(&self, _: Request<v1::MultiGetRequest>) -> Rpc<v1::MultiGetResponse> {
        only_streams()
    }

    async fn put(&self, _: Request<v1::PutRequest>) -> Rpc<v1::PutResponse> {
        only_streams()
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Rpc<v1::DeleteResponse> {
        only_streams()
    }

    async fn compare_and_swap(&self, _: Request<v1::CompareAndSwapRequest>) -> Rpc<v1::CompareAndSwapResponse> {
        only_streams()
    }

    async fn batch(&self, _: Request<v1::BatchRequest>) -> Rpc<v1::BatchResponse> {
        only_streams()
    }

    async fn scan(&self, _: Request<v1::ScanRequest>) -> Rpc<v1::ScanResponse> {
        only_streams()
    }
}
