//! A node's side of the reports: what is to be said next, from what was said and answered before. Pure.
//!
//! What has not changed since the last answered report is left out; a service that knows less asks for all, and so
//! does a node that was not answered: whoever answers next may have heard less. A round is one report, or several if
//! there is much to say; each waits for the answer to the one before.
//!
//! A node with many ranges, most of which sleep, names only those that may have changed ([`Reporter::begin_changes`]): what
//! did not change costs nothing, neither time nor more memory than a checksum of what was said.

use std::collections::{BTreeMap, VecDeque};

use flotilla_proto::v1;
use prost::Message;

/// Bytes of one report.
const REPORT_BYTES_MAX: usize = 1 << 20;

/// See the file's head.
#[derive(Debug)]
pub struct Reporter {
    sequence: u64,
    reign: u64,
    full: bool,
    /// What the service has been told of each range.
    told: BTreeMap<u64, Told>,
    round: Option<Round>,
}

/// What was said of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    /// A hash of all but the size, and for how long a standstill has gone on: that is no news.
    rest: u64,
    data_bytes: u64,
}

impl Told {
    fn of(report: &v1::RangeReport) -> Self {
        let frozen = report.frozen.clone().map(|frozen| v1::FrozenRange { frozen_ms: 0, ..frozen });
        let rest = v1::RangeReport { data_bytes: 0, frozen, ..report.clone() }.encode_to_vec();
        // FNV-1a, 64 bits (Fowler, Noll, Vo).
        let rest = rest
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        Self { rest, data_bytes: report.data_bytes }
    }

    /// Whether `now` says something else; a size that moves a little is no news.
    fn differs(self, now: Self) -> bool {
        self.rest != now.rest || self.data_bytes.abs_diff(now.data_bytes) > self.data_bytes / 20
    }
}

#[derive(Debug)]
struct Round {
    /// What the service knows of ranges when the round is over, and did not know before.
    news: Vec<(u64, Told)>,
    ended: Vec<u64>,
    /// It is about everything.
    complete: bool,
    pages: VecDeque<Vec<v1::RangeReport>>,
    gone: Vec<u64>,
    /// The next page begins a listing of everything.
    full: bool,
}

impl Default for Reporter {
    fn default() -> Self {
        Self { sequence: 0, reign: 0, full: true, told: BTreeMap::new(), round: None }
    }
}

impl Reporter {
    /// Whether the next round has to be one of everything.
    pub fn wants_all(&self) -> bool {
        self.full
    }

    /// Begins a round: `now` is all that the node has, by range.
    pub fn begin(&mut self, now: BTreeMap<u64, v1::RangeReport>) {
        let gone = self.told.keys().filter(|id| !now.contains_key(id)).copied().collect();
        self.begin_changes(now, gone);
    }

    /// Begins a round: what may have changed since the last one was begun, by range, and what has gone. Only if
    /// everything is wanted is it everything.
    pub fn begin_changes(&mut self, changed: BTreeMap<u64, v1::RangeReport>, gone: Vec<u64>) {
        let full = self.full;
        let ended: Vec<u64> = gone.into_iter().filter(|id| self.told.contains_key(id)).collect();
        let mut news = Vec::new();
        let mut reports = Vec::new();
        for (id, report) in changed {
            let now = Told::of(&report);
            if full || self.told.get(&id).is_none_or(|told| told.differs(now)) {
                news.push((id, now));
                reports.push(report);
            }
        }
        let gone = if full { Vec::new() } else { ended.clone() };
        self.round = Some(Round { news, ended, complete: full, pages: pages(reports.into_iter()), gone, full });
    }

    /// The round's next report, to which the caller adds who the node is and how it is; `None`: the round is over.
    pub fn next_report(&mut self) -> Option<v1::ReportRequest> {
        let round = self.round.as_mut()?;
        let ranges = round.pages.pop_front()?;
        self.sequence += 1;
        Some(v1::ReportRequest {
            sequence: self.sequence,
            reign: self.reign,
            // Only the first page says that it is a full report: that begins the listing anew.
            full: std::mem::take(&mut round.full),
            ranges,
            gone: std::mem::take(&mut round.gone),
            more: !round.pages.is_empty(),
            ..Default::default()
        })
    }

    /// The last report was answered.
    pub fn answered(&mut self, answer: &v1::ReportResponse) {
        self.reign = answer.reign;
        self.full = answer.send_full;
        if let Some(round) = self.round.take_if(|round| round.pages.is_empty())
            && !self.full
        {
            if round.complete {
                self.told.clear();
            }
            self.told.retain(|id, _| !round.ended.contains(id));
            self.told.extend(round.news);
        }
    }

    /// The last report was not answered, or refused: the round is over.
    pub fn failed(&mut self) {
        self.full = true;
        self.round = None;
    }
}

