//! Sends snapshots to one other node, on a connection of their own, so that they never stand in front
//! of Raft's messages.
//!
//! One at a time for each node, two at once for all, at a bounded rate. The first frame carries the Raft
//! message and the snapshot's header, each further one a chunk (about 1 MiB, of a large snapshot read from its file
//! just before) with its crc32; the receiver acknowledges the whole. Only then is the store told that it was sent.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_engine::snapshot::{Chunks, SnapshotData};
use flotilla_engine::storage;
use flotilla_engine::store::{Envelope, Input};
use flotilla_proto::{RangeId, v1};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::frame::{FRAME_BYTES_MAX, Frame};
use super::peers::Peer;
use super::raft_out::{End, HANDSHAKE_TIMEOUT, dial, expect_hello};
use super::service::peer_client::PeerClient;
use super::{Context, hello};
use crate::failure::AbortOnPanic;

/// How long the receiver may take no chunk.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the receiver may take to acknowledge.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

struct Connection {
    frames: mpsc::Sender<Bytes>,
    answers: Streaming<Bytes>,
}

/// Sends what is queued for `peer`, for ever.
pub(crate) async fn run(context: Arc<Context>, peer: Arc<Peer>, mut queue: mpsc::Receiver<Envelope>) {
    let _guard = AbortOnPanic("sending snapshots");
    let mut connection = None;
    while let Some(envelope) = queue.recv().await {
        let turn = context.snapshots_out.acquire().await;
        let (range, to_replica) = (RangeId(envelope.message.range_id), envelope.message.to_replica);
        let sent = send(&context, &peer, &mut connection, envelope).await;
        drop(turn);
        match &sent {
            Ok(bytes) => {
                context.counters.snapshots_sent.add(1);
                tracing::info!(node = %peer.node, %range, bytes, "sent a snapshot");
            }
            Err(End::Refused(reason) | End::Replaced(reason) | End::Broken(reason)) => {
                context.counters.snapshots_failed.add(1);
                tracing::warn!(node = %peer.node, %range, reason, "a snapshot could not be sent");
            }
        }
        context.inbox.input(Input::SnapshotSent { range, to_replica, ok: sent.is_ok() });
        if sent.is_err() || queue.is_empty() {
            connection = None;
        }
    }
}

async fn send(
    context: &Context,
    peer: &Peer,
    connection: &mut Option<Connection>,
    envelope: Envelope,
) -> Result<usize, End> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(connect(context, peer).await?),
    };
    let snapshot_id = context.snapshots.fetch_add(1, Ordering::Relaxed);
    let mut sent = 0;
    let mut pieces = pieces(snapshot_id, envelope);
    loop {
        // A piece may have to be read from disk.
        let next = spawn_blocking(move || pieces.next().map(|piece| (piece, pieces))).await;
        let Some((piece, rest)) = next.map_err(|error| End::Broken(error.to_string()))? else { break };
        pieces = rest;
        let piece = piece.map_err(|error| End::Broken(format!("reading it: {error}")))?;
        let frame = Frame::Chunk(Box::new(piece)).encode();
        context.snapshot_rate.take(frame.len()).await;
        context.counters.peer_frames_sent.add(1);
        context.counters.peer_bytes_sent.add(frame.len() as u64);
        sent += frame.len();
        match timeout(STALL_TIMEOUT, connection.frames.send(frame)).await {
            Ok(Ok(())) => {}
            // The stream ended: its status says why.
            Ok(Err(_)) => break,
            Err(_) => return Err(End::Broken("the node takes no more of it".into())),
        }
    }
    let answer = timeout(ACK_TIMEOUT, connection.answers.message()).await;
    let answer = answer.map_err(|_| End::Broken("the node did not acknowledge it in time".into()))??;
    match answer.map(Frame::decode) {
        Some(Ok(Frame::Received { snapshot_id: id })) if id == snapshot_id => Ok(sent),
        Some(Ok(_)) => Err(End::Broken("the node answered something else than an acknowledgement".into())),
        Some(Err(error)) => Err(End::Broken(error.to_string())),
        None => Err(End::Broken("the node closed the connection".into())),
    }
}

async fn connect(context: &Context, peer: &Peer) -> Result<Connection, End> {
    let channel = dial(context, peer).await?;
    let (frames, stream) = mpsc::channel(2);
    let hello = Frame::Hello(Box::new(hello::hello_to(&context.hello, peer.node))).encode();
    // The receiver is alive: it is just below.
    drop(frames.try_send(hello));
    let mut client = PeerClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
    let shake = async {
        let mut answers = client.bulk(ReceiverStream::new(stream)).await?.into_inner();
        let theirs = expect_hello(&mut answers).await?;
        match hello::admit(context, &theirs, Some(peer.node)).await {
            Ok(()) => Ok(answers),
            Err(refusal) => Err(End::Refused(refusal.words().into())),
        }
    };
    let answers =
        timeout(HANDSHAKE_TIMEOUT, shake).await.map_err(|_| End::Broken("the handshake took too long".into()))??;
    Ok(Connection { frames, answers })
}

/// A snapshot message in pieces. Taking one may wait for the disk.
pub(crate) fn pieces(snapshot_id: u64, envelope: Envelope) -> Pieces {
    let Envelope { message, snapshot, .. } = envelope;
    // Only envelopes with a snapshot are queued; an empty header is refused by the receiver.
    let SnapshotData { header, chunks } =
        snapshot.unwrap_or(SnapshotData { header: v1::SnapshotHeader::default(), chunks: Chunks::default() });
    Pieces { snapshot_id, range_id: message.range_id, message: Some(message), header, chunks, next: 0 }
}

/// See [`pieces`].
pub(crate) struct Pieces {
    snapshot_id: u64,
    range_id: u64,
    message: Option<v1::PeerMessage>,
    header: v1::SnapshotHeader,
    chunks: Chunks,
    next: usize,
}

impl Iterator for Pieces {
    type Item = storage::Result<v1::SnapshotChunk>;

    fn next(&mut self) -> Option<Self::Item> {
        let (sequence, count) = (self.next, self.chunks.count());
        if sequence > count {
            return None;
        }
        self.next += 1;
        let data = match sequence {
            0 => self.header.encode_to_vec().into(),
            _ => match self.chunks.read(sequence - 1) {
                Ok(data) => data,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(v1::SnapshotChunk {
            snapshot_id: self.snapshot_id,
            range_id: self.range_id,
            sequence: u32::try_from(sequence).expect("2^32 chunks would be 4 PiB"),
            crc32: crc32fast::hash(&data),
            data,
            last: sequence == count,
            message: self.message.take(),
        }))
    }
}

/// Spreads bytes over time.
#[derive(Debug)]
pub(crate) struct Rate {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Rate {
    /// So many bytes a second.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: usize) {
        let start = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*free_at).max(Instant::now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            start
        };
        sleep_until(start).await;
    }
}
