//! Nodes over loopback, in this process: the Kv stream and the Admin service over one shared truth,
//! with a few ways to misbehave.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use flotilla_proto::{Error, NodeId, RangeId, cluster, v1};
use flotilla_router::core::header_of;
use flotilla_router::{Client, ClientConfig};
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

use crate::fake_truth::Truth;

/// How the nodes behave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Manner {
    #[default]
    Answer,
    /// Requests are kept until the manner changes, and answered in reverse order then.
    Hold,
    /// Each stream is told that the node stops, and what it sent is answered; whoever sends more on it breaks it.
    Leave,
    /// The stream ends when a request arrives; nothing is applied.
    Break,
    /// Every answer is larger than a decoder accepts.
    Flood,
}

/// Nodes 1 and 2, with what they share.
#[derive(Clone)]
pub struct World {
    truth: Arc<Mutex<Truth>>,
    manner: watch::Sender<Manner>,
    changed: watch::Sender<u64>,
}

impl World {
    pub fn new() -> Self {
        Self {
            truth: Arc::new(Mutex::new(Truth::new())),
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

/// A client's settings: the same chances each time.
pub fn config() -> ClientConfig {
    ClientConfig { seed: Some(1), connect_timeout: Duration::from_millis(500), ..ClientConfig::default() }
}

/// Both nodes, and a client that knows the first.
pub async fn cluster() -> (World, [Node; 2], Client) {
    cluster_with(config()).await
}

/// The same, with other settings.
pub async fn cluster_with(config: ClientConfig) -> (World, [Node; 2], Client) {
    let world = World::new();
    let nodes = [world.start(1), world.start(2)];
    let client = Client::connect([nodes[0].address.to_string()], config).await.expect("node 1 answers");
    (world, nodes, client)
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
        let header = header_of(&body).expect("a header").clone();
        cluster::check(truth.cluster, header.cluster_id)?;
        let keyspace = truth.admit(self.node, &header)?;
        Ok(truth.of_keyspace(keyspace, |truth| self.answer(truth, RangeId(header.range_id), body)))
    }

    fn answer(&self, truth: &mut Truth, range: RangeId, body: Body) -> Answer {
        let header = Some(v1::ResponseHeader { node_id: self.node.0, range_id: range.0, ..Default::default() });
        match body {
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
        }
    }

    async fn run(
        self,
        mut requests: Streaming<v1::StreamRequest>,
        answers: mpsc::Sender<Result<v1::StreamResponse, Status>>,
    ) {
        let mut manner = self.world.manner.subscribe();
        let mut held: Vec<v1::Request> = vec![];
        let mut leaving = false;
        loop {
            tokio::select! {
                message = requests.message() => {
                    let (Ok(Some(message)), false) = (message, leaving) else { return };
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
                Manner::Leave if !leaving => {
                    leaving = true;
                    let farewell = v1::StreamResponse { responses: vec![], closing: true };
                    let _ = answers.send(Ok(farewell)).await;
                }
                Manner::Leave | Manner::Answer | Manner::Flood => {}
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
            if answers.send(Ok(v1::StreamResponse { responses, closing: false })).await.is_err() {
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
        let truth = self.world.truth();
        let descriptor = truth.ranges.get(&range).cloned();
        v1::RangeStatus { descriptor, leader_node_id: truth.leaders[&range].0, term: 1, ..Default::default() }
    }

    pub(super) fn lead(&self, range: u64) -> Result<(), Status> {
        let truth = self.world.truth();
        if !truth.ranges.contains_key(&range) {
            return Err(Error::RangeNotFound { range: RangeId(range) }.into());
        }
        let leader = truth.leaders[&range];
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

    async fn delete_range(&self, _: Request<v1::DeleteRangeRequest>) -> Rpc<v1::DeleteRangeResponse> {
        only_streams()
    }
}
