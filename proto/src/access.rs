//! Who may call which RPC: the table proto/access.txt, which the build checks against the services.
//!
//! Invariant: an RPC that has no line may be called by nobody, so what is forgotten is closed.

/// Who may call an RPC. Whoever may do more may do less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Whoever is let in at the port.
    Anyone,
    /// Reads and writes keys, and looks at the cluster.
    Client,
    /// Changes the cluster. As long as there are no users and roles, every client is one.
    Operator,
    /// The nodes of the cluster.
    Node,
}

/// By path, in order.
const TABLE: &[(&str, Who)] = &include!(concat!(env!("OUT_DIR"), "/access.rs"));

/// Who may call the RPC of a path (`/PACKAGE.SERVICE/METHOD`); `None`: nobody.
pub fn who_may_call(path: &str) -> Option<Who> {
    TABLE.binary_search_by(|(known, _)| (*known).cmp(path)).ok().map(|at| TABLE[at].1)
}

#[cfg(test)]
#[path = "../build/access.rs"]
mod build;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_is_found_and_nothing_else() {
        assert!(TABLE.is_sorted_by_key(|(path, _)| *path));
        for (path, who) in TABLE {
            assert_eq!(who_may_call(path), Some(*who));
        }
        assert_eq!(who_may_call("/flotilla.v1.Kv/Put"), Some(Who::Client));
        assert_eq!(who_may_call("/flotilla.v1.Placement/Report"), Some(Who::Node));
        assert_eq!(who_may_call("/flotilla.v1.Kv/"), None);
        assert_eq!(who_may_call("/flotilla.v1.Kv/Burn"), None);
    }

    #[test]
    fn the_build_refuses_a_table_that_is_not_the_services() {
        let table = build::parse("# words\n/a.B/C client # more\n/x.Y/Z node\n").expect("two lines");
        let check = |rpcs: &[&str]| {
            let rpcs: Vec<String> = rpcs.iter().map(|rpc| (*rpc).to_string()).collect();
            build::check(&table, &["a.B".to_string()], &rpcs)
        };
        assert_eq!(check(&["/a.B/C"]), Ok(()));
        let missing = check(&["/a.B/C", "/a.B/D"]).expect_err("D is missing");
        assert!(missing.starts_with("/a.B/D has no line"), "{missing}");
        let gone = check(&[]).expect_err("there is no C");
        assert!(gone.contains("a line for /a.B/C"), "{gone}");
        for (text, words) in [
            ("/a.B/C", "line 1: write"),
            ("\n/a.B/C king", "line 2: there is no \"king\""),
            ("a.B/C client", "is no /PACKAGE"),
            ("/a.B/C client\n/a.B/C node", "has a line already"),
        ] {
            let error = build::parse(text).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
    }
}
