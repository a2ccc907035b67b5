//! What nodes tell of themselves, in Prometheus' text format.

use flotilla_benches::cluster::Result;
use serde::Serialize;

/// Bytes written, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Split {
    pub wal: f64,
    pub flush: f64,
    pub compaction: f64,
}

impl Split {
    /// Of all of Flotilla's nodes together, since they started.
    pub fn of(nodes: &[String]) -> Result<Self> {
        let mut sum = Self::default();
        for node in nodes {
            sum.wal += number(node, "flotilla_rocksdb_wal_bytes_total")?;
            sum.flush += number(node, "flotilla_rocksdb_flush_bytes_total")?;
            sum.compaction += number(node, "flotilla_rocksdb_compaction_bytes_total")?;
        }
        Ok(sum)
    }

    pub fn since(self, earlier: Self) -> Self {
        Self {
            wal: self.wal - earlier.wal,
            flush: self.flush - earlier.flush,
            compaction: self.compaction - earlier.compaction,
        }
    }
}

/// The value of a metric without labels.
pub fn number(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.ok_or_else(|| format!("a node's /metrics lacks {name}: it is of another version"))?;
    Ok(value.trim().parse().map_err(|error| format!("{name} {value}: {error}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "HTTP/1.0 200 OK\r\n\r\n# HELP flotilla_rocksdb_wal_bytes_total Bytes.\n\
        flotilla_rocksdb_wal_bytes_total 7\nflotilla_rocksdb_flush_bytes_total 1.5e+06\n\
        flotilla_rocksdb_compaction_bytes_total_of_yesterday 8\nflotilla_rocksdb_compaction_bytes_total 9\n";

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        assert_eq!(number(NODE, "flotilla_rocksdb_compaction_bytes_total").expect("there"), 9.0);
        assert!(number(NODE, "flotilla_rocksdb").expect_err("no name").to_string().contains("another version"));
        assert!(number("name what", "name").expect_err("no number").to_string().contains("name what"));
    }

    #[test]
    fn nodes_are_added_up() {
        let sum = Split::of(&[NODE.to_owned(), NODE.to_owned()]).expect("all are there");
        assert_eq!(sum, Split { wal: 14.0, flush: 3e6, compaction: 18.0 });
        assert_eq!(sum.since(sum), Split::default());
    }
}
