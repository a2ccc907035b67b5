//! flotilla-hostile: what nobody should send, for every decoder of bytes from outside. Tests alone depend on it.
//!
//! ```text
//! generator ─▶ valid encodings ─▶ mutations (mutate.rs, wire.rs) ─▶ the decoder ─▶ no panic, bounded memory,
//! seed ──────▶ random bytes ────────────────────────────────────▶                 what is accepted comes back
//! ```
//! A decoder is tested where it is, as private as it is, by one [`Decoder`]. Each has its line in decoders.txt, beside
//! this crate's manifest; a test holds that table against the source (tests/table.rs).
//!
//! Why no library for properties: their generators make values of types, these inputs are neither types nor random
//! bytes but what is left of valid encodings; and their shrinking and their state cost more than the decoders do. What
//! is random comes from fastrand, what is allocated is counted by allocation-counter, whose allocator is that of every
//! test program with this crate in it.
//!
//! Invariant: an input follows from seed, decoder and number alone, so that a failure is repeated by what it prints.

mod mutate;
pub mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
pub use fastrand::Rng;

/// The table of decoders: name, source file, which of them are tested how.
pub const TABLE: &str = include_str!("../decoders.txt");

/// Inputs of each decoder where nothing else is said.
const INPUTS: u64 = 100_000;
/// Of a failing input so much is printed.
const PRINTED_BYTES: usize = 512;

type Generator<'a> = Box<dyn Fn(&mut Rng) -> Vec<u8> + 'a>;
type Limit<'a> = Box<dyn Fn(&[u8]) -> usize + 'a>;

/// A decoder, and what it is given.
pub struct Decoder<'a> {
    name: &'static str,
    /// One of several with this name.
    part: &'a str,
    /// One of so many inputs is given to it.
    share: u64,
    generator: Generator<'a>,
    /// Most memory that an input may take.
    limit: Limit<'a>,
    /// Makes a checksum right again that a mutation has broken.
    seal: Option<fn(Vec<u8>) -> Vec<u8>>,
    /// Pieces of text that mutations put in.
    words: &'static [&'static str],
    /// Bytes in front of a protobuf; `None`: mutations know nothing of protobufs.
    head: Option<usize>,
    regressions: Vec<Vec<u8>>,
}

impl<'a> Decoder<'a> {
    /// The decoder of this name in the table, with some valid encodings.
    pub fn new(name: &'static str, samples: Vec<Vec<u8>>) -> Self {
        assert!(!samples.is_empty(), "{name}: at least one valid encoding");
        Self::generated(name, move |rng| samples[rng.usize(..samples.len())].clone())
    }

    /// The same, with valid encodings as many as one likes.
    pub fn generated(name: &'static str, generator: impl Fn(&mut Rng) -> Vec<u8> + 'a) -> Self {
        let listed = TABLE.lines().any(|line| line.split(" | ").next().is_some_and(|first| first.trim() == name));
        assert!(listed, "\"{name}\" has no line in hostile/decoders.txt: add one");
        Self {
            name,
            part: "",
            share: 1,
            generator: Box::new(generator),
            limit: Box::new(|input| 4 * input.len() + 1_024),
            seal: None,
            words: &[],
            head: None,
            regressions: Vec::new(),
        }
    }

    /// One of several decoders in the same line of the table.
    #[must_use]
    pub fn of(mut self, part: &'a str) -> Self {
        self.part = part;
        self
    }

    /// It is given one of so many inputs alone.
    #[must_use]
    pub fn share(mut self, share: u64) -> Self {
        self.share = share;
        self
    }

    /// At most so much memory, at any moment, for an input of so many bytes: `per_byte * bytes + constant`. Without
    /// this, four times its size and 1 KiB.
    #[must_use]
    pub fn memory(self, per_byte: usize, constant: usize) -> Self {
        self.memory_of(move |input| per_byte * input.len() + constant)
    }

    /// The same, by the input itself.
    #[must_use]
    pub fn memory_of(mut self, limit: impl Fn(&[u8]) -> usize + 'a) -> Self {
        self.limit = Box::new(limit);
        self
    }

    /// Behind a checksum: this makes it right. Half of the mutated inputs come with a right one, so that what lies behind
    /// it is reached.
    #[must_use]
    pub fn sealed(mut self, seal: fn(Vec<u8>) -> Vec<u8>) -> Self {
        self.seal = Some(seal);
        self
    }

