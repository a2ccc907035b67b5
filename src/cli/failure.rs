//! How a command fails: what happened, what to do about it, and the exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 outcome unknown, 4 key absent or comparison failed.
//! Every command returns a [`Failure`] or nothing; only [`Failure::print`] writes it, on stderr.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use flotilla_proto::Error;
use flotilla_proto::error::Action;

/// Result of a command.
pub type Result<T = ()> = std::result::Result<T, Failure>;

/// What scripts can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Nothing to report: the reader of our output went away.
    Quiet = 0,
    /// It was not done.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// A write may or may not have been applied.
    Unknown = 3,
    /// The key is absent, or the comparison failed.
    Absent = 4,
}

/// Why a command did not do what it was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    what: String,
    hint: Option<String>,
    code: Code,
}

impl Failure {
    /// Not done.
    pub fn failed(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, code: Code::Failed }
    }

    /// Wrong command line.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, code: Code::Usage }
    }

    /// Nobody knows whether it was done.
    pub fn unknown(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, code: Code::Unknown }
    }

    /// Key absent or comparison failed.
    pub fn absent(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, code: Code::Absent }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says something more about what to do.
    #[must_use]
    pub fn also(self, hint: impl Into<String>) -> Self {
        let hint = self.hint.as_ref().map_or_else(String::new, |first| format!("{first}; ")) + &hint.into();
        self.hint(hint)
    }

    /// An order to the cluster that failed; where its outcome is unknown, `look` says how to find out.
    pub fn order(error: Error, look: &str) -> Self {
        let ambiguous = error.action() == Action::Ambiguous;
        let failure = Self::from(error);
        if ambiguous { failure.hint(look) } else { failure }
    }

    /// An operation on a file that failed.
    pub fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::failed(format!("cannot {doing} {}: {error}", path.display()))
    }

    /// The process' exit code.
    pub fn code(&self) -> u8 {
        self.code as u8
    }

    /// Writes it to stderr.
    pub fn print(&self) {
        if self.code == Code::Quiet {
            return;
        }
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let (red, bold, plain) = if colour { ("\x1b[1;31m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let mut text = format!("{red}error:{plain} {}\n", self.what);
        if let Some(hint) = &self.hint {
            text.push_str(&format!("{bold}hint:{plain} {hint}\n"));
        }
        // Where stderr cannot be written to, there is no one to tell.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = if error.action() == Action::Ambiguous { Code::Unknown } else { Code::Failed };
        Self { what: error.to_string(), hint: Some(error.hint()), code }
    }
}

/// Of writing results: a closed pipe (`flotilla kv scan | head`) is no error.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { what: String::new(), hint: None, code: Code::Quiet },
            _ => Self::failed(format!("cannot write the output: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_manual() {
        let ambiguous = Failure::from(Error::Ambiguous { reason: "the stream broke".into() });
        assert_eq!(ambiguous.code(), 3);
        let invalid = Failure::from(Error::invalid("key of 9,000 bytes", "keys have at most 8,192 bytes"));
        assert_eq!(invalid.code(), 1);
        assert_eq!(invalid.to_string(), "key of 9,000 bytes (keys have at most 8,192 bytes)");
        assert_eq!(Failure::usage("x").code(), 2);
        assert_eq!(Failure::absent("x").code(), 4);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).code(), 0);
    }
}
