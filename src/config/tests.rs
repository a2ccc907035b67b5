use std::path::Path;

use super::*;

fn load(file: &str, environment: &[(&str, &str)], flags: &Overrides) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let path = directory.path().join("flotilla.toml");
    std::fs::write(&path, file).expect("a file for the test");
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(&path), environment, flags)
}

#[test]
fn later_layers_win() {
    let file = "cluster-name = \"file\"\ninitial-ranges = 4\nlog-level = \"warn\"";
    let flags = Overrides { cluster_name: Some("flag".into()), ..Default::default() };
    let environment =
        [("FLOTILLA_CLUSTER_NAME", "environment"), ("FLOTILLA_INITIAL_RANGES", "8"), ("FLOTILLA_ADDR", "x")];
    let config = load(file, &environment, &flags).expect("all are known");
    assert_eq!((&config.cluster_name[..], config.initial_ranges, &config.log_level[..]), ("flag", 8, "warn"));
}

#[test]
fn what_is_shown_can_be_loaded_again() {
    let config = Config { bootstrap: true, cluster_name: "x".into(), ..Default::default() };
    assert_eq!(load(&config.to_toml(), &[], &Overrides::default()), Ok(config));
}

#[test]
fn what_differs_is_named() {
    let config = Config::default();
    let other = Config { join: "a:1".into(), data: "elsewhere".into(), ..Default::default() };
    assert_eq!(config.changed(&other), ["data", "join"]);
    assert_eq!(other.changed(&config), ["data", "join"]);
    assert!(config.changed(&config).is_empty());
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let error = load("clister-name = \"x\"", &[], &Overrides::default()).expect_err("unknown");
    assert!(
        error.to_string().ends_with("there is no setting \"clister-name\"; did you mean \"cluster-name\"?"),
        "{error}"
    );
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    let error = load("initial-ranges = \"many\"", &[], &Overrides::default()).expect_err("a text");
    assert!(error.to_string().contains("it must be a whole number"), "{error}");
    let error = load("", &[("FLOTILLA_BOOTSTRAP", "yes")], &Overrides::default()).expect_err("not a flag's value");
    assert!(error.to_string().contains("it must be true or false"), "{error}");
    let error = load("initial-ranges = ", &[], &Overrides::default()).expect_err("no TOML");
    assert!(matches!(error, ConfigError::File { .. }), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/nowhere/flotilla.toml")), std::iter::empty(), &Overrides::default());
    assert!(error.expect_err("no such file").to_string().starts_with("/nowhere/flotilla.toml: "));
}

#[test]
fn contradictions_are_refused_with_what_to_do() {
    let base = Config { bootstrap: true, ..Default::default() };
    assert_eq!(base.check(), Ok(()));
    let join = |addresses: &str| Config { join: addresses.into(), ..Default::default() };
    assert_eq!(
        join("127.0.0.1:7300, other:7400").join_addresses(),
        Ok(vec!["127.0.0.1:7300".into(), "other:7400".into()])
    );
    let cases = [
        (Config { bootstrap: true, ..join("127.0.0.1:7300") }, "begin a new cluster, or join one"),
        (join("127.0.0.1"), "\"127.0.0.1\" is not HOST:PORT"),
        (join("a:1,:2"), "\":2\" is not HOST:PORT"),
        (Config { initial_replicas: 8, ..base.clone() }, "1 to 7"),
        (Config { node_dead_after_ms: 10, ..base.clone() }, "must not count as dead"),
        (Config { initial_ranges: 0, ..base.clone() }, "1 to 100000"),
        (Config { client_listen: "0.0.0.0:7300".into(), ..base.clone() }, "--plaintext-off-loopback"),
        (Config { peer_listen: "localhost".into(), ..base.clone() }, "write IP:PORT"),
        (Config { log_level: "loud=7".into(), ..base.clone() }, "log-level"),
    ];
    for (config, expected) in cases {
        let error = config.check().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let open = Config { client_listen: "0.0.0.0:7300".into(), plaintext_off_loopback: true, ..base };
    let error = open.check().expect_err("nobody can connect there").to_string();
    assert!(error.starts_with("advertise-client-addr = ") && error.contains("0.0.0.0:7300"), "{error}");
    assert_eq!(Config { advertise_client_addr: "db1:7300".into(), ..open }.check(), Ok(()));
}

#[test]
fn labels_come_from_all_layers_and_are_held_to_the_rules() {
    let of = |config: Config| -> Vec<String> {
        let labels = config.labels().expect("valid labels");
        labels.iter().map(|label| format!("{}={}", label.key, label.value)).collect()
    };
    let environment = [("FLOTILLA_LABELS", "zone=b, rack=r1")];
    let file = load("labels = \"zone=a\"", &[], &Overrides::default()).expect("a text");
    assert_eq!(of(file), ["zone=a"]);
    let config = load("labels = \"zone=a\"", &environment, &Overrides::default()).expect("a text");
    assert_eq!(of(config), ["zone=b", "rack=r1"]);
    let flags = Overrides { labels: vec!["zone=c".into(), "host=h".into()], ..Default::default() };
    let config = load("", &environment, &flags).expect("flags win");
    assert_eq!(of(config), ["zone=c", "host=h"]);
    for bad in ["zone", "zone=", "=a", "zone=a b", "zone=a,zone=b"] {
        let config = Config { labels: bad.into(), ..Config::default() };
        let error = config.check().expect_err(bad).to_string();
        assert!(error.starts_with(&format!("labels = \"{bad}\": ")), "{error}");
    }
}