    /// Text: mutations put these in.
    #[must_use]
    pub fn words(mut self, words: &'static [&'static str]) -> Self {
        self.words = words;
        self
    }

    /// A protobuf, behind so many other bytes: mutations also change its fields, with lengths around them that are right.
    #[must_use]
    pub fn protobuf(mut self, head: usize) -> Self {
        self.head = Some(head);
        self
    }

    /// An input that was decoded wrongly once.
    #[must_use]
    pub fn regression(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.regressions.push(input.into());
        self
    }

    /// Gives it all inputs. `decode` returns what it has decoded, or `None` if it refuses the input.
    ///
    /// Nothing may panic or take more memory than it may; what is accepted is accepted again when it is encoded, and
    /// encoded the same then; and valid encodings are accepted.
    pub fn check<T>(self, decode: impl Fn(&Bytes) -> Option<T>, encode: impl Fn(&T) -> Vec<u8>) {
        let (inputs, seed) = (number("FLOTILLA_HOSTILE_INPUTS", INPUTS), number("FLOTILLA_HOSTILE_SEED", 0));
        let inputs = inputs.div_ceil(self.share);
        for (at, input) in self.regressions.iter().enumerate() {
            self.one(&Bytes::copy_from_slice(input), &decode, &encode, &format!("regression {at}"));
        }
        let mut accepted = 0;
        let only = std::env::var("FLOTILLA_HOSTILE_INPUT").ok().map(|text| text.parse().expect("a number"));
        for at in only.map_or(0..inputs, |only| only..only + 1) {
            let mut rng = Rng::with_seed(
                seed ^ hash(self.name) ^ hash(self.part).rotate_left(1) ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            );
            let (input, valid) = self.input(&mut rng);
            let which = format_args!("FLOTILLA_HOSTILE_SEED={seed} FLOTILLA_HOSTILE_INPUT={at}").to_string();
            let input = Bytes::from(input);
            let well = self.one(&input, &decode, &encode, &which);
            assert!(well || !valid, "{}: refused what is valid: {}; {which}", self.whose(), shown(&input));
            accepted += u64::from(well);
        }
        println!("hostile inputs: {inputs} to {}, {accepted} of them accepted", self.whose());
    }

    fn whose(&self) -> String {
        if self.part.is_empty() { self.name.into() } else { format!("{} ({})", self.name, self.part) }
    }

    /// One input, and whether it is a valid encoding as it is.
    fn input(&self, rng: &mut Rng) -> (Vec<u8>, bool) {
        match rng.u8(..16) {
            0 => return (mutate::random(rng), false),
            1 => return ((self.generator)(rng), true),
            _ => {}
        }
        let mut input = (self.generator)(rng);
        if let Some(head) = self.head.filter(|head| *head <= input.len() && rng.bool()) {
            let body = input.split_off(head);
            input.extend(mutate::fields(rng, &body));
        } else {
            mutate::bytes(rng, &mut input, self.words, || (self.generator)(&mut Rng::with_seed(7)));
        }
        if let Some(seal) = self.seal.filter(|_| rng.bool()) {
            input = seal(input);
        }
        (input, false)
    }

    fn one<T>(
        &self,
        input: &Bytes,
        decode: &impl Fn(&Bytes) -> Option<T>,
        encode: &impl Fn(&T) -> Vec<u8>,
        which: &str,
    ) -> bool {
        let tell = |what: String| -> ! {
            panic!("{}: {what}: input of {} bytes {}; {which}", self.whose(), input.len(), shown(input))
        };
        let run = || {
            let mut decoded = None;
            let info = allocation_counter::measure(|| decoded = decode(input));
            let limit = (self.limit)(input);
            if info.bytes_max > limit as u64 {
                tell(format!("{} bytes of memory where {limit} are allowed", info.bytes_max));
            }
            let encoded = Bytes::from(encode(&decoded?));
            match decode(&encoded).map(|again| encode(&again)) {
                Some(again) if again == encoded => {}
                Some(again) => tell(format!("comes back as {}, and then as {}", shown(&encoded), shown(&again))),
                None => tell(format!("comes back as {}, which is refused", shown(&encoded))),
            }
            Some(())
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(accepted) => accepted.is_some(),
            Err(_) => tell("it failed, as told above".into()),
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

/// Decoders of the same form get different inputs.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn shown(input: &[u8]) -> String {
    let text: String = input.iter().take(PRINTED_BYTES).map(|byte| format!("{byte:02x}")).collect();
    if input.len() > PRINTED_BYTES { text + "..." } else { text }
}
