//! One node's connection: takes requests from its queue, sends whatever is queued as one batch,
//! hands answers out by id, and connects again after a break.
//!
//! ```text
//! queue -> pending -> (as many as the window takes) one StreamRequest -> node
//!                                     callers <- StreamResponse <-
//! ```
//! A request counts as sent from the moment it is given to the stream: if the stream breaks
//! afterwards its outcome is Broken, whether or not its bytes had left. What was still pending goes
//! out on the next connection, or is refused if none can be made. A node that stops says so on the
//! stream: nothing more is sent then, and what was sent is answered before the stream ends.

use std::collections::HashMap;
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
use super::waiting::Waiting;
use crate::core::{CallOutcome, Delay, Time, Window};

/// A batch of requests ends here, and may exceed it by one request: below the decoder's limit.
const BATCH_BYTES: usize = 1 << 20;
/// While the window is full, no more than this is taken from the queue: what is newer can go first only if it is taken.
const PENDING_MAX: usize = 1 << 16;
/// So many may always be under way.
const READS_MIN: usize = 16;
const WRITES_MIN: usize = 2;
/// A read that is under way for longer waits for something else than its turn, such as a leader of its range: it does not count.
const STUCK: Duration = Duration::from_secs(1);
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
    let windows = Windows::new(config.in_flight_max);
    let (pending, begun) = (Waiting::default(), Instant::now());
    let mut connection =
        Connection { node, address, queue, config, pending, windows, begun, checked: begun, failures: 0 };
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
    pending: Waiting,
    windows: Windows,
    begun: Instant,
    /// When callers that have gone were last looked for.
    checked: Instant,
    failures: u32,
}

/// How many may be under way.
struct Windows {
    reads: Window,
    writes: Window,
}

struct Stream {
    requests: mpsc::Sender<v1::StreamRequest>,
    answers: Streaming<v1::StreamResponse>,
}

/// Requests sent and not answered.
#[derive(Default)]
struct InFlight {
    last_id: u64,
    answers: HashMap<u64, UnderWay>,
    /// How many of them are writes.
    writes: usize,
    /// How many are reads that do not count.
    stuck: usize,
    delay: Delay,
}

struct UnderWay {
    answer: Answer,
    is_write: bool,
    sent: Time,
}

/// How many more reads and writes may be sent.
#[derive(Clone, Copy)]
struct Room {
    reads: usize,
    writes: usize,
}

impl Windows {
    fn new(max: usize) -> Self {
        Self { reads: Window::new(READS_MIN, max), writes: Window::new(WRITES_MIN, max) }
    }

    fn are_cut(&self) -> bool {
        self.reads.is_cut() || self.writes.is_cut()
    }
}

