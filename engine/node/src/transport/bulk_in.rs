//! Receives snapshots: gathers the pieces in memory, checked, and hands the whole to the store's loop.
//!
//! Two at once, and so many bytes in all; a third one waits, and what does not fit is refused. A
//! snapshot that breaks off leaves nothing behind.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_engine::snapshot::SNAPSHOT_BYTES_MAX;
use flotilla_engine::store::{Envelope, SnapshotData};
use flotilla_proto::{NodeId, v1};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Streaming;

use super::Context;
use super::frame::Frame;
use super::peers::Peer;
use super::server::{Answers, next};
use crate::inbox::Item;

/// Bytes of snapshots in memory, of all that are being received.
pub(crate) const MEMORY_BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + (SNAPSHOT_BYTES_MAX >> 1);

/// A received snapshot's share of the memory for those; given back on drop.
#[derive(Debug)]
pub(crate) struct SnapshotMemory {
    _slot: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
}

/// Takes snapshots from a connection until it ends. The error is for the sender.
pub(crate) async fn take_snapshots(
    context: &Context,
    peer: &Peer,
    frames: &mut Streaming<Bytes>,
    answers: &Answers,
) -> Result<(), String> {
    let mut open: Option<(Assembly, SnapshotMemory)> = None;
    while let Some(frame) = next(context, frames).await? {
        let Frame::Chunk(chunk) = frame else {
            return Err("a frame that does not belong on a bulk connection".into());
        };
        let bytes = chunk.data.len();
        let last = chunk.last;
        match &mut open {
            None => open = Some((Assembly::begin(*chunk)?, reserve(context).await?)),
            Some((assembly, _)) => assembly.push(*chunk)?,
        }
        let Some((assembly, memory)) = &mut open else { continue };
        grow(context, memory, bytes)?;
        if last {
            let snapshot_id = assembly.snapshot_id;
            if let Some((assembly, memory)) = open.take() {
                let envelope = assembly.finish(peer.node, NodeId(context.hello.node_id));
                context.inbox.push(Item::Snapshot(Box::new(envelope), memory));
            }
            // A sender that is gone sends it again.
            drop(answers.send(Ok(Frame::Received { snapshot_id }.encode())).await);
        }
    }
    Ok(())
}

async fn reserve(context: &Context) -> Result<SnapshotMemory, String> {
    let closed = |_| "the node is stopping".to_string();
    let slot = Arc::clone(&context.snapshots_in).acquire_owned().await.map_err(closed)?;
    let bytes = Arc::clone(&context.snapshot_memory).acquire_many_owned(0).await.map_err(closed)?;
    Ok(SnapshotMemory { _slot: slot, bytes })
}

fn grow(context: &Context, memory: &mut SnapshotMemory, bytes: usize) -> Result<(), String> {
    let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
    let more = Arc::clone(&context.snapshot_memory)
        .try_acquire_many_owned(permits)
        .map_err(|_| "no memory is left for snapshots: send it again later".to_string())?;
    memory.bytes.merge(more);
    Ok(())
}

/// A snapshot of which a part has come.
#[derive(Debug)]
pub(crate) struct Assembly {
    snapshot_id: u64,
    message: v1::PeerMessage,
    header: v1::SnapshotHeader,
    chunks: Vec<Bytes>,
    bytes: usize,
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
    pub fn begin(chunk: v1::SnapshotChunk) -> Result<Self, String> {
        check_data(&chunk)?;
        let Some(message) = chunk.message.filter(|_| chunk.sequence == 0) else {
            return Err(format!("snapshot {} begins with chunk {}", chunk.snapshot_id, chunk.sequence));
        };
        if message.range_id != chunk.range_id || message.snapshot.is_none() {
            return Err(format!("snapshot {} comes with a message that is not its own", chunk.snapshot_id));
        }
        let header = v1::SnapshotHeader::decode(chunk.data)
            .map_err(|error| format!("header of snapshot {}: {error}", chunk.snapshot_id))?;
        Ok(Self { snapshot_id: chunk.snapshot_id, message, header, chunks: Vec::new(), bytes: 0, complete: chunk.last })
    }

    /// Adds the next piece.
    pub fn push(&mut self, chunk: v1::SnapshotChunk) -> Result<(), String> {
        check_data(&chunk)?;
        let expected = self.chunks.len() as u64 + 1;
        let same = chunk.snapshot_id == self.snapshot_id && chunk.range_id == self.message.range_id;
        if self.complete || !same || u64::from(chunk.sequence) != expected || chunk.message.is_some() {
            return Err(format!(
                "chunk {} of snapshot {} where chunk {expected} of snapshot {} was expected",
                chunk.sequence, chunk.snapshot_id, self.snapshot_id
            ));
        }
        self.bytes += chunk.data.len();
        if self.bytes > MEMORY_BYTES_MAX {
            return Err(format!("snapshot {} is larger than {MEMORY_BYTES_MAX} bytes", self.snapshot_id));
        }
        self.complete = chunk.last;
        self.chunks.push(chunk.data);
        Ok(())
    }

    /// The whole, as the store takes it.
    pub fn finish(self, from: NodeId, to: NodeId) -> Envelope {
        let snapshot = SnapshotData { header: self.header, chunks: Arc::new(self.chunks) };
        Envelope { from, to, message: self.message, disk_full: false, snapshot: Some(snapshot) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::bulk_out;

    fn envelope(chunks: &[&'static [u8]]) -> Envelope {
        let descriptor = v1::RangeDescriptor { range_id: 2, ..Default::default() };
        let header = v1::SnapshotHeader { descriptor: Some(descriptor), applied: None, records: 3 };
        let chunks = chunks.iter().map(|chunk| Bytes::from_static(chunk)).collect();
        let meta = v1::SnapshotMeta { index: 7, ..Default::default() };
        Envelope {
            from: NodeId(1),
            to: NodeId(2),
            message: v1::PeerMessage { range_id: 2, snapshot: Some(meta), ..Default::default() },
            disk_full: false,
            snapshot: Some(SnapshotData { header, chunks: Arc::new(chunks) }),
        }
    }

    fn pieces(envelope: &Envelope) -> Vec<v1::SnapshotChunk> {
        bulk_out::chunks(5, envelope.clone()).collect()
    }

    fn assemble(pieces: Vec<v1::SnapshotChunk>) -> Result<Assembly, String> {
        let mut pieces = pieces.into_iter();
        let mut assembly = Assembly::begin(pieces.next().ok_or("no piece")?)?;
        pieces.try_for_each(|piece| assembly.push(piece))?;
        Ok(assembly)
    }

    #[test]
    fn what_was_cut_up_comes_together_again() {
        let cuts: [&[&'static [u8]]; 3] = [&[], &[b"one"], &[b"one", b"two"]];
        for chunks in cuts {
            let envelope = envelope(chunks);
            let pieces = pieces(&envelope);
            assert!(pieces.iter().rev().skip(1).all(|piece| !piece.last) && pieces[chunks.len()].last);
            let assembly = assemble(pieces).expect("nothing is missing");
            assert!(assembly.complete);
            assert_eq!(assembly.finish(NodeId(1), NodeId(2)), envelope);
        }
    }

    #[test]
    fn pieces_that_are_missing_changed_or_foreign_are_refused() {
        let pieces = pieces(&envelope(&[b"one", b"two"]));
        let bad = |change: fn(&mut Vec<v1::SnapshotChunk>)| {
            let mut pieces = pieces.clone();
            change(&mut pieces);
            assemble(pieces).map(|assembly| assembly.complete)
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
