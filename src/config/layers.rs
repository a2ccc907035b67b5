//! From file, environment and flags to one [`Config`].

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, Overrides};

/// What is wrong with the configuration, and what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A key that no setting has.
    #[error("{source_name}: there is no setting \"{key}\"{}", suggestion_text(.suggestion))]
    UnknownKey {
        /// Where it stands.
        source_name: String,
        /// The key.
        key: String,
        /// The nearest known one.
        suggestion: Option<String>,
    },
    /// A value that cannot be.
    #[error("{name} = \"{value}\": {what}")]
    Value {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong, or what would be right.
        what: String,
    },
    /// The file cannot be read.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

fn suggestion_text(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or_else(
        || "; `flotilla config show` lists all settings".into(),
        |known| format!("; did you mean \"{known}\"?"),
    )
}

impl ConfigError {
    pub(crate) fn value(name: &str, value: &str, what: &str) -> Self {
        Self::Value { name: name.into(), value: value.into(), what: what.into() }
    }
}

impl Config {
    /// The settings from all layers, not yet checked ([`Config::check`]).
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: &Overrides,
    ) -> Result<Self, ConfigError> {
        let mut layers = known();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| ConfigError::File { path: path.into(), what: error.to_string() })?;
            lay_text(&mut layers, &text, path)?;
        }
        lay(&mut layers, from_environment(environment)?, "the environment")?;
        lay(&mut layers, flags.to_table(), "the command line")?;
        settings(layers)
    }
}

fn settings(layers: Table) -> Result<Config, ConfigError> {
    layers.try_into().map_err(|error: toml::de::Error| ConfigError::value("configuration", "", error.message()))
}

/// The settings of a file's text alone.
#[cfg(test)]
pub(super) fn of_text(text: &str) -> Result<Config, ConfigError> {
    let mut layers = known();
    lay_text(&mut layers, text, Path::new("flotilla.toml"))?;
    settings(layers)
}

/// All settings with their defaults.
fn known() -> Table {
    Table::try_from(Config::default()).expect("settings are numbers, texts and flags")
}

/// Puts a layer over the others, key by key.
fn lay(below: &mut Table, layer: Table, source_name: &str) -> Result<(), ConfigError> {
    for (key, value) in layer {
        let Some(default) = below.get(&key) else {
            let suggestion = nearest(&key, below.keys());
            return Err(ConfigError::UnknownKey { source_name: source_name.into(), key, suggestion });
        };
        if !default.same_type(&value) {
            let what = format!("it must be {}", type_name(default));
            return Err(ConfigError::value(&key, &value.to_string(), &what));
        }
        below.insert(key, value);
    }
    Ok(())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        _ => "a text in quotes",
    }
}

fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    let scored = known.map(|known| (strsim::jaro_winkler(key, known), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.8).then(|| best.1.clone())
}

/// Puts a file's text over the other layers.
fn lay_text(below: &mut Table, text: &str, path: &Path) -> Result<(), ConfigError> {
    let layer: Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::File { path: path.into(), what: error.to_string() })?;
    lay(below, layer, &path.display().to_string())
}

/// Settings in the environment: FLOTILLA_ and the setting's name in capitals. Other variables that
/// begin so are none of ours here (FLOTILLA_ADDR is the client commands').
fn from_environment(environment: impl Iterator<Item = (String, String)>) -> Result<Table, ConfigError> {
    let known = known();
    let mut layer = Table::new();
    for (name, text) in environment {
        let Some(name) = name.strip_prefix("FLOTILLA_") else { continue };
        let key = name.to_lowercase().replace('_', "-");
        let Some(default) = known.get(&key) else { continue };
        let value = match default {
            Value::Integer(_) => text.parse().ok().map(Value::Integer),
            Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
            _ => Some(Value::String(text.clone())),
        };
        let wrong =
            || ConfigError::value(&format!("FLOTILLA_{name}"), &text, &format!("it must be {}", type_name(default)));
        layer.insert(key, value.ok_or_else(wrong)?);
    }
    Ok(layer)
}
