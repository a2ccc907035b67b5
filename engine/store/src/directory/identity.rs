//! IDENTITY: whose a data directory is. A few lines of text, so that a person can read them, with a
//! crc over all lines before it, so that a damaged file is not believed.
//!
//! ```text
//! flotilla data directory
//! format 1
//! cluster 00f3a5c2d1e4b697
//! node 3
//! crc32 8f64becc
//! ```
//! Invariant: the lines `flotilla data directory`, `format N` and the crc at the end are the same in all
//! formats, so that any program can tell that a directory is too new for it.

use std::fmt;
use std::path::Path;

use flotilla_proto::NodeId;

use super::DirectoryError;

/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

const HEAD: &str = "flotilla data directory";

/// Whose a data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The node in it.
    pub node_id: NodeId,
    /// The layout of the directory and of the keys in it.
    pub format: u32,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {:016x}", self.node_id.0, self.cluster_id)
    }
}

impl Identity {
    /// Of a directory in this program's format.
    pub fn new(cluster_id: u64, node_id: NodeId) -> Self {
        Self { cluster_id, node_id, format: FORMAT }
    }

    pub(super) fn to_text(self) -> String {
        let Self { cluster_id, node_id, format } = self;
        let body = format!("{HEAD}\nformat {format}\ncluster {cluster_id:016x}\nnode {}\n", node_id.0);
        let crc = crc32fast::hash(body.as_bytes());
        format!("{body}crc32 {crc:08x}\n")
    }
}

fn field<'a>(lines: &mut std::str::Lines<'a>, name: &str) -> Result<&'a str, String> {
    let line = lines.next().ok_or_else(|| format!("it ends before the line {name:?}"))?;
    line.strip_prefix(name)
        .and_then(|rest| rest.strip_prefix(' '))
        .ok_or_else(|| format!("the line {name:?} is missing"))
}

fn number(text: &str, radix: u32) -> Result<u64, String> {
    u64::from_str_radix(text, radix).map_err(|_| format!("{text:?} is not a number"))
}

enum Parsed {
    Identity(Identity),
    Newer(u32),
}

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let at = text.rfind("crc32 ").ok_or("it has no crc")?;
    let (body, crc) = text.split_at(at);
    // As text: a digit whose case has changed is damage too.
    if crc != format!("crc32 {:08x}\n", crc32fast::hash(body.as_bytes())) {
        return Err("its contents do not match its crc".into());
    }
    let mut lines = body.lines();
    if lines.next() != Some(HEAD) {
        return Err(format!("it does not begin with {HEAD:?}"));
    }
    let format = number(field(&mut lines, "format")?, 10)?;
    let format = u32::try_from(format).map_err(|_| format!("format {format} is out of bounds"))?;
    if format > FORMAT {
        return Ok(Parsed::Newer(format));
    }
    let cluster_id = number(field(&mut lines, "cluster")?, 16)?;
    let node_id = NodeId(number(field(&mut lines, "node")?, 10)?);
    Ok(Parsed::Identity(Identity { cluster_id, node_id, format }))
}

pub(super) fn read(path: &Path) -> Result<Identity, DirectoryError> {
    let bytes = std::fs::read(path).map_err(|error| DirectoryError::io("read", path, &error))?;
    match parse(&bytes) {
        Ok(Parsed::Identity(identity)) => Ok(identity),
        Ok(Parsed::Newer(found)) => Err(DirectoryError::NewerFormat { path: path.into(), found }),
        Err(what) => Err(DirectoryError::IdentityCorrupt { path: path.into(), what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let identity = Identity::new(0x00f3_a5c2_d1e4_b697, NodeId(3));
        let text = "flotilla data directory\nformat 1\ncluster 00f3a5c2d1e4b697\nnode 3\ncrc32 8f64becc\n";
        assert_eq!(identity.to_text(), text);
        assert!(matches!(parse(text.as_bytes()), Ok(Parsed::Identity(read)) if read == identity));
    }
}

/// For the tests of hostile inputs.
#[cfg(test)]
pub(crate) mod hostile {
    use super::*;

    pub(crate) fn sample() -> Vec<u8> {
        encode(Identity::new(0x00f3_a5c2_d1e4_b697, NodeId(3)))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Identity> {
        match super::parse(bytes) {
            Ok(Parsed::Identity(identity)) => Some(identity),
            Ok(Parsed::Newer(_)) | Err(_) => None,
        }
    }

    pub(crate) fn encode(identity: Identity) -> Vec<u8> {
        identity.to_text().into_bytes()
    }
}