impl Connection {
    /// Waits until there is something to send; false: there never will be.
    async fn wait_for_work(&mut self) -> bool {
        if self.pending.is_empty() {
            match self.queue.recv().await {
                Some(queued) => self.pending.push(queued),
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
        for queued in self.pending.drain() {
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
        self.windows.reads.begins_again();
        self.windows.writes.begins_again();
        let mut leaving = false;
        let reason = loop {
            let room = self.room(&mut in_flight, leaving);
            if leaving && in_flight.answers.is_empty() {
                return;
            }
            let mut taken = Vec::new();
            tokio::select! {
                message = stream.answers.message() => match message {
                    Ok(Some(message)) => {
                        leaving |= message.closing;
                        in_flight.answer(message, &mut self.windows, self.begun.elapsed());
                    }
                    Ok(None) => break "it was closed".to_string(),
                    Err(status) => break status_text(&status),
                },
                permit = stream.requests.reserve(), if self.can_send(room) && !leaving => match permit {
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
                () = sleep(RECHECK), if room.is_full() || leaving => {}
                count = self.queue.recv_many(&mut taken, TAKE_MAX), if self.takes_more(room) => {
                    if count == 0 {
                        return;
                    }
                    taken.into_iter().for_each(|queued| self.pending.push(queued));
                }
            }
        };
        let reason = format!("the stream to node {} broke: {reason}", self.node.0);
        for (_, of) in in_flight.answers {
            // A caller that has gone needs no telling.
            let _ = of.answer.send(CallOutcome::Broken(reason.clone()));
        }
    }

    /// How many more may be sent. Now and then callers that have gone make room.
    fn room(&mut self, in_flight: &mut InFlight, leaving: bool) -> Room {
        let full = leaving || in_flight.room(&self.config, &self.windows).is_full();
        if full && self.checked.elapsed() >= RECHECK {
            self.checked = Instant::now();
            in_flight.clean(self.begun.elapsed());
            self.pending.clean();
        }
        in_flight.room(&self.config, &self.windows)
    }

    fn can_send(&self, room: Room) -> bool {
        self.pending.has_next(room.reads > 0, room.writes > 0)
    }

    /// Whether the queue is looked at: while requests wait for a window, so that newer ones, or those of the other kind, can go first.
    fn takes_more(&self, room: Room) -> bool {
        let held_back = room.is_full() && self.windows.are_cut() && self.pending.len() < PENDING_MAX;
        self.pending.is_empty() || held_back
    }

    /// Everything queued, up to the limits.
    fn batch(&mut self, in_flight: &mut InFlight, room: Room) -> Option<v1::StreamRequest> {
        while self.pending.len() < room.reads.max(room.writes)
            && let Ok(queued) = self.queue.try_recv()
        {
            self.pending.push(queued);
        }
        let (mut bytes, mut left, sent) = (0, room, self.begun.elapsed());
        let all_max = self.config.in_flight_max.saturating_sub(in_flight.answers.len());
        let mut requests = Vec::with_capacity(self.pending.len().min(all_max));
        while bytes < BATCH_BYTES && requests.len() < all_max {
            let (first, busy) = (left.writes == room.writes, self.windows.writes.is_cut());
            let Some(queued) = self.pending.pop(left.reads > 0, left.writes > 0, busy, first) else { break };
            bytes += queued.request().encoded_len();
            let is_write = queued.is_write();
            if let Some((request, answer)) = queued.take() {
                let room = if is_write { &mut left.writes } else { &mut left.reads };
                *room -= 1;
                requests.push(in_flight.add(request, UnderWay { answer, is_write, sent }));
            }
        }
        (!requests.is_empty()).then_some(v1::StreamRequest { requests })
    }
}

impl Room {
    /// Whether requests of some kind have to wait.
    fn is_full(self) -> bool {
        self.reads == 0 || self.writes == 0
    }
}

impl InFlight {
    /// Reads, as far as they count.
    fn reads(&self) -> usize {
        (self.answers.len() - self.writes).saturating_sub(self.stuck)
    }

    fn room(&self, config: &GrpcConfig, windows: &Windows) -> Room {
        let all = config.in_flight_max.saturating_sub(self.answers.len());
        Room { reads: windows.reads.room(self.reads()).min(all), writes: windows.writes.room(self.writes).min(all) }
    }

    /// Gives the request its id on this stream.
    fn add(&mut self, request: v1::Request, of: UnderWay) -> v1::Request {
        self.last_id += 1;
        self.writes += usize::from(of.is_write);
        self.answers.insert(self.last_id, of);
        v1::Request { id: self.last_id, ..request }
    }

    /// Lets those go whose callers have gone.
    fn clean(&mut self, now: Time) {
        self.answers.retain(|_, of| !of.answer.is_closed());
        self.writes = self.answers.values().filter(|of| of.is_write).count();
        self.stuck = self.answers.values().filter(|of| !of.is_write && now - of.sent > STUCK).count();
    }

    fn answer(&mut self, message: v1::StreamResponse, windows: &mut Windows, now: Time) {
        let (reads, writes) = (self.reads(), self.writes);
        for response in message.responses {
            // An answer to nothing under way is nobody's.
            let Some(UnderWay { answer, is_write, sent }) = self.answers.remove(&response.id) else { continue };
            self.writes -= usize::from(is_write);
            let overloaded = matches!(&response.body, Some(v1::response::Body::Error(error)) if error.overloaded);
            if is_write {
                match overloaded {
                    true => windows.writes.busy(now, response.id, self.last_id, writes),
                    false => windows.writes.answered(now, writes),
                }
            } else {
                match self.delay.answered(now, now - sent) {
                    Some(share) => windows.reads.late(share, now, response.id, self.last_id, reads),
                    None => windows.reads.answered(now, reads),
                }
            }
            // A caller that has gone needs no telling.
            let _ = answer.send(CallOutcome::Response(response));
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
