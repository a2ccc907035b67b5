//! The connection to one other node for Raft messages: dialled by this one, carries its messages.
//!
//! ```text
//! dial -> Hello ->          (the other side checks it, and answers)
//!                 <- Hello  (checked here) -> open the outbox -> frames ...
//! ```
//! Each node dials every other, so a connection carries data one way; the way back carries the other
//! side's Hello and, as the stream's status, why it refuses. When it breaks, the store is told, and
//! dialling goes on: at once, then with pauses that double.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_engine::store::Input;
use flotilla_proto::{error, v1};
use flotilla_tls::Connector;
use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::Context;
use super::frame::{FRAME_BYTES_MAX, Frame};
use super::hello::{self, NOT_A_MEMBER};
use super::peers::Peer;
use super::service::peer_client::PeerClient;
use crate::clock;
use crate::failure::AbortOnPanic;

/// How long dialling may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the handshake may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is asked for a sign of life so often...
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// ...and given up when none comes for so long.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes under way in one stream, and in one connection.
pub(crate) const WINDOW_BYTES: u32 = 8 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// After a refusal in words: nothing will change soon. Unless this node has just joined, and is not known everywhere yet.
const PAUSE_REFUSED: Duration = Duration::from_secs(2);
/// How long the last frame of a refused connection may take to leave.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection ended, or never stood.
pub(crate) enum End {
    /// One side refused the other, in words.
    Refused(String),
    /// The other side refused this one because its store was replaced.
    Replaced(String),
    /// It broke.
    Broken(String),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        let words = status.message().into();
        // A certificate that is refused can be replaced; a node whose store is gone is to stop.
        if let Some(flotilla_proto::Error::AccessDenied { .. }) = error::from_status(&status) {
            return Self::Refused(words);
        }
        match status.code() {
            tonic::Code::FailedPrecondition => Self::Refused(words),
            tonic::Code::PermissionDenied => Self::Replaced(words),
            _ => Self::Broken(words),
        }
    }
}

/// Keeps the connection to `peer`, for ever.
pub(crate) async fn run(context: Arc<Context>, peer: Arc<Peer>) {
    let _guard = AbortOnPanic("a connection to another node");
    let mut pause = PAUSE_MIN;
    loop {
        let end = session(&context, &peer).await;
        let stood = peer.outbox.is_open();
        context.counters.raft_messages_dropped.add(peer.outbox.end(None) as u64);
        let mut lasting = true;
        let (words, refused) = match end {
            End::Refused(words) => {
                lasting = !words.contains(NOT_A_MEMBER);
                (words, true)
            }
            End::Replaced(words) => {
                context.replaced(peer.node, &words);
                (words, true)
            }
            End::Broken(words) => (words, false),
        };
        if refused {
            context.counters.peer_refusals.add(1);
        }
        let news = peer.disconnected(words.clone());
        if stood || news {
            tracing::warn!(node = %peer.node, address = peer.address(), reason = words, "no connection to the node");
            context.inbox.input(Input::Unreachable { node: peer.node });
        }
        if !stood {
            peer.try_other_address();
        }
        pause = if stood { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        // Up to half a pause more, so that nodes that lost each other at once do not dial in step.
        let jitter = pause.mul_f64((clock::random_u64() % 512) as f64 / 1024.0);
        sleep(if refused && lasting { PAUSE_REFUSED } else { pause } + jitter).await;
    }
}

async fn session(context: &Arc<Context>, peer: &Arc<Peer>) -> End {
    let channel = match dial(context, peer).await {
        Ok(channel) => channel,
        Err(end) => return end,
    };
    let hello = Frame::Hello(Box::new(hello::hello_to(&context.hello, peer.node))).encode();
    let frames = peer.outbox.connect(hello, Arc::clone(&context.counters));
    let mut client = PeerClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
    let answers = match timeout(HANDSHAKE_TIMEOUT, client.raft(frames)).await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => return status.into(),
        Err(_) => return End::Broken("the handshake took too long".into()),
    };
    carry(context, peer, answers).await
}

/// From the other side's Hello to the connection's end.
async fn carry(context: &Context, peer: &Peer, mut answers: Streaming<Bytes>) -> End {
    let theirs = match timeout(HANDSHAKE_TIMEOUT, expect_hello(&mut answers)).await {
        Ok(Ok(theirs)) => theirs,
        Ok(Err(end)) => return end,
        Err(_) => return End::Broken("the handshake took too long".into()),
    };
    if let Err(refusal) = hello::admit(context, &theirs, Some(peer.node)).await {
        peer.outbox.end(Some(refusal.to_frame().encode()));
        // Only so that the words leave: what comes back does not matter any more.
        drop(timeout(LAST_WORDS_TIMEOUT, answers.message()).await);
        return End::Refused(refusal.words().into());
    }
    peer.introduced(&theirs);
    peer.outbox.open();
    peer.connected();
    context.counters.peer_connects.add(1);
    tracing::info!(node = %peer.node, address = peer.address(), version = theirs.version, "connected to the node");
    match answers.message().await {
        Ok(Some(_)) => End::Broken("the node sent what it should not".into()),
        Ok(None) => End::Broken("the node closed the connection".into()),
        Err(status) => status.into(),
    }
}

/// The first frame of an answering side.
pub(crate) async fn expect_hello(answers: &mut Streaming<Bytes>) -> Result<v1::Hello, End> {
    let Some(frame) = answers.message().await? else {
        return Err(End::Broken("the node closed the connection before the handshake".into()));
    };
    match Frame::decode(frame) {
        Ok(Frame::Hello(theirs)) => Ok(*theirs),
        Ok(_) => Err(End::Broken("the node did not begin with a handshake".into())),
        Err(error) => Err(End::Broken(error.to_string())),
    }
}

/// A connection to a node's peer port.
pub(crate) async fn dial(context: &Context, peer: &Peer) -> Result<Channel, End> {
    let address = peer.address();
    let scheme = if context.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|_| End::Refused(format!("\"{address}\" is not an address: give host:port")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let connected = match &context.tls {
        Some(tls) => endpoint.connect_with_connector(Connector::to_node(Arc::clone(tls), peer.node)).await,
        None => {
            require_loopback(&address).await?;
            endpoint.connect().await
        }
    };
    connected.map_err(|error| End::Broken(with_causes(&error)))
}

/// Refuses an address that leads off this machine: what goes there would be readable on its way.
async fn require_loopback(address: &str) -> Result<(), End> {
    let found = lookup_host(address).await.map_err(|error| End::Broken(format!("{address}: {error}")))?;
    if found.into_iter().all(|at| at.ip().is_loopback()) {
        return Ok(());
    }
    Err(End::Refused(format!(
        "{address} is not on this machine, and the connection would be plain text: give --tls-ca, --tls-cert and --tls-key to all nodes"
    )))
}

/// An error with all its causes: tonic's own text is only "transport error".
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
