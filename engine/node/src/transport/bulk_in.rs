//! Receives snapshots: asks the store's loop about the header, checks the pieces, takes them in one by one, and hands
//! the whole to the loop.
//!
//! Two at once; a third one waits. What is small stays in memory, what is large goes straight into files of the
//! staging area ([`crate::snapshots`]): memory holds one piece of it. A snapshot that breaks off leaves nothing behind.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_engine::snapshot::Chunks;
use flotilla_engine::store::{Envelope, SnapshotData};
use flotilla_proto::limits::DECODED_MEMORY_MAX;
use flotilla_proto::memory::Shaped;
use flotilla_proto::{NodeId, v1};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::task::spawn_blocking;
use tonic::Streaming;

use super::Context;
use super::frame::Frame;
use super::peers::Peer;
use super::server::{Answers, next};
use crate::inbox::Item;
use crate::snapshots::Incoming;

/// A received snapshot's place among those that are received at once; given back on drop.
#[derive(Debug)]
pub(crate) struct SnapshotSlot {
    _slot: OwnedSemaphorePermit,
}

/// A snapshot on its way in.
struct Open {
    assembly: Assembly,
    incoming: Box<dyn Incoming>,
    slot: SnapshotSlot,
}

/// Takes snapshots from a connection until it ends. The error is for the sender.
pub(crate) async fn take_snapshots(
    context: &Context,
    peer: &Peer,
    frames: &mut Streaming<Bytes>,
    answers: &Answers,
) -> Result<(), String> {
    let mut open: Option<Open> = None;
    while let Some(frame) = next(context, frames).await? {
        let Frame::Chunk(chunk) = frame else {
            return Err("a frame that does not belong on a bulk connection".into());
        };
        let last = chunk.last;
        let current = match open.take() {
            None => begin(context, peer, *chunk).await?,
            Some(mut current) => {
                let data = current.assembly.push(*chunk)?;
                current.incoming = push(current.incoming, data).await?;
                current
            }
        };
        if !last {
            open = Some(current);
            continue;
        }
        let snapshot = finish(current.incoming).await?;
        let snapshot_id = current.assembly.snapshot_id;
        let envelope = current.assembly.finish(peer.node, NodeId(context.hello.node_id), snapshot);
        context.inbox.push(Item::Snapshot(Box::new(envelope), current.slot));
        // A sender that is gone sends it again.
        drop(answers.send(Ok(Frame::Received { snapshot_id }.encode())).await);
    }
    Ok(())
}

async fn begin(context: &Context, peer: &Peer, chunk: v1::SnapshotChunk) -> Result<Open, String> {
    let (assembly, header) = Assembly::begin(chunk)?;
    let closed = || "the node is stopping".to_string();
    let (reply, answer) = oneshot::channel();
    let envelope = Box::new(assembly.offer(peer.node, NodeId(context.hello.node_id), header.clone()));
    context.inbox.push(Item::Offer { envelope, reply });
    answer.await.map_err(|_| closed())??;
    let slot = Arc::clone(&context.snapshots_in).acquire_owned().await.map_err(|_| closed())?;
    let staging = context.staging.upgrade().ok_or_else(closed)?;
    let incoming = staging.begin(header)?;
    Ok(Open { assembly, incoming, slot: SnapshotSlot { _slot: slot } })
}

/// Lets a thread that may wait for the disk take a piece in.
async fn push(mut incoming: Box<dyn Incoming>, data: Bytes) -> Result<Box<dyn Incoming>, String> {
    let pushed = spawn_blocking(move || incoming.push(data).map(|()| incoming)).await;
    pushed.map_err(|error| error.to_string())?
}

async fn finish(incoming: Box<dyn Incoming>) -> Result<SnapshotData, String> {
    spawn_blocking(move || incoming.finish()).await.map_err(|error| error.to_string())?
}

/// The order in which pieces must come.
#[derive(Debug)]
pub(crate) struct Assembly {
    snapshot_id: u64,
    message: v1::PeerMessage,
    pieces: u64,
    complete: bool,
}

fn check_data(chunk: &v1::SnapshotChunk) -> Result<(), String> {
    if crc32fast::hash(&chunk.data) == chunk.crc32 {
        return Ok(());
    }
    Err(format!("chunk {} of snapshot {}: its crc32 does not match", chunk.sequence, chunk.snapshot_id))
}

impl Assembly {
    /// Begins with the first piece.
    pub fn begin(chunk: v1::SnapshotChunk) -> Result<(Self, v1::SnapshotHeader), String> {
        check_data(&chunk)?;
        let Some(message) = chunk.message.filter(|_| chunk.sequence == 0) else {
            return Err(format!("snapshot {} begins with chunk {}", chunk.snapshot_id, chunk.sequence));
        };
        if message.range_id != chunk.range_id || message.snapshot.is_none() {
            return Err(format!("snapshot {} comes with a message that is not its own", chunk.snapshot_id));
        }
        let unreadable = |error| format!("header of snapshot {}: {error}", chunk.snapshot_id);
        let memory = v1::SnapshotHeader::SHAPE.decoded(&chunk.data).map_err(unreadable)?;
        if memory > DECODED_MEMORY_MAX {
            let id = chunk.snapshot_id;
            return Err(format!(
                "header of snapshot {id}: it would take {memory} bytes of memory, the limit is {DECODED_MEMORY_MAX}"
            ));
        }
        let header = v1::SnapshotHeader::decode(chunk.data).map_err(unreadable)?;
        if header.descriptor.as_ref().is_none_or(|descriptor| descriptor.range_id != message.range_id) {
            return Err(format!("snapshot {} is of another range than its message", chunk.snapshot_id));
        }
        Ok((Self { snapshot_id: chunk.snapshot_id, message, pieces: 0, complete: chunk.last }, header))
    }

