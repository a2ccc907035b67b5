//! What went wrong with TLS, in words that say what to do.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// The words for an error of a connection that this side made to `host`; `None` where it is not about TLS.
pub(crate) fn of_connection(error: &io::Error, host: &str) -> Option<String> {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>())?;
    Some(match error {
        Error::InvalidMessage(_) => {
            "what answers there does not speak TLS: start the node with --tls-ca, --tls-cert and --tls-key, or leave \
             --tls-ca away here"
                .into()
        }
        Error::InvalidCertificate(certificate) => of_certificate(certificate, host),
        Error::AlertReceived(alert) => of_alert(*alert),
        error => format!("TLS: {error}"),
    })
}

fn of_certificate(error: &CertificateError, host: &str) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the node's certificate has expired: put a new one into its place, the node takes it up by itself".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the node's certificate is not valid yet: check the clocks of both machines".into()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the node's certificate was signed by another CA than the one in --tls-ca: give the certificate of the \
             cluster's CA"
                .into()
        }
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "the node's certificate is for {}, and not for {host}: use an address that it names, or make one with \
             `flotilla cert node --host {host}`",
            hosts(presented)
        ),
        CertificateError::NotValidForName => format!("the node's certificate is not for {host}"),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "what answers there shows a certificate that is not a node's".into()
        }
        error => format!("the node's certificate is refused: {error}"),
    }
}

/// The hosts among a certificate's names, which come as `DnsName("db1")`, `IpAddress(10.0.0.1)` and other kinds.
fn hosts(presented: &[String]) -> String {
    let host = |name: &String| {
        let inner = name.strip_prefix("DnsName(").or_else(|| name.strip_prefix("IpAddress("))?;
        Some(inner.trim_end_matches(')').trim_matches('"').to_string())
    };
    let hosts: Vec<String> = presented.iter().filter_map(host).collect();
    if hosts.is_empty() { "no host".into() } else { hosts.join(", ") }
}

fn of_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "the node lets nobody in without a certificate: give --tls-cert and --tls-key (`flotilla cert client` makes \
             them)"
                .into()
        }
        AlertDescription::CertificateExpired => {
            "the node refuses this side's certificate: it has expired, or the clocks differ".into()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "the node refuses this side's certificate: it was signed by another CA than the node's".into()
        }
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "the node refuses this side's certificate".into()
        }
        alert => format!("the node ends the connection: TLS alert {alert:?}"),
    }
}

/// An error of a connection, with the words for it if it is about TLS.
pub(crate) fn explained(error: io::Error, host: &str) -> io::Error {
    match of_connection(&error, host) {
        Some(words) => io::Error::new(error.kind(), words),
        None => error,
    }
}
