use super::*;

fn entry(what: &str, unix_ms: u64) -> v1::HistoryEntry {
    v1::HistoryEntry { unix_ms, ..of_nodes(kind::DEAD, &[1], what) }
}

fn apply(history: &mut History, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::History(first, page) => history.set(first, page),
            Change::NoHistory(first) => history.remove(first),
            other => panic!("no change of the history: {other:?}"),
        }
    }
}

#[test]
fn entries_share_pages_and_ids_only_grow() {
    let mut history = History::default();
    for at in 0..200 {
        let changes = history.append(vec![entry("x", at)], 1_000, 0);
        apply(&mut history, changes);
    }
    assert_eq!((history.entries, history.pages.len()), (200, 200_usize.div_ceil(PAGE_ENTRIES)));
    let ids: Vec<u64> = history.newest_first().map(|entry| entry.id).collect();
    assert_eq!(ids, (1..=200).rev().collect::<Vec<_>>());
    // Many at once are one page.
    let changes = history.append((0..300).map(|at| entry("y", at)).collect(), 1_000, 0);
    assert_eq!(changes.len(), 1);
    apply(&mut history, changes);
    assert_eq!(history.newest_first().next().map(|entry| entry.id), Some(500));
}

#[test]
fn old_pages_go_by_count_and_by_age_and_the_newest_stays() {
    let mut history = History::default();
    for at in 0..1_000 {
        let changes = history.append(vec![entry("x", at)], 100, 0);
        assert!(changes.len() <= 1 + TRIMMED_MAX);
        apply(&mut history, changes);
    }
    assert!((100 - PAGE_ENTRIES..=100 + PAGE_ENTRIES).contains(&history.entries), "{}", history.entries);
    // Everything is older than what is kept, and still the ids go on.
    let changes = history.append(vec![entry("new", 5_000)], 100, 4_000);
    apply(&mut history, changes);
    for at in 0..10 {
        let changes = history.append((0..PAGE_ENTRIES).map(|_| entry("new", 5_001 + at)).collect(), 1_000, 4_000);
        apply(&mut history, changes);
    }
    assert!(history.newest_first().all(|entry| entry.unix_ms >= 4_000 || entry.id > 990), "aged pages are gone");
    assert_eq!(history.newest_first().next().map(|entry| entry.id), Some(1_001 + 10 * PAGE_ENTRIES as u64));
    let counted: usize = history.pages.values().map(|page| page.entries.len()).sum();
    assert_eq!(history.entries, counted);
}

#[test]
fn long_sentences_are_cut_at_a_character() {
    let mut what = "\u{f6}".repeat(WHAT_BYTES_MAX);
    shorten(&mut what);
    assert!(what.ends_with("\u{f6}...") && what.len() <= WHAT_BYTES_MAX + 3);
    let mut short = "short".to_owned();
    shorten(&mut short);
    assert_eq!(short, "short");
}
