//! One node's connection: takes requests from its queue, sends whatever is queued as one batch,
//! hands answers out by id, and connects again after a break.
//!
//! ```text
//! queue -> pending -> (at most in_flight_max) one StreamRequest -> node
//!                                     callers <- StreamResponse <-
//! ```
//! A request counts as sent from the moment it is given to the stream: if the stream breaks
//! afterwards its outcome is Broken, whether or not its bytes had left. What was still pending goes
//! out on the next connection, or is refused if none can be made. A node that stops says so on the
//! stream: nothing more is sent then, and what was sent is answered before the stream ends.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use flotilla_proto::limits::DECODED_BYTES_MAX;
use flotilla_proto::{NodeId, error, v1};
use flotilla_tls::{Connector, Tls};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use v1::kv_client::KvClient;

use super::grpc::{Answer, GrpcConfig, Queued};
use crate::core::CallOutcome;

/// A batch of requests ends here, and may exceed it by one request: below the decoder's limit.
const BATCH_BYTES: usize = 1 << 20;
/// Most requests taken from the queue at once.
const TAKE_MAX: usize = 256;
/// How often a full connection looks for callers that have gone.
const RECHECK: Duration = Duration::from_millis(100);
/// First and longest pause after a failed attempt to connect; refused at once meanwhile.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A silent connection is asked for a sign of life so often, and given up after so long.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Flow-control windows that let an answer of the largest size through without a stop.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// How to reach a node: in plain text, or under TLS.
#[derive(Clone, Debug)]
pub(super) struct Way {
    endpoint: Endpoint,
    tls: Option<Arc<Tls>>,
}

impl Way {
    /// To an address; no connection is made yet.
    pub(super) fn new(address: &str, connect_timeout: Duration, tls: Option<&Arc<Tls>>) -> Result<Self, String> {
        let uri = match (address.split_once("://"), tls) {
            (None, None) => format!("http://{address}"),
            (None, Some(_)) => format!("https://{address}"),
            (Some(("https", _)), None) => {
                return Err(format!("\"{address}\" asks for TLS, and no CA is given: give --tls-ca"));
            }
            (Some(("http", _)), Some(_)) => {
                return Err(format!(
                    "\"{address}\" asks for plain text, and a CA is given: leave http:// or --tls-ca away"
                ));
            }
            (Some(_), _) => address.to_string(),
        };
        let endpoint = Endpoint::from_shared(uri).map_err(|bad| format!("\"{address}\" is not an address: {bad}"))?;
        let endpoint = endpoint
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(Self { endpoint, tls: tls.cloned() })
    }

    async fn connect(self) -> Result<Channel, tonic::transport::Error> {
        match self.tls {
            Some(tls) => self.endpoint.connect_with_connector(Connector::new(tls)).await,
            None => self.endpoint.connect().await,
        }
    }

    /// A channel that connects with its first call.
    pub(super) fn connect_lazy(self) -> Channel {
        match self.tls {
            Some(tls) => self.endpoint.connect_with_connector_lazy(Connector::new(tls)),
            None => self.endpoint.connect_lazy(),
        }
    }
}

/// Serves the queue until its senders are gone.
pub(super) async fn run(
    node: NodeId,
    address: watch::Receiver<String>,
    queue: mpsc::Receiver<Queued>,
    config: GrpcConfig,
) {
    let mut connection = Connection { node, address, queue, config, pending: VecDeque::new(), failures: 0 };
    while connection.wait_for_work().await {
        match connection.open().await {
            Ok(stream) => {
                connection.failures = 0;
                connection.serve(stream).await;
            }
            Err(reason) => connection.pause(&reason).await,
        }
    }
}

struct Connection {
    node: NodeId,
    address: watch::Receiver<String>,
    queue: mpsc::Receiver<Queued>,
    config: GrpcConfig,
    /// Taken from the queue, not sent.
    pending: VecDeque<Queued>,
    failures: u32,
}

struct Stream {
    requests: mpsc::Sender<v1::StreamRequest>,
    answers: Streaming<v1::StreamResponse>,
}

/// Requests sent and not answered.
#[derive(Default)]
struct InFlight {
    last_id: u64,
    answers: HashMap<u64, Answer>,
}

impl Connection {
    /// Waits until there is something to send; false: there never will be.
    async fn wait_for_work(&mut self) -> bool {
        if self.pending.is_empty() {
            match self.queue.recv().await {
                Some(queued) => self.pending.push_back(queued),
                None => return false,
            }
        }
        true
    }

    async fn open(&mut self) -> Result<Stream, String> {
        let address = self.address.borrow_and_update().clone();
        let named = |reason: String| format!("node {} at {address}: {reason}", self.node.0);
        let limit = self.config.connect_timeout;
        let way = Way::new(&address, limit, self.config.tls.as_ref()).map_err(named)?;
        let open = async {
            let channel = way.connect().await.map_err(|error| cause(&error))?;
            open_stream(channel).await.map_err(|status| status_text(&status))
        };
        match timeout(limit, open).await {
            Ok(opened) => opened.map_err(named),
            Err(_) => Err(named(format!("no connection within {} ms", limit.as_millis()))),
        }
    }

