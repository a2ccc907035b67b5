//! What the files hold now: taken up by each new connection, and replaced when the files are.
//!
//! Invariant: what is in use came from files that were whole and fitted together; new ones that do not are refused, and the
//! old ones stay.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use crate::identity::{self, Identity};
use crate::material::{Files, Material, Stamps, TlsError, provider};

/// What both sides say that they speak inside of TLS.
const ALPN: &[u8] = b"h2";

/// Whether callers must have a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They may have one.
    None,
    /// Whoever has none is not let in.
    #[default]
    Require,
}

/// Certificates and key as they are now. Shared by all ports and connections of a process.
pub struct Tls {
    files: Files,
    current: ArcSwap<Current>,
    /// The files when they were last looked at, taken up or not.
    seen: Mutex<Stamps>,
}

struct Current {
    identity: Option<Identity>,
    ends: Option<String>,
    client: Arc<ClientConfig>,
    /// For ports; absent without a certificate of one's own.
    open: Option<Arc<ServerConfig>>,
    closed: Option<Arc<ServerConfig>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files; the error says which is wrong, and what would be right.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let seen = Mutex::new(files.stamps());
        let current = ArcSwap::from_pointee(Current::load(&files)?);
        Ok(Self { files, current, seen })
    }

    /// Whose one's own certificate is.
    pub fn identity(&self) -> Option<Identity> {
        self.current.load().identity.clone()
    }

    /// Until when it is valid, for people.
    pub fn ends(&self) -> Option<String> {
        self.current.load().ends.clone()
    }

    /// Where the files lie.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Reads the files again if they have changed since they were last looked at; true: new ones are in use. After an
    /// error the old ones stay.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let stamps = self.files.stamps();
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == stamps {
                return Ok(false);
            }
            *seen = stamps;
        }
        self.reload().map(|()| true)
    }

    /// Reads the files again. After an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let new = Current::load(&self.files)?;
        let old = self.identity();
        if let (Some(old), Some(new), Some((path, _))) = (&old, &new.identity, &self.files.own)
            && old != new
        {
            let what = format!("it is that of {}, and this is {}: put its own back", new.words(), old.words());
            return Err(TlsError { setting: "tls-cert", path: path.clone(), what });
        }
        self.current.store(Arc::new(new));
        Ok(())
    }

    /// What a port's next connection is accepted with; `None` without a certificate of one's own.
    pub(crate) fn server(&self, auth: ClientAuth) -> Option<Arc<ServerConfig>> {
        let current = self.current.load();
        match auth {
            ClientAuth::None => current.open.clone(),
            ClientAuth::Require => current.closed.clone(),
        }
    }

    /// What the next connection to a port is made with.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.current.load().client)
    }
}

impl Current {
    fn load(files: &Files) -> Result<Self, TlsError> {
        let material = Material::load(files)?;
        let unusable = |error: String| TlsError {
            setting: "tls-ca",
            path: files.ca.clone(),
            what: format!("it cannot be used: {error}"),
        };
        let client = client_config(&material).map_err(unusable)?;
        let (mut open, mut closed) = (None, None);
        if let Some(own) = &material.own {
            let server = |auth| server_config(&material, &own.key, auth).map(|config| Some(Arc::new(config)));
            open = server(ClientAuth::None).map_err(unusable)?;
            closed = server(ClientAuth::Require).map_err(unusable)?;
        }
        let ends = material.own.as_ref().and_then(|own| own.key.cert.first()).map(identity::ends);
        let identity = material.own.map(|own| own.identity);
        Ok(Self { identity, ends, client: Arc::new(client), open, closed })
    }
}

fn client_config(material: &Material) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(Arc::clone(&material.roots));
    let mut config = match &material.own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own.key)))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed connection would go by a certificate that has ended, or was replaced, since.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(material: &Material, key: &Arc<CertifiedKey>, auth: ClientAuth) -> Result<ServerConfig, String> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&material.roots), provider());
    let verifier = match auth {
        ClientAuth::None => verifier.allow_unauthenticated(),
        ClientAuth::Require => verifier,
    };
    let verifier = verifier.build().map_err(|error| error.to_string())?;
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(SingleCertAndKey::from(Arc::clone(key)));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
