//! flotilla-engine: ranges, their Raft groups, and everything that happens to a request between
//! the door and the disk, without doing any input or output itself.

pub mod storage;
pub mod time;
