//! A snapshot as it goes through the node: a header, and the records in one of three forms.
//!
//! Clones are handles on the same records. Files belong to their handles: the last one to go removes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use flotilla_proto::v1;

use crate::storage::{self, StagedArea};

/// A range's whole state at one index.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotData {
    /// Descriptor and applied state; what Raft's snapshot metadata is made from.
    pub header: v1::SnapshotHeader,
    /// The records.
    pub chunks: Chunks,
}

/// A snapshot's records.
#[derive(Clone, Debug)]
pub enum Chunks {
    /// In memory, in pieces of about 1 MiB.
    Memory(Arc<Vec<Bytes>>),
    /// The same pieces in a file of the node that made it.
    File(Arc<ChunkFile>),
    /// In table files of the node that received it, which [`super::install()`] takes in.
    Tables(Arc<Tables>),
}

impl Default for Chunks {
    fn default() -> Self {
        Self::Memory(Arc::default())
    }
}

impl PartialEq for Chunks {
    /// Files are equal to themselves only.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(one), Self::Memory(other)) => one == other,
            (Self::File(one), Self::File(other)) => Arc::ptr_eq(one, other),
            (Self::Tables(one), Self::Tables(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Chunks {
    /// How many pieces there are; table files have none that could be sent.
    pub fn count(&self) -> usize {
        match self {
            Self::Memory(chunks) => chunks.len(),
            Self::File(file) => file.places.len(),
            Self::Tables(_) => 0,
        }
    }

    /// Reads one of [`Chunks::count`] pieces; for files this waits for the disk.
    pub fn read(&self, at: usize) -> storage::Result<Bytes> {
        match self {
            Self::Memory(chunks) => chunks.get(at).cloned().ok_or_else(|| super::corrupt("snapshot: no such chunk")),
            Self::File(file) => file.read(at),
            Self::Tables(_) => Err(super::corrupt("snapshot: table files cannot be sent")),
        }
    }
}

impl SnapshotData {
    /// Its size in bytes, in the form that it has.
    pub fn size_bytes(&self) -> u64 {
        match &self.chunks {
            Chunks::Memory(chunks) => chunks.iter().map(|chunk| chunk.len() as u64).sum(),
            Chunks::File(file) => file.places.iter().map(|(_, length)| *length as u64).sum(),
            Chunks::Tables(tables) => tables.files.iter().map(|file| file.bytes).sum(),
        }
    }

    /// Whether it stands in table files, and takes the way through [`super::install()`].
    pub fn is_staged(&self) -> bool {
        matches!(self.chunks, Chunks::Tables(_))
    }
}

/// The pieces of a snapshot in one staged file, which goes with this.
#[derive(Debug)]
pub struct ChunkFile {
    area: Arc<dyn StagedArea>,
    name: String,
    /// Offset and length of each piece.
    places: Vec<(u64, usize)>,
}

impl ChunkFile {
    /// A file that is being written: it goes if this goes.
    pub(super) fn new(area: Arc<dyn StagedArea>, name: String) -> Self {
        Self { area, name, places: Vec::new() }
    }

    /// A piece was added at its end.
    pub(super) fn grew(&mut self, length: usize) {
        let at = self.places.last().map_or(0, |(offset, length)| offset + *length as u64);
        self.places.push((at, length));
    }

    fn read(&self, at: usize) -> storage::Result<Bytes> {
        let (offset, length) = *self.places.get(at).ok_or_else(|| super::corrupt("snapshot: no such chunk"))?;
        self.area.read(&self.name, offset, length)
    }
}

impl Drop for ChunkFile {
    fn drop(&mut self) {
        self.area.remove(&self.name);
    }
}

/// Received table files, sorted and without overlap. They go with this, unless an installation has begun.
#[derive(Debug)]
pub struct Tables {
    area: Arc<dyn StagedArea>,
    files: Vec<v1::StagedFile>,
    /// An intent names them: they belong to it until it is done.
    pinned: AtomicBool,
}

impl Tables {
    pub(super) fn new(area: Arc<dyn StagedArea>) -> Self {
        Self { area, files: Vec::new(), pinned: AtomicBool::new(false) }
    }

    pub(super) fn add(&mut self, file: v1::StagedFile) {
        self.files.push(file);
    }

    /// The files.
    pub fn files(&self) -> &[v1::StagedFile] {
        &self.files
    }

    pub(super) fn pin(&self, pinned: bool) {
        self.pinned.store(pinned, Ordering::Release);
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        if !*self.pinned.get_mut() {
            self.files.iter().for_each(|file| self.area.remove(&file.name));
        }
    }
}