    /// Refuses all requests for a while, so that callers try other nodes.
    async fn pause(&mut self, reason: &str) {
        for queued in self.pending.drain(..) {
            queued.refuse(reason);
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures += 1;
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                // A new address is worth trying at once.
                Ok(()) = self.address.changed() => return,
                queued = self.queue.recv() => match queued {
                    Some(queued) => queued.refuse(reason),
                    None => return,
                },
            }
        }
    }

    /// Sends and answers until the stream breaks, the queue ends, the node stops or has another
    /// address; in the last two cases what is under way may still be answered here.
    async fn serve(&mut self, mut stream: Stream) {
        let mut in_flight = InFlight::default();
        let mut leaving = false;
        let reason = loop {
            if leaving || in_flight.answers.len() >= self.config.in_flight_max {
                in_flight.answers.retain(|_, answer| !answer.is_closed());
            }
            if leaving && in_flight.answers.is_empty() {
                return;
            }
            let room = self.config.in_flight_max.saturating_sub(in_flight.answers.len());
            let mut taken = Vec::new();
            tokio::select! {
                message = stream.answers.message() => match message {
                    Ok(Some(message)) => {
                        leaving |= message.closing;
                        in_flight.answer(message);
                    }
                    Ok(None) => break "it was closed".to_string(),
                    Err(status) => break status_text(&status),
                },
                permit = stream.requests.reserve(), if room > 0 && !leaving && !self.pending.is_empty() => match permit {
                    Ok(_) if self.address.has_changed().unwrap_or(false) => leaving = true,
                    Ok(permit) => {
                        // Callers that are about to queue something do it now: one batch for all.
                        tokio::task::yield_now().await;
                        if let Some(batch) = self.batch(&mut in_flight, room) {
                            permit.send(batch);
                        }
                    }
                    Err(_) => break "it was closed".to_string(),
                },
                // Callers may have gone, and made room.
                () = sleep(RECHECK), if room == 0 || leaving => {}
                count = self.queue.recv_many(&mut taken, TAKE_MAX), if self.pending.is_empty() => {
                    if count == 0 {
                        return;
                    }
                    self.pending.extend(taken);
                }
            }
        };
        let reason = format!("the stream to node {} broke: {reason}", self.node.0);
        for (_, answer) in in_flight.answers {
            // A caller that has gone needs no telling.
            let _ = answer.send(CallOutcome::Broken(reason.clone()));
        }
    }

    /// Everything queued, up to the limits.
    fn batch(&mut self, in_flight: &mut InFlight, room: usize) -> Option<v1::StreamRequest> {
        while self.pending.len() < room
            && let Ok(queued) = self.queue.try_recv()
        {
            self.pending.push_back(queued);
        }
        let mut bytes = 0;
        let mut requests = Vec::with_capacity(self.pending.len().min(room));
        while bytes < BATCH_BYTES && requests.len() < room {
            let Some(queued) = self.pending.pop_front() else { break };
            bytes += queued.request().encoded_len();
            if let Some((request, answer)) = queued.take() {
                requests.push(in_flight.add(request, answer));
            }
        }
        (!requests.is_empty()).then_some(v1::StreamRequest { requests })
    }
}

impl InFlight {
    /// Gives the request its id on this stream.
    fn add(&mut self, request: v1::Request, answer: Answer) -> v1::Request {
        self.last_id += 1;
        self.answers.insert(self.last_id, answer);
        v1::Request { id: self.last_id, ..request }
    }

    fn answer(&mut self, message: v1::StreamResponse) {
        for response in message.responses {
            // An answer to nothing under way is nobody's.
            if let Some(answer) = self.answers.remove(&response.id) {
                // A caller that has gone needs no telling.
                let _ = answer.send(CallOutcome::Response(response));
            }
        }
    }
}

async fn open_stream(channel: Channel) -> Result<Stream, Status> {
    let mut client = KvClient::new(channel)
        .max_decoding_message_size(DECODED_BYTES_MAX)
        .max_encoding_message_size(DECODED_BYTES_MAX);
    // One batch ahead: the next one collects while the stream has no room.
    let (requests, outgoing) = mpsc::channel(1);
    let answers = client.stream(ReceiverStream::new(outgoing)).await?.into_inner();
    Ok(Stream { requests, answers })
}

/// What a status says, in one line.
pub(super) fn status_text(status: &Status) -> String {
    if let Some(error) = error::from_status(status) {
        return error.to_string();
    }
    match status.source() {
        Some(source) => cause(source),
        None if status.message().is_empty() => status.code().description().to_string(),
        None => status.message().to_string(),
    }
}

/// The innermost cause: "connection refused" rather than "transport error".
fn cause(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
