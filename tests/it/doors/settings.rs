//! What a node is told about TLS is checked before anything is made: each mistake in words that say what would be right.

use flotilla_proto::NodeId;
use flotilla_tls::issue::Validity;

use super::{Certificates, loopback, sign_node};
use crate::support::cli::{flotilla, run, run_until_refused};
use crate::support::cluster::{Cluster, binary};

#[test]
fn mistakes_are_told_before_anything_is_made() {
    let certificates = Certificates::new();
    certificates.node(1);
    certificates.node(2);
    certificates.make(&["client", "--name", "alice"]).exits(0);
    let over = certificates.ca().sign_node("test", NodeId(1), &loopback(), Validity::over()).expect("signed");
    certificates.keep("over", &over);
    sign_node(&certificates, "foreign", "other", 1);
    let stranger = Certificates::new();
    let mut cluster = Cluster::new(1);
    let (ca, theirs) = (certificates.path("ca.crt"), stranger.path("ca.crt"));
    let file = |name: &str| certificates.path(name);
    let cases: [(&str, String, String, i32, &[&str]); 7] = [
        (&ca, file("node-1.crt"), file("none.key"), 2, &["tls-key", "there is no such file"]),
        (&ca, file("node-1.crt"), file("node-2.key"), 2, &["tls-key", "is not the key of the certificate"]),
        (&theirs, file("node-1.crt"), file("node-1.key"), 2, &["tls-cert", "was not signed by the CA in"]),
        (&ca, file("over.crt"), file("over.key"), 2, &["tls-cert", "has expired"]),
        (&ca, file("foreign.crt"), file("foreign.key"), 2, &["tls-cert", "cluster \"other\"", "cluster \"test\""]),
        (&ca, file("client-alice.crt"), file("client-alice.key"), 2, &["tls-cert", "client \"alice\""]),
        (&ca, file("node-2.crt"), file("node-2.key"), 1, &["this is node 1", "is that of node 2"]),
    ];
    for (ca, certificate, key, code, words) in cases {
        cluster.set_args(&["--tls-ca", ca, "--tls-cert", &certificate, "--tls-key", &key]);
        run_until_refused(&mut cluster.command(1)).fails(code, words);
    }
    cluster.set_args(&["--tls-ca", &ca]);
    run_until_refused(&mut cluster.command(1)).fails(2, &["tls-cert", "it is not given"]);
    assert!(!cluster.node(1).data.join("IDENTITY").exists(), "nothing was made");
}

#[test]
fn plain_text_leaves_the_machine_only_by_name_and_between_nodes_never() {
    let certificates = Certificates::new();
    let made = run(
        binary().args(["cert", "node", "--id", "1", "--host", "db1", "--dir"]).arg(certificates.directory.path()),
        None,
    );
    made.exits(0);
    let check = |words: &[&str]| flotilla(&[&["config", "check", "--cluster-name", "test"], words].concat());
    let tls: Vec<String> = certificates.flags("node-1");
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    let all = |listen: &'static str| [listen, "10.0.0.1:7300"];
    check(&all("--client-listen")).fails(2, &["client-listen", "--tls-ca", "--plaintext-off-loopback"]);
    check(&[&all("--client-listen")[..], &["--plaintext-off-loopback"]].concat()).exits(0);
    check(&[&all("--client-listen")[..], &tls].concat()).exits(0);
    check(&[&all("--peer-listen")[..], &["--plaintext-off-loopback"]].concat())
        .fails(2, &["peer-listen", "mutual TLS alone"]);
    check(&[&all("--peer-listen")[..], &tls].concat()).exits(0);
    check(&[&all("--http-listen")[..], &tls].concat()).fails(2, &["http-listen", "--plaintext-off-loopback"]);
    flotilla(&[&["run", "--tls-ca"][..], &[&certificates.path("ca.crt")]].concat()).fails(2, &["on loopback"]);
}

#[test]
fn certificates_are_made_for_their_owners_eyes_and_never_overwritten_by_chance() {
    use std::os::unix::fs::PermissionsExt;
    let certificates = Certificates::new();
    certificates.make(&["ca"]).fails(2, &["ca.key is there already"]);
    certificates.node(1);
    certificates.make(&["node", "--id", "1", "--host", "db1"]).fails(2, &["is there already", "--overwrite"]);
    certificates.make(&["node", "--id", "2", "--host", "db1:7300"]).fails(2, &["without ports"]);
    certificates.make(&["node", "--id", "0", "--host", "db1"]).fails(2, &["--id"]);
    certificates.make(&["client", "--name", "../x"]).fails(2, &["is no name of a client"]);
    for key in ["ca.key", "node-1.key"] {
        let mode = std::fs::metadata(certificates.path(key)).expect("it was made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let elsewhere = tempfile::tempdir().expect("a directory");
    let words = ["cert", "client", "--name", "bob", "--dir", &elsewhere.path().display().to_string()];
    flotilla(&words).fails(1, &["ca.crt", "flotilla cert ca"]);
}
