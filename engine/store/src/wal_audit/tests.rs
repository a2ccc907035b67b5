use super::*;

/// A small seeded generator (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 27)
    }

    fn bytes(&mut self, length_max: u64) -> Vec<u8> {
        let length = self.roll() % (length_max + 1);
        // Small values often: they are tags, types and lengths.
        (0..length)
            .map(|_| if self.roll().is_multiple_of(2) { self.roll() as u8 % 20 } else { self.roll() as u8 })
            .collect()
    }
}

fn mask(crc: u32) -> u32 {
    crc.rotate_left(17).wrapping_add(0xA282_EAD8)
}

/// A log file with `records`, as RocksDB writes it.
fn written(records: &[Vec<u8>], recycled_number: Option<u32>) -> Vec<u8> {
    let header_bytes = if recycled_number.is_some() { 11 } else { 7 };
    let mut file = Vec::new();
    for record in records {
        let mut rest = &record[..];
        let mut begun = false;
        loop {
            let left = BLOCK_BYTES - file.len() % BLOCK_BYTES;
            if left < header_bytes {
                file.resize(file.len() + left, 0);
                continue;
            }
            let (part, after) = rest.split_at(rest.len().min(left - header_bytes));
            let kind = match (begun, after.is_empty()) {
                (false, true) => 1,
                (false, false) => 2,
                (true, false) => 3,
                (true, true) => 4,
            };
            let mut body = vec![kind + if recycled_number.is_some() { 4 } else { 0 }];
            body.extend(recycled_number.iter().flat_map(|number| number.to_le_bytes()));
            body.extend_from_slice(part);
            file.extend_from_slice(&mask(crc32c::crc32c(&body)).to_le_bytes());
            file.extend_from_slice(&(part.len() as u16).to_le_bytes());
            file.extend_from_slice(&body);
            (rest, begun) = (after, true);
            if rest.is_empty() {
                break;
            }
        }
    }
    file
}

fn read_all(bytes: &[u8], number: u64) -> (Vec<Vec<u8>>, Option<Bad>) {
    let file = LogFile::new(bytes, number);
    let (mut records, mut at) = (Vec::new(), 0);
    loop {
        match file.record(at) {
            Ok(Some(record)) => {
                records.push(record.data.to_vec());
                at = record.end;
            }
            Ok(None) => return (records, None),
            Err(bad) => return (records, Some(bad)),
        }
    }
}

#[test]
fn records_of_all_sizes_are_read_back_recycled_or_not() {
    for seed in 0..50 {
        let mut dice = Dice(seed);
        let records: Vec<Vec<u8>> = (0..8).map(|n| dice.bytes([1, 40, 5000, 100_000][n % 4])).collect();
        assert_eq!(read_all(&written(&records, None), 9), (records.clone(), None), "seed {seed}");
        // A recycled file ends at the first record that its former life left; 12 bytes stay free for it.
        let mut recycled = written(&records, Some(9));
        assert_eq!(read_all(&recycled, 9), (records.clone(), None), "seed {seed}");
        if BLOCK_BYTES - recycled.len() % BLOCK_BYTES > 12 {
            recycled.extend(written(&[vec![1]], Some(8)));
            let (read, bad) = read_all(&recycled, 9);
            assert_eq!((read, bad.map(|bad| bad.what)), (records, Some("a record of an older file")), "seed {seed}");
        }
    }
}

#[test]
fn a_damaged_record_hides_no_later_one() {
    let records: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; 3000]).collect();
    let sound = written(&records, None);
    for at in (0..sound.len() - 3100).step_by(97) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x55;
        let (before, bad) = read_all(&bytes, 1);
        let Some(bad) = bad else {
            assert!(before == records, "byte {at} is filler");
            continue;
        };
        assert!(before == records[..before.len()], "byte {at}");
        let file = LogFile::new(&bytes, 1);
        let next = file.next_intact(bad.offset, |data| data.len() == 3000).expect("later records are whole");
        assert_eq!(next.data[0], records[before.len() + 1][0], "byte {at}");
    }
}

#[test]
fn random_bytes_make_nothing_panic() {
    for seed in 0..100_000 {
        let mut dice = Dice(seed);
        let bytes = dice.bytes(80);
        let _ = Batch::decode(&bytes);
        let _ = manifest::Edits::default().apply(&bytes);
        let (_, bad) = read_all(&bytes, 1);
        let file = LogFile::new(&bytes, 1);
        let _ = file.next_intact(bad.map_or(0, |bad| bad.offset), |_| true);
    }
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let mut bytes = written(&[dice.bytes(100_000), dice.bytes(100_000)], None);
        for _ in 0..1 + dice.roll() % 4 {
            let at = dice.roll() as usize % bytes.len();
            bytes[at] = dice.roll() as u8;
        }
        bytes.truncate(1 + dice.roll() as usize % bytes.len());
        let (_, bad) = read_all(&bytes, 1);
        let _ = LogFile::new(&bytes, 1).next_intact(bad.map_or(0, |bad| bad.offset), |_| true);
    }
}

#[test]
fn a_batch_is_decoded_and_nothing_else() {
    // Sequence number 7, 2 changes: put in family 1, range delete in family 2; a mark before.
    let head = [&7u64.to_le_bytes()[..], &2u32.to_le_bytes()].concat();
    let mark_change = [&[0x03, 12][..], &mark(5)].concat();
    let put = [0x05, 1, 1, b'k', 2, b'v', b'w'];
    let delete_range = [0x0E, 2, 1, b'a', 1, b'b'];
    let batch = [&head[..], &mark_change, &put, &delete_range].concat();
    assert_eq!(Batch::decode(&batch), Some(Batch { first: 7, count: 2, synced: 5 }));
    assert_eq!(Batch::decode(&batch).map(Batch::next), Some(9));
    for length in 0..batch.len() {
        assert_eq!(Batch::decode(&batch[..length]), None, "cut at {length}");
    }
    let future_mark = [&head[..], &[0x03, 12][..], &mark(7), &put, &delete_range].concat();
    assert_eq!(Batch::decode(&future_mark), None, "a mark cannot cover its own batch");
}
