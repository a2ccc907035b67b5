//! The README's tour, typed into a shell as it stands.
//!
//! Blocks marked `sh tour` go into one bash, one after the other; the block marked `text tour` behind one is what
//! must appear on stdout and stderr (`...` on a line of its own: any lines, `<...>`: any characters within a line).
//! `sh tour background` is started beside, and the tour goes on when it has printed `ready: `. It all happens in a
//! directory with copies of README.md and docs/, on free ports; `make` is a stand-in that builds nothing, since
//! this test's binary is built already.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::support::ports::free_port;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const END: &str = "@@ end of block";
/// For a block of the tour, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Step {
    commands: String,
    background: bool,
    expected: String,
}

fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```").filter(|kind| kind.contains(" tour")) else { continue };
        let body: String = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        match kind {
            "text tour" => steps.last_mut().expect("commands come before their output").expected = body,
            "sh tour" | "sh tour background" => {
                steps.push(Step { commands: body, background: kind.ends_with("background"), expected: String::new() });
            }
            other => panic!("README.md has a block of unknown kind {other:?}"),
        }
    }
    steps
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let Some((head, rest)) = pattern.split_once("<...>") else { return pattern == line };
    let Some(left) = line.strip_prefix(head) else { return false };
    let cuts = left.char_indices().map(|(at, _)| at).chain([left.len()]);
    cuts.into_iter().any(|at| line_matches(rest, &left[at..]))
}

fn matches(expected: &[&str], printed: &[&str]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((&"...", rest)) => (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..])),
        Some((first, rest)) => {
            printed.split_first().is_some_and(|(line, left)| line_matches(first, line) && matches(rest, left))
        }
    }
}

fn assert_matches(what: &str, expected: &str, printed: &[String]) {
    let lines: Vec<&str> = printed.iter().map(String::as_str).collect();
    let patterns: Vec<&str> = expected.lines().collect();
    assert!(matches(&patterns, &lines), "{what}\n-- expected:\n{expected}\n-- printed:\n{}", lines.join("\n"));
}

/// Sends each line that a process prints.
fn follow(source: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

/// A shell in the tour's directory; whatever of it still runs ends with it.
struct Shell {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Shell {
    fn new(place: &Path, base_port: u16) -> Self {
        let path = format!("{}:{}", place.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command.current_dir(place.join("repository")).env("PATH", path);
        command.env("FLOTILLA_ADDR", format!("127.0.0.1:{base_port}")).env("TMPDIR", place);
        command.args(["-c", "exec 2>&1; exec bash"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("bash is there");
        let (sender, lines) = channel();
        follow(child.stdout.take().expect("it is piped"), sender);
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    fn type_in(&mut self, text: &str) {
        let input = self.input.as_mut().expect("it was not closed");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("the shell reads");
    }

    /// Lines up to the one that begins so.
    fn until(&self, begins: &str) -> Vec<String> {
        let mut printed = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line {begins:?} came; printed:\n{}", printed.join("\n")));
            let last = line.starts_with(begins);
            printed.push(line);
            if last {
                return printed;
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Ends a background command too: it has taken the shell's place.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A base port for `flotilla run`: three nodes' ports are free there.
fn free_base_port() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let base = free_port();
        let all = (0..3).flat_map(|node| (0..3).map(move |port| base + 100 * node + port));
        if all.into_iter().all(free) {
            return base;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        fs::copy(from, to).expect("a file can be copied");
        return;
    }
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("it is a directory") {
        let entry = entry.expect("it can be read");
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

#[test]
fn the_readmes_tour_is_true() {
    let place = tempfile::tempdir().expect("a directory for the test");
    let place = place.path();
    let base_port = free_base_port();
    let repository = place.join("repository");
    fs::create_dir_all(place.join("bin")).and_then(|()| fs::create_dir_all(&repository)).expect("directories");
    for name in ["README.md", "docs"] {
        copy(&Path::new(ROOT).join(name), &repository.join(name));
    }
    let flotilla = env!("CARGO_BIN_EXE_flotilla");
    let make = place.join("bin/make");
    let script = format!(
        "#!/bin/sh\ncase $1 in\nbin) echo {flotilla};;\nrun) exec {flotilla} run --sample . --base-port {base_port};;\nesac\n"
    );
    fs::write(&make, script).expect("a file");
    fs::set_permissions(&make, fs::Permissions::from_mode(0o755)).expect("it is ours");

    let readme = fs::read_to_string(repository.join("README.md")).expect("it was copied");
    let mut background: Option<(Shell, Vec<String>, String)> = None;
    let mut shell = Shell::new(place, base_port);
    let mut steps_taken = 0;
    for Step { commands, background: beside, expected } in steps(&readme) {
        if beside {
            let mut beside = Shell::new(place, base_port);
            beside.type_in(&format!("exec {commands}"));
            let printed = beside.until("ready: ");
            background = Some((beside, printed, expected));
            continue;
        }
        shell.type_in(&format!("{commands}echo '{END}'\n"));
        let mut printed = shell.until(END);
        printed.pop();
        assert_matches(&commands, &expected, &printed);
        steps_taken += 1;
    }
    assert!(steps_taken >= 5, "the tour is gone from README.md");

    let (mut cluster, mut printed, expected) = background.expect("the tour starts a cluster");
    let interrupted = Command::new("kill").args(["-INT", &cluster.child.id().to_string()]).status();
    assert!(interrupted.is_ok_and(|status| status.success()));
    assert!(cluster.child.wait().expect("it is our child").success(), "a cluster that is interrupted exits with 0");
    printed.extend(cluster.lines.iter());
    assert_matches("the background block", &expected, &printed);
}

#[test]
fn patterns_match_what_they_should() {
    assert!(line_matches("a<...>c", "abc") && line_matches("a<...>", "a") && !line_matches("a<...>c", "ab"));
    assert!(matches(&["...", "x", "..."], &["a", "x"]) && !matches(&["x", "..."], &["a", "x"]));
}
