//! The three ways to bring an operation to a node over one tonic connection, for the bench
//! `layout_rpc`: a unary call, an item of a batch on a stream, and an item of a frame of raw bytes.
//!
//! ```text
//! raw frame:  item*                                     (the length is gRPC's)
//! item:       body length u32 | request id u64 | range id u64 | body
//! ```
//! The server does nothing but read each item and answer it, so what is measured is the way.

use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use frames::frames_server::Frames;
use proto::echo_server::Echo;
use proto::{Operation, Operations, Outcome, Outcomes};

/// The messages and the service of echo.proto.
#[allow(missing_docs, reason = "generated")]
pub mod proto {
    tonic::include_proto!("flotilla.benches.echo");
}

/// The service of raw frames.
#[allow(missing_docs, clippy::default_constructed_unit_structs, reason = "generated")]
pub mod frames {
    include!(concat!(env!("OUT_DIR"), "/flotilla.benches.frames.Frames.rs"));
}

const ITEM_HEAD_BYTES: usize = 4 + 8 + 8;

/// Appends an item to a raw frame.
pub fn put_item(frame: &mut BytesMut, request_id: u64, range_id: u64, body: &[u8]) {
    frame.reserve(ITEM_HEAD_BYTES + body.len());
    frame.put_u32(u32::try_from(body.len()).expect("items of the bench are small"));
    frame.put_u64(request_id);
    frame.put_u64(range_id);
    frame.put_slice(body);
}

/// Takes the next item off a raw frame; `None` at its end or where it is cut short.
pub fn take_item(frame: &mut Bytes) -> Option<(u64, u64, Bytes)> {
    if frame.len() < ITEM_HEAD_BYTES {
        return None;
    }
    let length = frame.get_u32() as usize;
    let (request_id, range_id) = (frame.get_u64(), frame.get_u64());
    (frame.len() >= length).then(|| (request_id, range_id, frame.split_to(length)))
}

/// Answers each operation with its own number.
#[derive(Clone, Copy, Debug)]
pub struct Answerer;

fn answer(operation: &Operation) -> Outcome {
    Outcome { request_id: operation.request_id, version: operation.key.len() as u64 + operation.value.len() as u64 }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for Answerer {
    type StreamStream = Answers<Outcomes>;

    async fn one(&self, request: Request<Operation>) -> Result<Response<Outcome>, Status> {
        Ok(Response::new(answer(request.get_ref())))
    }

    async fn stream(&self, request: Request<Streaming<Operations>>) -> Result<Response<Answers<Outcomes>>, Status> {
        let answers = request
            .into_inner()
            .map(|batch| batch.map(|batch| Outcomes { outcomes: batch.operations.iter().map(answer).collect() }));
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl Frames for Answerer {
    type ExchangeStream = Answers<Bytes>;

    async fn exchange(&self, request: Request<Streaming<Bytes>>) -> Result<Response<Answers<Bytes>>, Status> {
        let answers = request.into_inner().map(|frame| frame.map(answer_frame));
        Ok(Response::new(Box::pin(answers)))
    }
}

fn answer_frame(mut frame: Bytes) -> Bytes {
    let mut answers = BytesMut::new();
    while let Some((request_id, range_id, body)) = take_item(&mut frame) {
        put_item(&mut answers, request_id, range_id, &(body.len() as u64).to_be_bytes());
    }
    answers.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_gives_back_its_items_and_no_half_ones() {
        let mut frame = BytesMut::new();
        put_item(&mut frame, 1, 2, b"abc");
        put_item(&mut frame, 3, 4, b"");
        let mut frame = frame.freeze();
        let mut short = frame.slice(..ITEM_HEAD_BYTES + 2);
        assert_eq!(take_item(&mut frame), Some((1, 2, Bytes::from_static(b"abc"))));
        assert_eq!(take_item(&mut frame), Some((3, 4, Bytes::new())));
        assert_eq!(take_item(&mut frame), None);
        assert_eq!(take_item(&mut short), None);
    }

    #[test]
    fn every_item_of_a_frame_is_answered() {
        let mut frame = BytesMut::new();
        put_item(&mut frame, 1, 2, b"abc");
        put_item(&mut frame, 3, 4, b"");
        let mut answers = answer_frame(frame.freeze());
        assert_eq!(take_item(&mut answers).map(|(id, ..)| id), Some(1));
        assert_eq!(take_item(&mut answers).map(|(id, ..)| id), Some(3));
        assert_eq!(take_item(&mut answers), None);
    }
}
