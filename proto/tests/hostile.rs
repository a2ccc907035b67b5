//! Every message of the .proto files against inputs that nobody should send: decoding one takes the memory that its
//! shape says, and no more.

use flotilla_hostile::{Decoder, wire};
use flotilla_proto::limits::DECODED_MEMORY_MAX;
use flotilla_proto::memory::{Kind, Shape, Shaped};
use flotilla_proto::v1;
use prost::Message;

/// Of so many inputs one goes to messages that are no requests.
const OTHERS_SHARE: u64 = 20;
/// What prost's words for what is wrong take.
const ERROR_BYTES: usize = 1_024;

/// One message after the other: the table has one line for all of them, since the list is generated.
fn check<M: Message + Default + Shaped>() {
    let shape = M::SHAPE;
    // Requests come from anywhere. The others are parts of them, or come from nodes, or from the disk, where each is
    // tested once more behind its checksum.
    let share = if shape.request { 1 } else { OTHERS_SHARE };
    Decoder::generated("messages", |rng| wire::message(rng, shape))
        .of(shape.name)
        .share(share)
        .protobuf(0)
        .memory_of(|input| shape.decoded(input).map_or(ERROR_BYTES, |memory| memory + ERROR_BYTES))
        .check(
            |input| {
                // As the codec does it.
                shape.decoded(input).ok()?;
                M::decode(input.clone()).ok()
            },
            M::encode_to_vec,
        );
}

macro_rules! visit {
    ($name:ident) => {
        check::<v1::$name>()
    };
}

#[test]
fn hostile_messages() {
    flotilla_proto::each_message!(visit);
}

/// What a message takes is told by going into its parts: there is an end to that.
#[test]
fn no_message_holds_itself() {
    fn go(shape: &Shape, above: &mut Vec<&'static str>) {
        assert!(!above.contains(&shape.name), "{above:?} holds itself");
        above.push(shape.name);
        for field in shape.fields {
            if let Kind::Message(within) = field.kind {
                go(within, above);
            }
        }
        above.pop();
    }
    macro_rules! visit {
        ($name:ident) => {
            go(v1::$name::SHAPE, &mut Vec::new())
        };
    }
    flotilla_proto::each_message!(visit);
}

/// Four MiB of empty operations.
#[test]
fn what_asks_for_too_much_is_told_before_it_is_decoded() {
    let bytes = [0x12, 0].repeat(2 << 20);
    let memory = v1::BatchRequest::SHAPE.decoded(&bytes).expect("it can be walked through");
    assert!(memory > 4 * DECODED_MEMORY_MAX, "{memory}");
}
