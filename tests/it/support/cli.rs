//! The command line as a person or a script uses it: arguments in, exit code and texts out.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use super::cluster::binary;
use super::eventually;

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; -1: ended by a signal.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// Stdout as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("this command prints text")
    }

    /// Stdout as a JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the exit code, and says everything if it is another one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", String::from_utf8_lossy(&self.stdout), self.stderr);
        self
    }

    /// Checks that it failed with this code, in words that contain these, and with a hint where errors have one.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        let ran = self.exits(code);
        for word in words {
            assert!(ran.stderr.contains(word), "\"{word}\" is not in: {}", ran.stderr);
        }
        ran
    }
}

/// Runs a command to its end, with nothing on stdin.
pub fn flotilla<S: AsRef<OsStr>>(args: &[S]) -> Ran {
    run(binary().args(args), None)
}

/// The same, at these nodes.
pub fn at<S: AsRef<OsStr>>(addr: &str, args: &[S]) -> Ran {
    run(binary().args(["--addr", addr]).args(args), None)
}

/// The same, with something on stdin.
pub fn with_stdin<S: AsRef<OsStr>>(addr: &str, args: &[S], stdin: &[u8]) -> Ran {
    run(binary().args(["--addr", addr]).args(args), Some(stdin))
}

/// Runs a prepared command to its end.
pub fn run(command: &mut Command, stdin: Option<&[u8]>) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if stdin.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().expect("the binary starts");
    if let Some(bytes) = stdin {
        let mut pipe = child.stdin.take().expect("stdin is a pipe");
        // A command that refuses early does not read all of it.
        pipe.write_all(bytes).ok();
    }
    let output = child.wait_with_output().expect("the child is ours");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a command that might go on for ever if it were not refused.
pub fn run_until_refused(command: &mut Command) -> Ran {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut pipe = child.stderr.take().expect("stderr is a pipe");
    // Read beside, so that a talkative command does not wait for us.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut pipe, &mut text).ok();
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut ended = None;
    eventually(&format!("the end of {command:?}"), || {
        ended = child.try_wait().expect("the child is ours");
        ended.is_some()
    });
    let code = ended.and_then(|status| status.code()).unwrap_or(-1);
    Ran { code, stdout: Vec::new(), stderr: reader.join().expect("it does not panic") }
}
