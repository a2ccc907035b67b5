//! The files: the CA's certificate, one's own certificate and key; read, checked against each other, and made into
//! what rustls wants.
//!
//! What is wrong is found here, in words that name the setting and the file, and not by the first connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use crate::identity::{self, Identity};

/// Largest file that is read: certificates have some KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificates of those who may sign.
    pub ca: PathBuf,
    /// One's own certificate, with those between it and the CA after it, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError {
    /// The setting that names it: `tls-ca`, `tls-cert` or `tls-key`.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.setting, self.path.display(), self.what)
    }
}

impl std::error::Error for TlsError {}

fn wrong(setting: &'static str, path: &Path, what: impl Into<String>) -> TlsError {
    TlsError { setting, path: path.into(), what: what.into() }
}

/// When each file was last written, its size and inode: whether there is something new.
pub(crate) type Stamps = Vec<Option<(SystemTime, u64, u64)>>;

impl Files {
    /// As they are on disk now.
    pub(crate) fn stamps(&self) -> Stamps {
        use std::os::unix::fs::MetadataExt;
        let own = self.own.iter().flat_map(|(certificate, key)| [certificate, key]);
        let stamp = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        };
        std::iter::once(&self.ca).chain(own).map(stamp).collect()
    }
}

/// What the files hold.
pub(crate) struct Material {
    pub roots: Arc<RootCertStore>,
    pub own: Option<Own>,
}

/// One's own certificate.
pub(crate) struct Own {
    pub key: Arc<CertifiedKey>,
    pub identity: Identity,
}

/// The algorithms, the same everywhere: no other crate's choice counts.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Material {
    /// Reads the files and checks them against each other.
    pub fn load(files: &Files) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("tls-ca", &files.ca)? {
            roots.add(certificate).map_err(|error| {
                wrong("tls-ca", &files.ca, format!("it cannot be used as a CA: {error}; `flotilla cert ca` makes one"))
            })?;
        }
        let roots = Arc::new(roots);
        let own = match &files.own {
            Some((certificate, key)) => Some(Own::load(files, certificate, key, &roots)?),
            None => None,
        };
        Ok(Self { roots, own })
    }
}

impl Own {
    fn load(files: &Files, path: &Path, key_path: &Path, roots: &Arc<RootCertStore>) -> Result<Self, TlsError> {
        let chain = certificates("tls-cert", path)?;
        let text = read("tls-key", key_path)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            let what = match error {
                pem::Error::NoItemsFound => "it holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1)".into(),
                error => format!("it cannot be read: {error}"),
            };
            wrong("tls-key", key_path, what)
        })?;
        let identity = Identity::of_certificate(&chain[0]).map_err(|what| wrong("tls-cert", path, what))?;
        check_chain(files, path, &chain, roots)?;
        let key = provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| wrong("tls-key", key_path, format!("this kind of key cannot be used: {error}")))?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| {
            let what = format!(
                "it is not the key of the certificate in {}: give the two that were made together",
                path.display()
            );
            wrong("tls-key", key_path, what)
        })?;
        Ok(Self { key: Arc::new(key), identity })
    }
}

/// One's own certificate must be one that the others will take: it would otherwise be found out by each connection.
fn check_chain(
    files: &Files,
    path: &Path,
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
) -> Result<(), TlsError> {
    let verifier = verifier(roots).map_err(|what| wrong("tls-ca", &files.ca, what))?;
    let Err(error) = verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()) else { return Ok(()) };
    let what = match &error {
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("it has expired, at {}: make another with `flotilla cert`", identity::ends(&chain[0]))
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "it is not valid yet: check this machine's clock".into(),
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!(
                "it was not signed by the CA in {}: give that CA's certificate as tls-ca, or have this CA sign",
                files.ca.display()
            )
        }
        error => format!("it cannot be used: {error}"),
    };
    Err(wrong("tls-cert", path, what))
}

/// Checks certificates of those who call.
pub(crate) fn verifier(roots: &Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .map_err(|error| format!("it cannot be used as a CA: {error}"))
}

/// The certificates in a file, at least one.
fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(setting, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| wrong(setting, path, format!("it cannot be read: {error}")))?;
    if found.is_empty() {
        return Err(wrong(setting, path, "it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error: std::io::Error| {
        let what = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file; `flotilla cert` makes certificates and keys".into(),
            std::io::ErrorKind::PermissionDenied => "this user may not read it".into(),
            _ => error.to_string(),
        };
        wrong(setting, path, what)
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.len() > FILE_BYTES_MAX || !metadata.is_file() {
        return Err(wrong(setting, path, "it is no file of certificates or of a key"));
    }
    std::fs::read(path).map_err(failed)
}
