//! Configuration files that nobody should have written.

use flotilla_hostile::Decoder;

use super::Config;
use super::layers::of_text;

const WORDS: &[&str] =
    &["\n", "=", "[", "[[", "{", "\"", "#", "true", "-1", "99999999999999999999", "1e9", "x.y", "data = ", "\u{fc}"];

#[test]
fn files() {
    let other = Config { cluster_name: "prod".into(), labels: "zone=a".into(), bootstrap: true, ..Config::default() };
    let short = "cluster-name = \"x\"\ninitial-ranges = 3 # three\n".to_owned();
    Decoder::new("configuration", [Config::default().to_toml(), other.to_toml(), short].map(String::into_bytes).into())
        .words(WORDS)
        // The defaults, and TOML's trees.
        .memory(256, 128 << 10)
        .check(
            |input| {
                let config = of_text(std::str::from_utf8(input).ok()?).ok()?;
                // Whatever they say, it is no reason to panic.
                let (labels, join) = (config.labels().is_ok(), config.join_addresses().is_ok());
                (labels && join).then_some(config)
            },
            |config| config.to_toml().into_bytes(),
        );
}
