//! TLS at the doors of real processes: who is let in, who is refused and in which words, and certificates that change
//! while connections stand.

mod identities;
mod settings;
mod three;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flotilla_proto::NodeId;
use flotilla_tls::issue::{Ca, Issued, Validity};
use flotilla_tls::{Files, Tls};

use crate::support::cli::{Ran, run};
use crate::support::cluster::{Cluster, binary};

/// The cluster's name in [`Cluster`].
const NAME: &str = "test";

/// A CA of cluster "test" in a directory, made by the command line.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let own = Self { directory: tempfile::tempdir().expect("a directory for the test") };
        own.make(&["ca", "--cluster-name", NAME]).exits(0);
        own
    }

    /// `flotilla cert` in the directory.
    fn make(&self, words: &[&str]) -> Ran {
        run(binary().arg("cert").args(words).args(["--dir", &self.directory.path().display().to_string()]), None)
    }

    fn node(&self, id: u64) {
        self.make(&["node", "--id", &id.to_string(), "--host", "127.0.0.1,localhost"]).exits(0);
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// What `flotilla cert` does not make: signed by the same CA.
    fn ca(&self) -> Ca {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).expect("it was made");
        Ca::load(&read("ca.crt"), &read("ca.key")).expect("they belong together")
    }

    fn keep(&self, name: &str, issued: &Issued) {
        std::fs::write(self.path(&format!("{name}.crt")), &issued.certificate).expect("written");
        std::fs::write(self.path(&format!("{name}.key")), &issued.key).expect("written");
    }

    /// The flags for a certificate of the directory.
    fn flags(&self, name: &str) -> Vec<String> {
        let file = |ending: &str| self.path(&format!("{name}.{ending}"));
        let flags = [("--tls-ca", self.path("ca.crt")), ("--tls-cert", file("crt")), ("--tls-key", file("key"))];
        flags.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path]).collect()
    }

    /// The same for a client inside of the test.
    fn load(&self, name: &str) -> Arc<Tls> {
        let file = |ending: &str| PathBuf::from(self.path(&format!("{name}.{ending}")));
        let files = Files { ca: self.path("ca.crt").into(), own: Some((file("crt"), file("key"))) };
        Arc::new(Tls::load(files).expect("they belong together"))
    }

    /// A command at these nodes, with a certificate.
    fn at(&self, name: &str, addr: &str, words: &[&str]) -> Ran {
        run(binary().args(["--addr", addr]).args(words).args(self.flags(name)), None)
    }

    /// Makes a node come with a certificate at its next start.
    fn give(&self, cluster: &mut Cluster, id: u64, name: &str) {
        let file = |ending: &str| self.path(&format!("{name}.{ending}"));
        let environment = [
            ("FLOTILLA_TLS_CA", self.path("ca.crt")),
            ("FLOTILLA_TLS_CERT", file("crt")),
            ("FLOTILLA_TLS_KEY", file("key")),
        ];
        cluster.set_environment(id, environment.map(|(name, path)| (name.to_owned(), path)).to_vec());
    }
}

/// One node under TLS, serving; and a certificate for client "alice".
fn one_node() -> (Certificates, Cluster) {
    let certificates = Certificates::new();
    certificates.node(1);
    certificates.make(&["client", "--name", "alice"]).exits(0);
    let mut cluster = Cluster::new(1);
    certificates.give(&mut cluster, 1, "node-1");
    cluster.start(1);
    cluster.wait_node(1);
    (certificates, cluster)
}

fn year() -> Validity {
    Validity::of(Duration::from_secs(365 * 86_400))
}

fn loopback() -> Vec<String> {
    vec!["127.0.0.1".into()]
}

/// A node's certificate of any cluster, signed by the CA of the directory.
fn sign_node(certificates: &Certificates, name: &str, cluster: &str, id: u64) {
    let issued = certificates.ca().sign_node(cluster, NodeId(id), &loopback(), year()).expect("signed");
    certificates.keep(name, &issued);
}
