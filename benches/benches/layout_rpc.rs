//! CPU of bringing one operation to a node and its answer back: unary calls, items of batches on a
//! stream, items of raw frames.
//!
//! Client and server are two tokio runtimes of one thread each in this process, joined by loopback
//! TCP; CPU and waits are those of the whole process, so of both ends together. Every way keeps the
//! same number of operations in flight. An operation is a 16-byte key with a 256-byte value.
//!
//! `cargo bench -p flotilla-benches --bench layout_rpc -- [--reps N] [--seconds S] [--inflight N]`

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use flotilla_benches::args::{Args, Extra};
use flotilla_benches::rpc::frames::frames_client::FramesClient;
use flotilla_benches::rpc::frames::frames_server::FramesServer;
use flotilla_benches::rpc::proto::echo_client::EchoClient;
use flotilla_benches::rpc::proto::echo_server::EchoServer;
use flotilla_benches::rpc::proto::{Operation, Operations};
use flotilla_benches::rpc::{Answerer, put_item, take_item};
use flotilla_benches::stats::Table;
use flotilla_benches::usage::Cpu;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};

const EXTRAS: &[Extra] = &[Extra { flag: "inflight", default: 256, help: "operations in flight" }];
const BATCHES: [usize; 3] = [1, 16, 64];
const KEY: &[u8] = &[0x4B; 16];
const VALUE: &[u8] = &[0x5A; 256];
/// More than what is in flight here. Below it not only flow control waits: h2 gives up a connection whose
/// unread DATA frames of less than 256 B add up to half of the connection's window.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const WARM_UP: Duration = Duration::from_millis(50);

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args = Args::parse("CPU per operation: unary call, stream item, raw frame item", 0.4, EXTRAS);
    let inflight = args.extra("inflight") as usize;
    let period = Duration::from_secs_f64(args.seconds);
    let server = runtime("server")?;
    let client = runtime("client")?;
    let address = serve(&server)?;
    let endpoint = Channel::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let channel = client.block_on(endpoint.connect())?;

    let columns = ["CPU us/operation", "operations/s", "waits/operation"];
    let mut table = Table::new(format!("{inflight} operations in flight, client and server together"), &columns);
    for _ in 0..args.reps {
        table.add("unary call", &client.block_on(unary(channel.clone(), inflight, period))?);
        for batch in BATCHES {
            let measured = client.block_on(stream(channel.clone(), inflight, batch, period))?;
            table.add(format!("stream, batches of {batch}"), &measured);
        }
        for batch in BATCHES {
            let measured = client.block_on(raw_frames(channel.clone(), inflight, batch, period))?;
            table.add(format!("raw frames of {batch}"), &measured);
        }
    }
    table.print();
    drop(client);
    server.shutdown_background();
    Ok(())
}

fn runtime(name: &str) -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()
}

fn serve(runtime: &Runtime) -> std::io::Result<SocketAddr> {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let serving = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(EchoServer::new(Answerer))
        .add_service(FramesServer::new(Answerer))
        .serve_with_incoming(TcpListenerStream::new(listener));
    runtime.spawn(serving);
    Ok(address)
}

/// Counts operations from the end of the warm-up to the end of the period.
struct Meter {
    warm: Instant,
    end: Instant,
    began: Option<(Instant, Cpu)>,
    operations: u64,
}

impl Meter {
    fn new(period: Duration) -> Self {
        let warm = Instant::now() + WARM_UP;
        Self { warm, end: warm + period, began: None, operations: 0 }
    }

    /// Notes operations done; false once the period is over.
    fn add(&mut self, operations: u64) -> bool {
        let now = Instant::now();
        match self.began {
            None if now >= self.warm => self.began = Some((now, Cpu::now())),
            None => {}
            Some(_) => self.operations += operations,
        }
        now < self.end
    }

    fn result(&self) -> Result<[f64; 3], Failure> {
        let (start, cpu) = self.began.ok_or("no operation was done in time")?;
        let cost = Cpu::now().since(cpu);
        let operations = self.operations as f64;
        Ok([cost.us / operations, operations / start.elapsed().as_secs_f64(), cost.waits / operations])
    }
}

fn operation(request_id: u64) -> Operation {
    Operation {
        request_id,
        range_id: request_id % 16,
        epoch_version: 1,
        key: Bytes::from_static(KEY),
        value: Bytes::from_static(VALUE),
    }
}

async fn unary(channel: Channel, inflight: usize, period: Duration) -> Result<[f64; 3], Failure> {
    let (done, mut answers) = mpsc::channel(inflight);
    let mut callers = JoinSet::new();
    for caller in 0..inflight as u64 {
        let (mut client, done) = (EchoClient::new(channel.clone()), done.clone());
        callers.spawn(async move {
            // Ends when nobody counts any more.
            while done.send(client.one(operation(caller)).await.map(|_| ())).await.is_ok() {}
        });
    }
    let mut meter = Meter::new(period);
    while let Some(answer) = answers.recv().await {
        answer?;
        if !meter.add(1) {
            break;
        }
    }
    let result = meter.result();
    drop(answers);
    while callers.join_next().await.is_some() {}
    result
}

async fn stream(channel: Channel, inflight: usize, batch: usize, period: Duration) -> Result<[f64; 3], Failure> {
    let next = || Operations { operations: (0..batch as u64).map(operation).collect() };
    let window = (inflight / batch).max(1);
    let (send, requests) = mpsc::channel(window);
    for _ in 0..window {
        send.send(next()).await?;
    }
    let answers = EchoClient::new(channel).stream(ReceiverStream::new(requests)).await?;
    let mut answers = answers.into_inner();
    let mut meter = Meter::new(period);
    while let Some(answer) = answers.next().await {
        if !meter.add(answer?.outcomes.len() as u64) {
            break;
        }
        send.send(next()).await?;
    }
    meter.result()
}

async fn raw_frames(channel: Channel, inflight: usize, batch: usize, period: Duration) -> Result<[f64; 3], Failure> {
    let next = || {
        let mut frame = BytesMut::new();
        for request_id in 0..batch as u64 {
            // The body of a peer's message: key and value, as they would stand in a log entry.
            let mut body = [0u8; KEY.len() + VALUE.len()];
            body[..KEY.len()].copy_from_slice(KEY);
            body[KEY.len()..].copy_from_slice(VALUE);
            put_item(&mut frame, request_id, request_id % 16, &body);
        }
        frame.freeze()
    };
    let window = (inflight / batch).max(1);
    let (send, requests) = mpsc::channel(window);
    for _ in 0..window {
        send.send(next()).await?;
    }
    let answers = FramesClient::new(channel).exchange(ReceiverStream::new(requests)).await?;
    let mut answers = answers.into_inner();
    let mut meter = Meter::new(period);
    while let Some(answer) = answers.next().await {
        let mut frame = answer?;
        let mut operations = 0;
        while take_item(&mut frame).is_some() {
            operations += 1;
        }
        if !meter.add(operations) {
            break;
        }
        send.send(next()).await?;
    }
    meter.result()
}
