//! What the network stack gives on loopback: operations that are answered without any work, three ways, with frames as large
//! as those of a put and its answer. The server is a process of its own, so that the kernel tells its CPU time from
//! that of the client.
//!
//! ```text
//! callers, one operation under way each (the closed loop of `compare run`)
//!    ├─ tonic unary:  a call each, over as many connections as `compare run` gives unary clients
//!    ├─ tonic stream: one connection, one stream; a message holds all that has come, or one operation
//!    └─ TCP:          one connection; a write holds the frames of all that have come
//! ```
//! Streams and TCP answer in order, so that an answer belongs to who has waited longest.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_benches::cluster::Result;
use flotilla_benches::rpc::Answerer;
use flotilla_benches::rpc::proto::echo_client::EchoClient;
use flotilla_benches::rpc::proto::echo_server::EchoServer;
use flotilla_benches::rpc::proto::{Operation, Operations, Outcome, Outcomes};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt};
use tonic::Streaming;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use super::figures::Measured;
use super::{KEYS, VALUE_BYTES};
use crate::cell::{Times, measure};
use crate::load::Load;
use crate::load::threads::sessions;
use crate::load::workload::Workload;
use crate::store::{Done, Failed, Session, connections};

/// Windows of HTTP/2, as the product's ports have them.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Most operations in one message or write.
const TOGETHER_MAX: usize = 1_024;
/// What a TCP read makes room for.
const READ_BYTES: usize = 64 << 10;

/// A way to bring an operation to a server and its answer back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    Unary,
    /// A message of the stream holds what has come since the last one was taken.
    Stream,
    /// A message of the stream holds one operation.
    StreamOfOne,
    Tcp,
}

/// A thing to measure: so many callers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub way: Way,
    pub callers: usize,
}

impl Network {
    pub fn all() -> Vec<Self> {
        let ways = [Way::Unary, Way::Stream, Way::StreamOfOne, Way::Tcp];
        let callers = |way| [1, 16, 256, 1_000].map(|callers| Self { way, callers });
        ways.into_iter().flat_map(callers).collect()
    }

    pub fn name(self) -> String {
        let way = match self.way {
            Way::Unary => "tonic, unary calls",
            Way::Stream => "tonic, stream, together as they come",
            Way::StreamOfOne => "tonic, stream, one in a message",
            Way::Tcp => "TCP, frames",
        };
        format!("{way}, {} under way", self.callers)
    }

    pub async fn measure(self, times: Times) -> Result<Measured> {
        let server = Process::start()?;
        let to = &server.addresses;
        match self.way {
            Way::Unary => self.load(async |callers| unary(to, callers).await, &server, times).await,
            Way::Stream => self.load(async |_| Ok(vec![stream(to, TOGETHER_MAX).await?]), &server, times).await,
            Way::StreamOfOne => self.load(async |_| Ok(vec![stream(to, 1).await?]), &server, times).await,
            Way::Tcp => self.load(async |_| Ok(vec![tcp(to).await?]), &server, times).await,
        }
    }

    async fn load<E: Echo>(
        self,
        make: impl AsyncFn(usize) -> Result<Vec<Echoed<E>>>,
        server: &Process,
        times: Times,
    ) -> Result<Measured> {
        let load =
            Load { workload: Workload::Put, clients: self.callers, value_bytes: VALUE_BYTES, keys: KEYS, seed: 1 };
        let echoes = sessions(self.callers, make).await?;
        let measured = measure(&echoes, &[server.child.id()], load, times).await?;
        let client_us = measured.load_cores * 1e6 / measured.per_second;
        Ok(Measured {
            per_second: measured.per_second,
            cpu_us: measured.server_us + client_us,
            server_us: Some(measured.server_us),
            others: measured.others,
        })
    }
}

/// Where the two servers listen.
#[derive(Clone, Debug)]
struct Addresses {
    grpc: String,
    tcp: String,
}

/// The servers' process: `compare answer`. It ends with this.
struct Process {
    child: Child,
    addresses: Addresses,
}

impl Process {
    fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("answer").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("the server has no output")?).read_line(&mut line)?;
        let (grpc, tcp) = line.trim().split_once(' ').ok_or("the server does not say where it listens")?;
        Ok(Self { addresses: Addresses { grpc: grpc.into(), tcp: tcp.into() }, child })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers until its input ends: whoever started it has ended then.
pub async fn answer() -> Result<()> {
    let Addresses { grpc, tcp } = serve().await?;
    println!("{grpc} {tcp}");
    Ok(tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await?.map(drop)?)
}

