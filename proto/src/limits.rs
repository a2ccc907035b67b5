//! The limits at the edges, one place for all interfaces.

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 8 << 10;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Largest request, in bytes of its operations.
pub const REQUEST_BYTES_MAX: usize = 3 << 19;
/// Largest message a decoder accepts, in bytes, after decompression.
pub const DECODED_BYTES_MAX: usize = 4 << 20;
/// Most memory that decoding a request, or a frame between nodes, may take: twice what the largest do that nodes send.
pub const DECODED_MEMORY_MAX: usize = 128 << 20;
/// Most operations in one batch.
pub const BATCH_OPS_MAX: usize = 1_024;
/// Records in a scan page when the request names no limit.
pub const SCAN_LIMIT_DEFAULT: u32 = 1_000;
/// Bytes of keys and values in a scan page when the request names no limit.
pub const SCAN_BYTES_DEFAULT: u32 = 1 << 20;
/// Most bytes of keys and values in a scan page: an answer stays below [`DECODED_BYTES_MAX`].
pub const SCAN_BYTES_MAX: u32 = 2 << 20;
/// Most bytes of keys and values in any other answer; the rest up to [`DECODED_BYTES_MAX`] is for its frame.
pub const ANSWER_BYTES_MAX: usize = 3 << 20;
/// Largest Raft entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 8 << 20;
/// How long a request waits when it names no time-out, in milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 5_000;
/// The longest time-out a request may name, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 60_000;
/// The longest ttl of a key, in milliseconds: ten years.
pub const TTL_MS_MAX: u64 = 10 * 365 * 24 * 3_600 * 1_000;
