//! A few numbers in few bytes: of each of a million ranges some are kept, and nearly all of them are small.
//!
//! Numbers are written one behind the other, seven bits a byte, the last byte below 128. Up to [`INLINE_MAX`] bytes take
//! no memory of their own.

/// Bytes that lie in the value itself.
const INLINE_MAX: usize = 22;

/// See the file's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Small {
    Inline(u8, [u8; INLINE_MAX]),
    Boxed(Box<[u8]>),
}

impl Default for Small {
    fn default() -> Self {
        Self::Inline(0, [0; INLINE_MAX])
    }
}

impl FromIterator<u64> for Small {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let (mut inline, mut len) = ([0; INLINE_MAX], 0);
        let mut more = Vec::new();
        for mut number in numbers {
            loop {
                let last = number < 0x80;
                let byte = (number & 0x7f) as u8 | if last { 0 } else { 0x80 };
                if len < INLINE_MAX && more.is_empty() {
                    inline[len] = byte;
                    len += 1;
                } else {
                    if more.is_empty() {
                        more.extend_from_slice(&inline);
                    }
                    more.push(byte);
                }
                if last {
                    break;
                }
                number >>= 7;
            }
        }
        if more.is_empty() { Self::Inline(len as u8, inline) } else { Self::Boxed(more.into_boxed_slice()) }
    }
}

impl Small {
    /// The numbers, in the order in which they were written.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let mut bytes = self.bytes().iter();
        std::iter::from_fn(move || {
            let (mut number, mut shift) = (0, 0);
            for byte in bytes.by_ref() {
                number |= u64::from(byte & 0x7f) << shift;
                if *byte < 0x80 {
                    return Some(number);
                }
                shift += 7;
            }
            None
        })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Self::Boxed(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_however_many_and_large() {
        let all = [0, 1, 127, 128, 300, 1 << 35, u64::MAX, 5, 6, u64::MAX, 7];
        for count in 0..=all.len() {
            let small: Small = all[..count].iter().copied().collect();
            assert_eq!(small.numbers().collect::<Vec<_>>(), &all[..count]);
            assert_eq!(matches!(small, Small::Inline(..)), small.bytes().len() <= INLINE_MAX);
        }
        assert_eq!(size_of::<Small>(), 24);
    }
}
