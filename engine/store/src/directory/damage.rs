//! DAMAGED: the mark that a store was seen to be damaged, so that its node does not start on it again.
//!
//! Place in the flow: written when damage is met while the node runs, or after RocksDB opened the database
//! ([`crate::RocksStorage::note_damage`]); read under the lock, before anything else of the directory. A
//! supervisor that starts the node again meets the same words each time, although the bad block may not be read
//! for days.
//!
//! ```text
//! flotilla damaged store
//! when 2026-11-22 07:40:12 UTC
//! seen db/000012.sst: block checksum mismatch ...
//! ```
//! Invariant: that the file is there is the refusal, whatever it holds. Only a person removes it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{DirectoryError, write_atomically};

pub(super) const DAMAGED: &str = "DAMAGED";
const HEAD: &str = "flotilla damaged store";

/// Leaves the mark. The first one stays: what was seen first is nearest to the cause.
pub(super) fn write(directory: &Path, seen: &str) -> Result<(), DirectoryError> {
    let path = directory.join(DAMAGED);
    if path.exists() {
        return Ok(());
    }
    let seen = seen.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = format!("{HEAD}\nwhen {}\nseen {seen}\n", utc(SystemTime::now()));
    write_atomically(&path, text.as_bytes())
}

/// Refuses a directory with a mark, in its words.
pub(super) fn refuse(directory: &Path) -> Result<(), DirectoryError> {
    let path = directory.join(DAMAGED);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DirectoryError::io("read", &path, &error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    let (when, seen) = (line("when "), line("seen "));
    let or_unknown =
        |text: &str| if text.is_empty() { "(the mark cannot be read)".to_owned() } else { text.to_owned() };
    Err(DirectoryError::Damaged { path: directory.into(), seen: or_unknown(seen), when: or_unknown(when) })
}

/// A time by the calendar, to the second.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 0000-03-01, so that a leap day is the last one of its year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let of_era_year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_era_year + of_era_year / 4 - of_era_year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + of_era_year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_first_mark_stays_and_any_mark_refuses() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        assert_eq!(refuse(directory.path()), Ok(()));
        write(directory.path(), "db/000012.sst: bad\nblock").expect("it can be written");
        write(directory.path(), "something else").expect("there is one");
        match refuse(directory.path()) {
            Err(DirectoryError::Damaged { seen, when, .. }) => {
                assert_eq!(seen, "db/000012.sst: bad block");
                assert!(when.ends_with(" UTC"), "{when}");
            }
            other => panic!("{other:?}"),
        }
        std::fs::write(directory.path().join(DAMAGED), [0xFF, 0]).expect("it can be written");
        assert!(matches!(refuse(directory.path()), Err(DirectoryError::Damaged { .. })), "whatever it holds");
    }
}
