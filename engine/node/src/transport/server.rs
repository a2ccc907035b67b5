//! The peer port: takes the connections of other nodes, checks who they are, and hands what they send
//! to the store's loop.
//!
//! A frame that cannot be taken ends its connection, and is told to the sender. Memory for frames that
//! the loop has not taken yet is bounded: beyond, a connection is not read, so its sender has to wait.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_proto::{NodeId, v1};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::frame::Frame;
use super::hello::Refusal;
use super::peers::Peer;
use super::raft_out::HANDSHAKE_TIMEOUT;
use super::{Context, bulk_in, hello};
use crate::doors::Caller;
use crate::failure::AbortOnPanic;
use crate::inbox::{Frame as TakenFrame, Item};

/// Bytes of frames that may wait for the loop, of all connections.
pub(crate) const FRAMES_BYTES_MAX: usize = 64 << 20;

/// Answers to the other side: its Hello, acknowledgements of snapshots, or why it is refused.
pub(crate) type Answers = mpsc::Sender<Result<Bytes, Status>>;
type AnswerStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The service behind the peer port.
pub(crate) struct PeerService {
    pub context: Arc<Context>,
}

#[tonic::async_trait]
impl super::service::peer_server::Peer for PeerService {
    type RaftStream = AnswerStream;
    type BulkStream = AnswerStream;

    async fn raft(&self, request: Request<Streaming<Bytes>>) -> Result<Response<AnswerStream>, Status> {
        Ok(self.accept(request, Class::Raft))
    }

    async fn bulk(&self, request: Request<Streaming<Bytes>>) -> Result<Response<AnswerStream>, Status> {
        Ok(self.accept(request, Class::Bulk))
    }
}

#[derive(Clone, Copy)]
enum Class {
    Raft,
    Bulk,
}

impl PeerService {
    fn accept(&self, request: Request<Streaming<Bytes>>, class: Class) -> Response<AnswerStream> {
        let (answers, stream) = mpsc::channel(4);
        let context = Arc::clone(&self.context);
        let caller = request.extensions().get::<Caller>().cloned();
        tokio::spawn(async move {
            let _guard = AbortOnPanic("a connection from another node");
            let mut shutdown = context.shutdown.subscribe();
            tokio::select! {
                () = serve(&context, request.into_inner(), &answers, caller.as_ref(), class) => {}
                _ = shutdown.wait_for(|down| *down) => {}
            }
        });
        Response::new(Box::pin(ReceiverStream::new(stream)))
    }
}

async fn serve(
    context: &Arc<Context>,
    mut frames: Streaming<Bytes>,
    answers: &Answers,
    caller: Option<&Caller>,
    class: Class,
) {
    let welcomed = match timeout(HANDSHAKE_TIMEOUT, welcome(context, &mut frames, caller)).await {
        Ok(welcomed) => welcomed,
        Err(_) => Err(Refusal::from("no handshake came in time")),
    };
    let peer = match welcomed {
        Ok(peer) => peer,
        Err(refusal) => {
            context.counters.peer_refusals.add(1);
            // Without the port, which changes with each try.
            let from = caller.map_or_else(|| "an unknown address".into(), |caller| caller.address().ip().to_string());
            context.peers.refused(format!("{} (from {from})", refusal.words()));
            // A caller that is gone needs no words.
            drop(answers.send(Err(refusal.to_status())).await);
            return;
        }
    };
    if let Some(caller) = caller {
        caller.known();
    }
    let hello = Frame::Hello(Box::new(hello::hello_to(&context.hello, peer.node))).encode();
    if answers.send(Ok(hello)).await.is_err() {
        return;
    }
    let end = match class {
        Class::Raft => take_frames(context, &peer, &mut frames).await,
        Class::Bulk => bulk_in::take_snapshots(context, &peer, &mut frames, answers).await,
    };
    if let Err(words) = end {
        tracing::warn!(node = %peer.node, reason = words, "ended the connection of a node");
        drop(answers.send(Err(Status::aborted(words))).await);
    }
}

/// The caller, if its first frame says the right things.
async fn welcome(
    context: &Context,
    frames: &mut Streaming<Bytes>,
    caller: Option<&Caller>,
) -> Result<Arc<Peer>, Refusal> {
    let theirs = match next(context, frames).await? {
        Some(Frame::Hello(theirs)) => theirs,
        Some(_) => return Err("the first frame is not a handshake".into()),
        None => return Err("the connection was closed before the handshake".into()),
    };
    if let Some(caller) = caller {
        hello::check_certificate(caller.guest().shown(), &theirs)?;
    }
    hello::admit(context, &theirs, None).await?;
    // It may have been removed this very moment.
    let peer = context.peers.get(NodeId(theirs.node_id)).ok_or("the node is no member any more")?;
    peer.introduced(&theirs);
    Ok(peer)
}

/// The next frame of a connection; the error is for the sender.
pub(crate) async fn next(context: &Context, frames: &mut Streaming<Bytes>) -> Result<Option<Frame>, String> {
    match frames.message().await {
        Ok(Some(bytes)) => {
            context.counters.peer_bytes_received.add(bytes.len() as u64);
            Frame::decode(bytes).map(Some).map_err(|error| error.to_string())
        }
        Ok(None) => Ok(None),
        // The connection is gone: there is nobody to tell.
        Err(status) => {
            tracing::debug!(%status, "a node's connection broke");
            Ok(None)
        }
    }
}

async fn take_frames(context: &Context, peer: &Peer, frames: &mut Streaming<Bytes>) -> Result<(), String> {
    while let Some(frame) = next(context, frames).await? {
        peer.heard();
        if peer.is_gone() {
            return Err("the node was removed for good".into());
        }
        match frame {
            Frame::Batch(batch) => take_batch(context, peer, batch).await,
            Frame::Refused(words) => {
                context.counters.peer_refusals.add(1);
                context.peers.refused(format!("node {} turned this one away: {words}", peer.node.0));
                return Ok(());
            }
            Frame::Replaced(words) => {
                context.replaced(peer.node, &words);
                return Ok(());
            }
            Frame::Hello(_) | Frame::Chunk(_) | Frame::Received { .. } => {
                return Err("a frame that does not belong on a Raft connection".into());
            }
        }
    }
    Ok(())
}

async fn take_batch(context: &Context, peer: &Peer, batch: v1::PeerBatch) {
    let bytes: usize = batch.messages.iter().map(message_bytes).sum();
    let permits = u32::try_from(bytes.min(FRAMES_BYTES_MAX)).unwrap_or(u32::MAX);
    // The semaphore is never closed.
    let Ok(memory) = Arc::clone(&context.frames_memory).acquire_many_owned(permits).await else { return };
    peer.note_disk(batch.disk_full);
    context.inbox.push(Item::Frame(TakenFrame { from: peer.node, batch, memory }));
}

fn message_bytes(message: &v1::PeerMessage) -> usize {
    let entries: usize = message.entries.iter().map(|entry| entry.data.len() + size_of::<v1::LogEntry>()).sum();
    size_of::<v1::PeerMessage>() + entries
}
