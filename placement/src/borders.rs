//! Cuts of an empty keyspace into ranges: where keys are made of letters and digits, as paths and names are,
//! ranges of equal width get about equal shares.

use bytes::Bytes;
use flotilla_proto::v1;

/// The characters that borders are made of, in order.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Most ranges that a keyspace may be cut into at its birth.
pub const RANGES_MAX: u32 = 100_000;

/// `ranges - 1` borders that cut the alphabet's strings into equal shares, as short as they can be
/// told apart.
fn borders(ranges: u32) -> Vec<Bytes> {
    let base = ALPHABET.len() as u64;
    let digits = digits(u64::from(ranges));
    let all = base.pow(digits);
    (1..u64::from(ranges))
        .map(|at| {
            let mut number = at * all / u64::from(ranges);
            let mut border = vec![0; digits as usize];
            for place in border.iter_mut().rev() {
                *place = ALPHABET[(number % base) as usize];
                number /= base;
            }
            while border.len() > 1 && border.last() == Some(&ALPHABET[0]) {
                border.pop();
            }
            border.into()
        })
        .collect()
}

/// Whether a keyspace that was cut into `ranges` at its birth has a border here.
pub(crate) fn is_border(ranges: u32, key: &[u8]) -> bool {
    let (base, ranges) = (ALPHABET.len() as u64, u64::from(ranges));
    let digits = digits(ranges);
    let trimmed = key.len() == 1 || key.last() != Some(&ALPHABET[0]);
    if key.is_empty() || key.len() > digits as usize || !trimmed {
        return false;
    }
    let mut number = 0;
    for place in 0..digits as usize {
        let byte = key.get(place).unwrap_or(&ALPHABET[0]);
        let Some(digit) = ALPHABET.iter().position(|known| known == byte) else { return false };
        number = number * base + digit as u64;
    }
    let all = base.pow(digits);
    let at = (number * ranges).div_ceil(all);
    (1..ranges).contains(&at) && at * all / ranges == number
}

/// Characters that borders between so many ranges have at most.
fn digits(ranges: u64) -> u32 {
    let mut digits = 1;
    while (ALPHABET.len() as u64).pow(digits) < ranges * 4 {
        digits += 1;
    }
    digits
}

/// The bounds of `ranges` ranges that tile a keyspace: first key and first key behind.
pub(crate) fn bounds(ranges: u32) -> Vec<(Bytes, Bytes)> {
    let borders = borders(ranges);
    let starts = std::iter::once(Bytes::new()).chain(borders.iter().cloned());
    let ends = borders.iter().cloned().chain(std::iter::once(Bytes::new()));
    starts.zip(ends).collect()
}

/// A descriptor of a range that begins its life with voters on these nodes.
pub(crate) fn descriptor(range: u64, keyspace: u64, bounds: (Bytes, Bytes), nodes: &[u64]) -> v1::RangeDescriptor {
    v1::RangeDescriptor {
        range_id: range,
        keyspace_id: keyspace,
        start: bounds.0,
        end: bounds.1,
        epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
        replicas: nodes
            .iter()
            .zip(1..)
            .map(|(node, id)| v1::ReplicaDescriptor {
                replica_id: id,
                node_id: *node,
                role: v1::ReplicaRole::Voter.into(),
            })
            .collect(),
        next_replica_id: nodes.len() as u64 + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_tile_the_keyspace() {
        for count in [1, 2, 16, 61, 62, 63, 256, 5_000] {
            let bounds = bounds(count);
            assert_eq!(bounds.len(), count as usize);
            assert!(bounds[0].0.is_empty() && bounds[count as usize - 1].1.is_empty());
            for pair in bounds.windows(2) {
                assert_eq!(pair[0].1, pair[1].0);
                assert!(pair[0].0 < pair[0].1, "{pair:?}");
            }
        }
    }

    #[test]
    fn borders_are_known_by_their_keys() {
        for count in [1, 2, 5, 16, 61, 62, 63, 256, 5_000] {
            let borders = borders(count);
            assert!(borders.iter().all(|border| is_border(count, border)), "{count}");
            for other in [&b""[..], b"0", b"0x", b"C0", b"CC", b"/", b"zzzzzzzz"] {
                assert_eq!(is_border(count, other), borders.iter().any(|border| border == other), "{count} {other:?}");
            }
        }
    }

    #[test]
    fn borders_stay_what_they_are() {
        let text: Vec<String> = borders(5).iter().map(|border| String::from_utf8_lossy(border).into_owned()).collect();
        assert_eq!(text, ["C", "O", "b", "n"]);
    }
}