async fn serve() -> Result<Addresses> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addresses = Addresses { grpc: incoming.local_addr()?.to_string(), tcp: listener.local_addr()?.to_string() };
    let grpc = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(EchoServer::new(Answerer));
    tokio::spawn(grpc.serve_with_incoming(incoming));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_frames(stream));
        }
    });
    Ok(addresses)
}

/// What an operation is, with numbers as long as a request's header is.
fn operation(key: Bytes, value: Bytes) -> Operation {
    Operation { request_id: u64::MAX, range_id: 2, epoch_version: 1, key, value }
}

/// Its answer.
fn outcome() -> Outcome {
    Outcome { request_id: u64::MAX, version: VALUE_BYTES as u64 }
}

/// Brings an operation to the server, and waits for its answer.
trait Echo: Clone + Send + Sync + 'static {
    fn call(&self, operation: Operation) -> impl Future<Output = Done<()>> + Send;
}

/// As the generator of load knows it: puts, and nothing else.
#[derive(Clone)]
struct Echoed<E>(E);

impl<E> Echoed<E> {
    fn refused<T>() -> Done<T> {
        Err(Failed("an echo is loaded with puts alone".into()))
    }
}

impl<E: Echo> Session for Echoed<E> {
    async fn put(&self, key: Bytes, value: Bytes) -> Done<()> {
        self.0.call(operation(key, value)).await
    }

    async fn get(&self, _: Bytes) -> Done<Option<usize>> {
        Self::refused()
    }

    async fn scan(&self, _: Bytes, _: u32) -> Done<usize> {
        Self::refused()
    }

    async fn update(&self, _: Bytes, _: Bytes) -> Done<bool> {
        Self::refused()
    }
}

async fn connect(addresses: &Addresses) -> Result<EchoClient<Channel>> {
    let endpoint = Endpoint::try_from(format!("http://{}", addresses.grpc))?
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(EchoClient::new(endpoint.connect().await?))
}

async fn unary(addresses: &Addresses, callers: usize) -> Result<Vec<Echoed<EchoClient<Channel>>>> {
    let mut clients = Vec::new();
    for _ in 0..connections(callers) {
        clients.push(Echoed(connect(addresses).await?));
    }
    Ok(clients)
}

impl Echo for EchoClient<Channel> {
    async fn call(&self, operation: Operation) -> Done<()> {
        self.clone().one(operation).await.map(drop).map_err(Failed::of)
    }
}

/// An operation on its way, and who waits for its answer.
type Call = (Operation, oneshot::Sender<()>);

/// Callers that share a connection.
#[derive(Clone)]
struct Shared(mpsc::UnboundedSender<Call>);

impl Echo for Shared {
    async fn call(&self, operation: Operation) -> Done<()> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| Failed("the connection is gone".into());
        self.0.send((operation, answer)).map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))
    }
}

/// Those who wait, in the order in which they will be answered; `None`: nobody will be any more.
#[derive(Clone)]
struct Waiting(Arc<Mutex<Option<VecDeque<oneshot::Sender<()>>>>>);

impl Waiting {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(VecDeque::new()))))
    }

    fn all(&self) -> MutexGuard<'_, Option<VecDeque<oneshot::Sender<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, callers: impl Iterator<Item = oneshot::Sender<()>>) {
        match &mut *self.all() {
            Some(waiting) => waiting.extend(callers),
            None => callers.for_each(drop),
        }
    }

    fn answer(&self, count: usize) {
        let mut all = self.all();
        let waiting = all.iter_mut().flat_map(|waiting| waiting.drain(..count.min(waiting.len())));
        // A caller that is gone wants no answer.
        waiting.for_each(|caller| caller.send(()).unwrap_or_default());
    }

    fn end(&self) {
        *self.all() = None;
    }
}

/// Messages of the stream, made when the connection takes one.
struct Messages {
    queue: mpsc::UnboundedReceiver<Call>,
    calls: Vec<Call>,
    waiting: Waiting,
    together_max: usize,
}

impl Stream for Messages {
    type Item = Operations;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Operations>> {
        let Self { queue, calls, waiting, together_max } = &mut *self;
        if ready!(queue.poll_recv_many(context, calls, *together_max)) == 0 {
            return Poll::Ready(None);
        }
        let (operations, callers): (Vec<_>, Vec<_>) = calls.drain(..).unzip();
        waiting.add(callers.into_iter());
        Poll::Ready(Some(Operations { operations }))
    }
}

async fn stream(addresses: &Addresses, together_max: usize) -> Result<Echoed<Shared>> {
    let (send, queue) = mpsc::unbounded_channel();
    let waiting = Waiting::new();
    let messages = Messages { queue, calls: Vec::new(), waiting: waiting.clone(), together_max };
    let answers = connect(addresses).await?.stream(messages).await?.into_inner();
    tokio::spawn(take_answers(answers, waiting));
    Ok(Echoed(Shared(send)))
}