/// Reports in portions of a bounded size; one portion at least.
fn pages(reports: impl Iterator<Item = v1::RangeReport>) -> VecDeque<Vec<v1::RangeReport>> {
    let (mut pages, mut page, mut bytes) = (VecDeque::new(), Vec::new(), 0);
    for report in reports {
        let size = report.encoded_len();
        if bytes + size > REPORT_BYTES_MAX {
            pages.push_back(std::mem::take(&mut page));
            bytes = 0;
        }
        bytes += size;
        page.push(report);
    }
    pages.push_back(page);
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn having(ranges: &[(u64, u64)]) -> BTreeMap<u64, v1::RangeReport> {
        let report = |term| v1::RangeReport { term, ..Default::default() };
        ranges.iter().map(|(range, term)| (*range, report(*term))).collect()
    }

    /// Whoever takes a report refuses one that would take too much memory: no page may come near that.
    #[test]
    fn a_page_of_the_smallest_reports_is_far_from_what_may_be_decoded() {
        use flotilla_proto::limits::DECODED_MEMORY_MAX;
        use flotilla_proto::memory::Shaped;
        let replica = v1::ReplicaDescriptor { replica_id: 1, node_id: 1, ..Default::default() };
        let descriptor = v1::RangeDescriptor {
            range_id: 1,
            keyspace_id: 1,
            epoch: Some(v1::Epoch { conf_ver: 1, version: 1 }),
            start: "k".into(),
            end: "l".into(),
            replicas: vec![replica],
            next_replica_id: 2,
        };
        let report = v1::RangeReport { descriptor: Some(descriptor), replica_id: 1, term: 6, ..Default::default() };
        let ranges = pages(std::iter::repeat_n(report, REPORT_BYTES_MAX / 8)).pop_front().expect("a full page");
        let bytes = v1::ReportRequest { ranges, ..Default::default() }.encode_to_vec();
        let memory = v1::ReportRequest::SHAPE.decoded(&bytes).expect("just encoded");
        assert!(bytes.len() > REPORT_BYTES_MAX && memory < DECODED_MEMORY_MAX / 2, "{memory} of {}", bytes.len());
    }

    fn terms(report: &v1::ReportRequest) -> Vec<u64> {
        report.ranges.iter().map(|range| range.term).collect()
    }

    fn answer(send_full: bool) -> v1::ReportResponse {
        v1::ReportResponse { reign: 7, send_full, ..Default::default() }
    }

    #[test]
    fn only_news_are_told_until_everything_is_asked_for_or_an_answer_fails() {
        let mut reporter = Reporter::default();
        let mut report = |answered: Option<bool>, ranges: &[(u64, u64)]| {
            reporter.begin(having(ranges));
            let report = reporter.next_report().expect("there is always one");
            match answered {
                Some(send_full) => reporter.answered(&answer(send_full)),
                None => reporter.failed(),
            }
            (report.full, terms(&report), report.gone)
        };
        assert_eq!(report(Some(false), &[(2, 1), (3, 1)]), (true, vec![1, 1], vec![]));
        assert_eq!(report(Some(false), &[(2, 5)]), (false, vec![5], vec![3]));
        assert_eq!(report(Some(true), &[(2, 5)]), (false, vec![], vec![]));
        assert_eq!(report(Some(false), &[(2, 5)]), (true, vec![5], vec![]));
        assert_eq!(report(None, &[(2, 6)]), (false, vec![6], vec![]));
        assert_eq!(report(Some(false), &[(2, 6), (4, 4)]), (true, vec![6, 4], vec![]));
    }

    #[test]
    fn a_standstill_that_goes_on_is_no_news() {
        let frozen = |frozen_ms, waits: &str| {
            let frozen = v1::FrozenRange { target_range_id: 1, freeze_index: 9, frozen_ms, waits: waits.into() };
            BTreeMap::from([(2, v1::RangeReport { term: 1, frozen: Some(frozen), ..Default::default() })])
        };
        let mut reporter = Reporter::default();
        let mut told = |now| {
            reporter.begin(now);
            let report = reporter.next_report().expect("there is always one");
            reporter.answered(&answer(false));
            report.ranges.len()
        };
        let rounds = [frozen(0, "a"), frozen(500, "a"), frozen(900, "a"), frozen(1_000, "b"), having(&[(2, 1)])];
        assert_eq!(rounds.map(&mut told), [1, 0, 0, 1, 1]);
    }

    #[test]
    fn of_what_may_have_changed_only_news_are_told_and_the_rest_is_remembered() {
        let mut reporter = Reporter::default();
        let mut report = |ranges: &[(u64, u64)], gone: &[u64]| {
            reporter.begin_changes(having(ranges), gone.to_vec());
            let report = reporter.next_report().expect("there is always one");
            reporter.answered(&answer(false));
            (report.full, terms(&report), report.gone)
        };
        assert_eq!(report(&[(2, 1), (3, 1), (4, 1)], &[]), (true, vec![1, 1, 1], vec![]));
        assert_eq!(report(&[(3, 1)], &[]), (false, vec![], vec![]), "it woke, and fell asleep as it was");
        assert_eq!(report(&[(3, 2)], &[4, 9]), (false, vec![2], vec![4]));
        assert_eq!(report(&[(2, 1), (3, 2), (4, 1)], &[]), (false, vec![1], vec![]), "one has come back");
        assert!(!reporter.wants_all());
        reporter.begin_changes(having(&[(2, 3)]), vec![]);
        reporter.failed();
        assert!(reporter.wants_all());
    }

    #[test]
    fn much_goes_in_pages_of_which_the_first_begins_the_listing() {
        let mut reporter = Reporter::default();
        let text = "x".repeat(REPORT_BYTES_MAX / 2);
        let large = |range| (range, v1::RangeReport { order_waits: text.clone(), ..Default::default() });
        reporter.begin((2..5).map(large).collect());
        let mut seen = Vec::new();
        while let Some(report) = reporter.next_report() {
            seen.push((report.sequence, report.full, report.more));
            reporter.answered(&answer(false));
        }
        assert_eq!(seen, [(1, true, true), (2, false, true), (3, false, false)]);
    }
}
