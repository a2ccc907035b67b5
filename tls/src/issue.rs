//! Makes certificates: a CA of one's own, and what it signs for nodes and clients. What `flotilla cert` does.
//!
//! A node's certificate is for both ends of a connection, as nodes call each other; a client's is for the calling
//! end alone, so that nobody can stand in for a node with it. Keys are ECDSA P-256.

use std::net::IpAddr;
use std::time::Duration;

use flotilla_proto::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use webpki::EndEntityCert;

use crate::identity::{Identity, Role};

/// Clocks may differ by so much: a new certificate is valid at once everywhere.
const BEFORE: Duration = Duration::from_secs(3600);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS #8.
    pub key: String,
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    from: OffsetDateTime,
    until: OffsetDateTime,
}

impl Validity {
    /// From now on, for so long.
    pub fn of(length: Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        Self { from: now - BEFORE, until: now + length }
    }

    /// One that is over: for tests of what is refused.
    pub fn over() -> Self {
        let now = OffsetDateTime::now_utc();
        Self { from: now - 2 * BEFORE, until: now - BEFORE }
    }
}

/// A CA that can sign: one that was made here, as what it signs must name it in the same way.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cluster: String,
}

impl Ca {
    /// Makes the CA of a cluster.
    pub fn make(cluster: &str, validity: Validity) -> Result<Issued, String> {
        let key = KeyPair::generate().map_err(words)?;
        let certificate = ca_params(cluster, validity)?.self_signed(&key).map_err(words)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// One that was made before, from its certificate and key in PEM.
    pub fn load(certificate: &str, key: &str) -> Result<Self, String> {
        let key = KeyPair::from_pem(key).map_err(|error| format!("the key of the CA cannot be read: {error}"))?;
        let unreadable = |error: String| format!("the certificate of the CA cannot be used: {error}");
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| unreadable(words(error)))?;
        let cluster = match Identity::of_certificate(&der).map_err(unreadable)? {
            Identity { cluster, role: Role::Ca } => cluster,
            other => return Err(format!("the certificate of the CA is that of {}", other.words())),
        };
        let own = EndEntityCert::try_from(&der).map_err(|error| unreadable(words(error)))?;
        if own.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err("the key of the CA is not that of its certificate".into());
        }
        // Its end does not matter to what it signs.
        let issuer = Issuer::new(ca_params(&cluster, Validity::of(Duration::ZERO))?, key);
        Ok(Self { issuer, cluster })
    }

    /// The cluster that it was made for.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Signs a certificate; `hosts` are the names and IP addresses at which a node is reached.
    pub fn sign(&self, identity: &Identity, hosts: &[String], validity: Validity) -> Result<Issued, String> {
        let mut params = params(identity, hosts, validity)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(identity.role, Role::Node(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(words)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(words)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// See [`Ca::sign`].
    pub fn sign_node(
        &self,
        cluster: &str,
        node: NodeId,
        hosts: &[String],
        validity: Validity,
    ) -> Result<Issued, String> {
        self.sign(&Identity::node(cluster, node), hosts, validity)
    }

    /// See [`Ca::sign`].
    pub fn sign_client(&self, cluster: &str, name: &str, validity: Validity) -> Result<Issued, String> {
        self.sign(&Identity { cluster: cluster.into(), role: Role::Client(name.into()) }, &[], validity)
    }
}

/// The same for a cluster each time: what is signed refers to the CA by its name and key.
fn ca_params(cluster: &str, validity: Validity) -> Result<CertificateParams, String> {
    let mut params = params(&Identity { cluster: cluster.into(), role: Role::Ca }, &[], validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(identity: &Identity, hosts: &[String], validity: Validity) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.not_before = validity.from;
    params.not_after = validity.until;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Flotilla");
    name.push(DnType::CommonName, identity.words());
    params.distinguished_name = name;
    let text = |text: String| text.try_into().map_err(|_| "a name is not plain ASCII".to_string());
    params.subject_alt_names.push(SanType::URI(text(identity.to_string())?));
    for host in hosts {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_host(host) => SanType::DnsName(text(host.clone())?),
            Err(_) => {
                return Err(format!(
                    "\"{host}\" is no host: write names and IP addresses without ports, such as db1,10.0.0.1"
                ));
            }
        };
        params.subject_alt_names.push(name);
    }
    Ok(params)
}

fn is_host(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte))
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_says_whose_it_is() {
        let year = Validity::of(Duration::from_secs(86_400));
        let made = Ca::make("prod", year).expect("a CA");
        let ca = Ca::load(&made.certificate, &made.key).expect("it is one");
        assert_eq!(ca.cluster(), "prod");
        let node = ca.sign_node("prod", NodeId(2), &["db1".into(), "10.0.0.1".into()], year).expect("signed");
        let der = CertificateDer::from_pem_slice(node.certificate.as_bytes()).expect("PEM");
        assert_eq!(Identity::of_certificate(&der), Ok(Identity::node("prod", NodeId(2))));
        let bad = ca.sign_node("prod", NodeId(2), &["db1:7300".into()], year).map(|_| ()).expect_err("a port");
        assert!(bad.contains("without ports"), "{bad}");
        let other = Ca::load(&made.certificate, &node.certificate).map(|_| ()).expect_err("no key");
        assert!(other.starts_with("the key of the CA cannot be read"), "{other}");
        let other = Ca::load(&made.certificate, &node.key).map(|_| ()).expect_err("another key");
        assert!(other.contains("is not that of its certificate"), "{other}");
        let other = Ca::load(&node.certificate, &node.key).map(|_| ()).expect_err("no CA");
        assert!(other.contains("is that of node 2"), "{other}");
        assert!(crate::identity::ends(&der).ends_with(" UTC"), "{}", crate::identity::ends(&der));
    }
}