async fn take_answers(mut answers: Streaming<Outcomes>, waiting: Waiting) {
    while let Some(Ok(message)) = answers.next().await {
        waiting.answer(message.outcomes.len());
    }
    waiting.end();
}

async fn tcp(addresses: &Addresses) -> Result<Echoed<Shared>> {
    let stream = TcpStream::connect(&addresses.tcp).await?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let (send, mut queue) = mpsc::unbounded_channel::<Call>();
    let waiting = Waiting::new();
    let answered = waiting.clone();
    tokio::spawn(async move {
        let (mut calls, mut frames) = (Vec::new(), BytesMut::new());
        while queue.recv_many(&mut calls, TOGETHER_MAX).await > 0 {
            calls.iter().for_each(|(operation, _)| put_frame(&mut frames, operation));
            waiting.add(calls.drain(..).map(|(_, caller)| caller));
            if write.write_all_buf(&mut frames).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        let mut frames = BytesMut::with_capacity(READ_BYTES);
        while read.read_buf(&mut frames).await.is_ok_and(|bytes| bytes > 0) {
            answered.answer(take_frames(&mut frames));
        }
        answered.end();
    });
    Ok(Echoed(Shared(send)))
}

/// A connection's end at the server.
async fn answer_frames(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut frames, mut answers) = (BytesMut::with_capacity(READ_BYTES), BytesMut::new());
    while stream.read_buf(&mut frames).await? > 0 {
        (0..take_frames(&mut frames)).for_each(|_| put_frame(&mut answers, &outcome()));
        stream.write_all_buf(&mut answers).await?;
    }
    Ok(())
}

/// Its length in four bytes, and a message.
fn put_frame(frames: &mut BytesMut, message: &impl Message) {
    let length = message.encoded_len();
    frames.reserve(4 + length);
    frames.put_u32(u32::try_from(length).expect("operations of the limits are small"));
    message.encode(frames).expect("there is room");
}

/// Takes all whole frames off; how many there were.
fn take_frames(frames: &mut BytesMut) -> usize {
    let mut count = 0;
    while let Some(length) = frames.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize)
        && frames.len() >= 4 + length
    {
        frames.advance(4 + length);
        count += 1;
    }
    frames.reserve(READ_BYTES);
    count
}

#[cfg(test)]
mod tests {
    use flotilla_proto::v1;

    use super::*;
    use crate::load::workload::key;

    fn put() -> Operation {
        operation(key(1), vec![1; VALUE_BYTES].into())
    }

    #[tokio::test]
    async fn each_way_is_answered() {
        async fn call(echo: &Echoed<impl Echo>) {
            let calls = (0..100).map(|number| {
                let echo = echo.clone();
                tokio::spawn(async move { echo.put(key(number), vec![1; VALUE_BYTES].into()).await })
            });
            for call in calls.collect::<Vec<_>>() {
                call.await.expect("ended").expect("answered");
            }
        }
        let addresses = serve().await.expect("listening");
        call(&unary(&addresses, 1).await.expect("connected")[0]).await;
        call(&stream(&addresses, TOGETHER_MAX).await.expect("connected")).await;
        call(&stream(&addresses, 1).await.expect("connected")).await;
        call(&tcp(&addresses).await.expect("connected")).await;
    }

    #[test]
    fn frames_are_taken_whole() {
        let mut frames = BytesMut::new();
        put_frame(&mut frames, &put());
        put_frame(&mut frames, &outcome());
        let rest = frames.split_off(frames.len() - 1);
        assert_eq!(take_frames(&mut frames), 1);
        assert_eq!(take_frames(&mut frames), 0);
        frames.unsplit(rest);
        assert_eq!((take_frames(&mut frames), frames.len()), (1, 0));
    }

    #[test]
    fn frames_are_as_large_as_those_of_a_put() {
        const APART: usize = 24;
        let header = v1::RequestHeader {
            range_id: 2,
            epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
            cluster_id: u64::MAX,
            ..Default::default()
        };
        let Operation { key, value, .. } = put();
        let request = v1::PutRequest { header: Some(header), key, value, ..Default::default() };
        assert!(request.encoded_len().abs_diff(put().encoded_len()) <= APART);
        let header =
            v1::ResponseHeader { cluster_id: u64::MAX, node_id: 1, range_id: 2, term: 6, ..Default::default() };
        let result = v1::WriteResult { applied: true, version: 1_000, ..Default::default() };
        let response = v1::PutResponse { header: Some(header), result: Some(result) };
        assert!(response.encoded_len().abs_diff(outcome().encoded_len()) <= APART);
    }
}
