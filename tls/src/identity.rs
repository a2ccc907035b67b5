//! Whose certificate it is: a node's or a client's of one cluster, as a URI among the certificate's names.
//!
//! ```text
//! flotilla://prod/node/2      flotilla://prod/client/alice      flotilla://prod/ca
//! ```
//! A cluster's and a client's name may hold anything: whatever is not a letter, a digit or one of `-._` is written as
//! %XX, so that two names are equal only if their URIs are.

use std::fmt;

use flotilla_proto::NodeId;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

const SCHEME: &str = "flotilla://";

/// Whose a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// What it is there.
    pub role: Role,
}

/// What the owner of a certificate is in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node.
    Node(NodeId),
    /// A client, by its name.
    Client(String),
    /// The one that signs the others.
    Ca,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = escaped(&self.cluster);
        match &self.role {
            Role::Node(node) => write!(f, "{SCHEME}{cluster}/node/{}", node.0),
            Role::Client(name) => write!(f, "{SCHEME}{cluster}/client/{}", escaped(name)),
            Role::Ca => write!(f, "{SCHEME}{cluster}/ca"),
        }
    }
}

impl Identity {
    /// A node's.
    pub fn node(cluster: &str, node: NodeId) -> Self {
        Self { cluster: cluster.into(), role: Role::Node(node) }
    }

    /// The words for people: "node 2 of cluster prod".
    pub fn words(&self) -> String {
        match &self.role {
            Role::Node(node) => format!("node {} of cluster \"{}\"", node.0, self.cluster),
            Role::Client(name) => format!("client \"{name}\" of cluster \"{}\"", self.cluster),
            Role::Ca => format!("the CA of cluster \"{}\"", self.cluster),
        }
    }

    /// Reads a URI.
    pub fn parse(uri: &str) -> Option<Self> {
        let parts: Vec<&str> = uri.strip_prefix(SCHEME)?.splitn(4, '/').collect();
        let (cluster, role) = match parts[..] {
            [cluster, "ca"] => (cluster, Role::Ca),
            [cluster, "client", name] => (cluster, Role::Client(unescaped(name)?)),
            [cluster, "node", id] => {
                let number: u64 = id.parse().ok()?;
                // One way alone to write a node: no zeros in front, and no zero.
                if number == 0 || number.to_string() != id {
                    return None;
                }
                (cluster, Role::Node(NodeId(number)))
            }
            _ => return None,
        };
        let identity = Self { cluster: unescaped(cluster)?, role };
        (identity.to_string() == uri).then_some(identity)
    }

    /// What a certificate says; the error is for people.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, String> {
        let certificate =
            EndEntityCert::try_from(der).map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let uris: Vec<&str> = certificate.valid_uri_names().filter(|uri| uri.starts_with(SCHEME)).collect();
        match uris[..] {
            [uri] => Self::parse(uri).ok_or_else(|| {
                format!(
                    "the certificate names \"{uri}\": it must be {SCHEME}CLUSTER/node/ID or {SCHEME}CLUSTER/client/NAME"
                )
            }),
            [] => Err(format!(
                "the certificate does not say whose it is: among its names must be the URI {SCHEME}CLUSTER/node/ID or \
                 {SCHEME}CLUSTER/client/NAME, as `flotilla cert` writes it"
            )),
            _ => Err("the certificate names more than one identity".into()),
        }
    }
}

/// When a certificate ends, for people.
pub(crate) fn ends(der: &CertificateDer<'_>) -> String {
    not_after(der).unwrap_or_else(|| "an unknown time".into())
}

/// Of the fields of a certificate (RFC 5280, section 4.1) only those on the way to its end are looked at.
fn not_after(der: &[u8]) -> Option<String> {
    let (_, certificate, _) = field(der)?;
    let (_, mut rest, _) = field(certificate)?;
    // Version, which may be left out, then serial number, algorithm, issuer.
    if rest.first() == Some(&0xa0) {
        rest = field(rest)?.2;
    }
    for _ in 0..3 {
        rest = field(rest)?.2;
    }
    let (_, validity, _) = field(rest)?;
    let (_, _, end) = field(validity)?;
    let (tag, text, _) = field(end)?;
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
    // UTCTime has two digits for the year, from 1950 to 2049.
    let text = match tag {
        0x17 if text < "50" => format!("20{text}"),
        0x17 => format!("19{text}"),
        _ => text.to_string(),
    };
    let part = |at: usize, length: usize| text.get(at..at + length);
    Some(format!(
        "{}-{}-{} {}:{}:{} UTC",
        part(0, 4)?,
        part(4, 2)?,
        part(6, 2)?,
        part(8, 2)?,
        part(10, 2)?,
        part(12, 2)?
    ))
}

/// The first field of DER: its tag, its contents, and what comes after it.
fn field(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], mut rest) = der.split_first_chunk::<2>()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (digits, after) =
            rest.split_at_checked(usize::from(first & 0x7f)).filter(|(digits, _)| digits.len() <= 4)?;
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        rest = after;
    }
    let (contents, after) = rest.split_at_checked(length)?;
    Some((tag, contents, after))
}

fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    let name = String::from_utf8(bytes).ok()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod hostile {
    use flotilla_hostile::{Decoder, Rng};

    use super::*;

    #[test]
    fn uris() {
        let valid = |rng: &mut Rng| {
            let name = format!("x{}", flotilla_hostile::wire::text(rng));
            let role = match rng.u8(..3) {
                0 => Role::Ca,
                1 => Role::Client(name.clone()),
                _ => Role::Node(NodeId(rng.u64(1..))),
            };
            Identity { cluster: name, role }.to_string().into_bytes()
        };
        Decoder::generated("TLS: identity", valid)
            .words(&["/", "%2F", "%", "node", "client", "ca", "flotilla://", "0", "18446744073709551616"])
            .memory(24, 1_024)
            .check(
                |input| Identity::parse(std::str::from_utf8(input).ok()?),
                |identity| identity.to_string().into_bytes(),
            );
    }

    /// Node 3's of cluster test, signed by itself: its end and its identity are read from its bytes.
    #[test]
    fn certificates() {
        let certificate = include_bytes!("../tests/certificate.der");
        Decoder::new("TLS: certificate", vec![certificate.to_vec()]).memory(8, 4_096).check(
            |input| {
                let der = CertificateDer::from(input.as_ref());
                ends(&der);
                Identity::of_certificate(&der).ok().map(|_| input.clone())
            },
            |input| input.to_vec(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_uri_and_a_uri_one_identity() {
        let of = |cluster: &str, role| Identity { cluster: cluster.into(), role };
        for (identity, uri) in [
            (of("prod", Role::Node(NodeId(2))), "flotilla://prod/node/2"),
            (of("prod", Role::Client("alice".into())), "flotilla://prod/client/alice"),
            (of("prod", Role::Ca), "flotilla://prod/ca"),
            (of("a/b c", Role::Client("ü".into())), "flotilla://a%2Fb%20c/client/%C3%BC"),
        ] {
            assert_eq!(identity.to_string(), uri);
            assert_eq!(Identity::parse(uri), Some(identity));
        }
        for bad in [
            "flotilla://prod/node/0",
            "flotilla://prod/node/02",
            "flotilla://prod/node/+2",
            "flotilla://prod/node/2/3",
            "flotilla://prod/nodes/2",
            "flotilla:///node/2",
            "flotilla://pr%6Fd/node/2",
            "flotilla://prod%2/node/2",
            "flotilla://prod%+1/node/2",
            "https://prod/node/2",
        ] {
            assert_eq!(Identity::parse(bad), None, "{bad}");
        }
    }
}