    /// Checks that a piece is the next one, and returns what is in it.
    pub fn push(&mut self, chunk: v1::SnapshotChunk) -> Result<Bytes, String> {
        check_data(&chunk)?;
        let expected = self.pieces + 1;
        let same = chunk.snapshot_id == self.snapshot_id && chunk.range_id == self.message.range_id;
        if self.complete || !same || u64::from(chunk.sequence) != expected || chunk.message.is_some() {
            return Err(format!(
                "chunk {} of snapshot {} where chunk {expected} of snapshot {} was expected",
                chunk.sequence, chunk.snapshot_id, self.snapshot_id
            ));
        }
        self.pieces = expected;
        self.complete = chunk.last;
        Ok(chunk.data)
    }

    /// What has come so far, as the store is asked about it.
    fn offer(&self, from: NodeId, to: NodeId, header: v1::SnapshotHeader) -> Envelope {
        let snapshot = SnapshotData { header, chunks: Chunks::default() };
        Envelope { from, to, message: self.message.clone(), disk_full: false, snapshot: Some(snapshot) }
    }

    /// The whole, as the store takes it.
    pub fn finish(self, from: NodeId, to: NodeId, snapshot: SnapshotData) -> Envelope {
        Envelope { from, to, message: self.message, disk_full: false, snapshot: Some(snapshot) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::bulk_out;

    fn envelope(chunks: &[&'static [u8]]) -> Envelope {
        let descriptor = v1::RangeDescriptor { range_id: 2, ..Default::default() };
        let header = v1::SnapshotHeader { descriptor: Some(descriptor), records: 3, ..Default::default() };
        let chunks = Chunks::Memory(Arc::new(chunks.iter().map(|chunk| Bytes::from_static(chunk)).collect()));
        let meta = v1::SnapshotMeta { index: 7, ..Default::default() };
        Envelope {
            from: NodeId(1),
            to: NodeId(2),
            message: v1::PeerMessage { range_id: 2, snapshot: Some(meta), ..Default::default() },
            disk_full: false,
            snapshot: Some(SnapshotData { header, chunks }),
        }
    }

    fn pieces(envelope: &Envelope) -> Vec<v1::SnapshotChunk> {
        bulk_out::pieces(5, envelope.clone()).map(|piece| piece.expect("in memory")).collect()
    }

    fn assemble(pieces: Vec<v1::SnapshotChunk>) -> Result<(Assembly, SnapshotData), String> {
        let mut pieces = pieces.into_iter();
        let (mut assembly, header) = Assembly::begin(pieces.next().ok_or("no piece")?)?;
        let chunks = pieces.map(|piece| assembly.push(piece)).collect::<Result<_, _>>()?;
        Ok((assembly, SnapshotData { header, chunks: Chunks::Memory(Arc::new(chunks)) }))
    }

    #[test]
    fn what_was_cut_up_comes_together_again() {
        let cuts: [&[&'static [u8]]; 3] = [&[], &[b"one"], &[b"one", b"two"]];
        for chunks in cuts {
            let envelope = envelope(chunks);
            let pieces = pieces(&envelope);
            assert!(pieces.iter().rev().skip(1).all(|piece| !piece.last) && pieces[chunks.len()].last);
            let (assembly, snapshot) = assemble(pieces).expect("nothing is missing");
            assert!(assembly.complete);
            assert_eq!(assembly.finish(NodeId(1), NodeId(2), snapshot), envelope);
        }
    }

    #[test]
    fn pieces_that_are_missing_changed_or_foreign_are_refused() {
        let pieces = pieces(&envelope(&[b"one", b"two"]));
        let bad = |change: fn(&mut Vec<v1::SnapshotChunk>)| {
            let mut pieces = pieces.clone();
            change(&mut pieces);
            assemble(pieces).map(|(assembly, _)| assembly.complete)
        };
        assert_eq!(bad(|_| {}), Ok(true));
        assert_eq!(bad(|pieces| drop(pieces.pop())), Ok(false));
        let changes: [fn(&mut Vec<v1::SnapshotChunk>); 9] = [
            |pieces| drop(pieces.remove(0)),
            |pieces| drop(pieces.remove(1)),
            |pieces| pieces.swap(1, 2),
            |pieces| pieces[1].data = Bytes::from_static(b"other"),
            |pieces| pieces[2].snapshot_id += 1,
            |pieces| pieces[2].range_id += 1,
            |pieces| pieces[0].range_id += 1,
            |pieces| pieces[1].last = true,
            |pieces| pieces[0].crc32 = !pieces[0].crc32,
        ];
        for change in changes {
            assert!(bad(change).is_err());
        }
    }
}
