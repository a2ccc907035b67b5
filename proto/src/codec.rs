//! The codecs of gRPC messages.
//!
//! That of all services ([`BoundedCodec`]) refuses a request that would take more memory than it may before it is
//! decoded. One more ([`BytesCodec`]) takes messages as the bytes that they are, for whoever has a form of its own: frames
//! between nodes, the benches' own protocol, and tests that send what no encoder would.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::Error;
use crate::limits::DECODED_MEMORY_MAX;
use crate::memory::Shaped;

/// Smaller messages are decoded without a look at what they would take: they cannot take too much.
const HARMLESS_BYTES: usize = 16 << 10;

/// Protobuf; a request that would take too much memory is refused. Answers come from nodes, which are trusted so far.
#[derive(Clone, Copy, Debug)]
pub struct BoundedCodec<T, U> {
    types: PhantomData<(T, U)>,
}

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self { types: PhantomData }
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Shaped + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<<ProstCodec<T, U> as Codec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder { decoder: ProstCodec::<T, U>::default().decoder() }
    }
}

/// See [`BoundedCodec`].
#[derive(Clone, Debug)]
pub struct BoundedDecoder<D> {
    decoder: D,
}

impl<D: Decoder<Error = Status>> Decoder for BoundedDecoder<D>
where
    D::Item: Shaped,
{
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D::Item>, Status> {
        let shape = D::Item::SHAPE;
        // tonic has it in one piece.
        if shape.request && buffer.remaining() > HARMLESS_BYTES {
            // What cannot be walked through cannot be decoded: these are the words of tonic's own decoder.
            let memory = shape.decoded(buffer.chunk()).map_err(|error| Status::internal(error.to_string()))?;
            if memory > DECODED_MEMORY_MAX {
                let what =
                    format!("a {} of {} bytes that would take {memory} in memory", shape.name, buffer.remaining());
                return Err(Error::invalid(what, format!("the limit is {DECODED_MEMORY_MAX}; send several")).into());
            }
        }
        self.decoder.decode(buffer)
    }
}

/// Messages as they are, without an encoding of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
