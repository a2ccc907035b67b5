//! Requests and answers: from the wire's form to the engine's, and back.

use std::time::Duration;

use flotilla_engine::read::ReadRequest;
use flotilla_engine::time::BootTime;
use flotilla_proto::{Error, NodeId, RangeId, limits, v1};

/// What every answer of this node says about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answerer {
    pub cluster_id: u64,
    pub node_id: NodeId,
}

impl Answerer {
    /// The header of an answer.
    pub fn header(self, range: RangeId, term: u64, trace_id: u64) -> v1::ResponseHeader {
        v1::ResponseHeader { cluster_id: self.cluster_id, node_id: self.node_id.0, range_id: range.0, term, trace_id }
    }

    /// An answer to a read: its body gets its header.
    pub fn read(self, id: u64, header: &v1::RequestHeader, term: u64, mut body: v1::response::Body) -> v1::Response {
        use v1::response::Body;
        let head = Some(self.header(RangeId(header.range_id), term, header.trace_id));
        match &mut body {
            Body::Get(get) => get.header = head,
            Body::MultiGet(multi) => multi.header = head,
            Body::Scan(scan) => scan.header = head,
            Body::Write(write) => write.header = head,
            Body::Error(_) => {}
        }
        v1::Response { id, body: Some(body) }
    }

    /// The answer to a write.
    pub fn write(self, id: u64, header: &v1::RequestHeader, term: u64, results: Vec<v1::WriteResult>) -> v1::Response {
        let results = results
            .into_iter()
            .map(|result| v1::BatchResult { outcome: Some(v1::batch_result::Outcome::Result(result)) })
            .collect();
        let header = Some(self.header(RangeId(header.range_id), term, header.trace_id));
        v1::Response { id, body: Some(v1::response::Body::Write(v1::BatchResponse { header, results })) }
    }
}

/// A refusal.
pub(crate) fn refusal(id: u64, error: &Error) -> v1::Response {
    v1::Response { id, body: Some(v1::response::Body::Error(error.into())) }
}

/// The header of a request, and what is wrong if it has none, or is not routed.
pub(crate) fn header_of(body: &v1::request::Body) -> Result<&v1::RequestHeader, Error> {
    use v1::request::Body;
    let header = match body {
        Body::Get(get) => &get.header,
        Body::MultiGet(multi) => &multi.header,
        Body::Write(write) => &write.header,
        Body::Scan(scan) => &scan.header,
    };
    header.as_ref().filter(|header| header.range_id != 0).ok_or_else(|| {
        Error::invalid("the request names no range", "set range_id and epoch, or let the node's router find the range")
    })
}

/// A read of one range; `None`: it is a write.
pub(crate) fn read_of(body: &v1::request::Body) -> Option<ReadRequest<'_>> {
    use v1::request::Body;
    match body {
        Body::Get(get) => Some(ReadRequest::Get(get)),
        Body::MultiGet(multi) => Some(ReadRequest::MultiGet(multi)),
        Body::Scan(scan) => Some(ReadRequest::Scan(scan)),
        Body::Write(_) => None,
    }
}

/// When whoever sent this header stops waiting.
pub(crate) fn deadline(header: &v1::RequestHeader, arrived: BootTime) -> BootTime {
    let millis = match header.timeout_ms {
        0 => limits::TIMEOUT_MS_DEFAULT,
        millis => millis.min(limits::TIMEOUT_MS_MAX),
    };
    arrived + Duration::from_millis(millis)
}

/// About how much memory a write takes.
pub(crate) fn write_bytes(write: &v1::BatchRequest) -> usize {
    use v1::write_op::Op;
    let ops = write.ops.iter().map(|op| match &op.op {
        Some(Op::Put(put)) => put.key.len() + put.value.len(),
        Some(Op::Delete(delete)) => delete.key.len(),
        Some(Op::CompareAndSwap(swap)) => swap.key.len() + swap.new_value.as_ref().map_or(0, bytes::Bytes::len),
        None => 0,
    });
    ops.map(|bytes| bytes + 128).sum()
}

/// What the request is, in a word for logs.
pub(crate) fn kind_of(body: &v1::request::Body) -> &'static str {
    use v1::request::Body;
    match body {
        Body::Get(_) => "get",
        Body::MultiGet(_) => "multi_get",
        Body::Write(_) => "write",
        Body::Scan(_) => "scan",
    }
}
