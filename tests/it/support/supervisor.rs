//! `flotilla run` as a process whose lines are read as they come.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use super::cluster::signal;
use super::{PATIENCE, eventually};

/// A running supervisor.
pub struct Supervisor {
    child: Child,
    lines: Receiver<String>,
    /// All lines so far.
    pub seen: Vec<String>,
}

impl Supervisor {
    /// Starts it; stdout and stderr are read together, as a terminal shows them.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (send, lines) = channel();
        let out: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("stdout is a pipe"));
        let error: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("stderr is a pipe"));
        for pipe in [out, error] {
            let send = send.clone();
            std::thread::spawn(move || {
                // Ends with the pipe, or with whoever reads.
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self { child, lines, seen: Vec::new() }
    }

    /// The next line for which this holds.
    pub fn wait_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("no {what} in:\n{}", self.seen.join("\n")) };
            self.seen.push(line.clone());
            if wanted(&line) {
                return line;
            }
        }
    }

    /// The next line.
    pub fn next_line(&mut self) -> String {
        self.wait_line("further line", |_| true)
    }

    /// The nodes' process ids, from the table; read up to the `ready:` line, which is returned without its head.
    pub fn wait_ready(&mut self) -> (Vec<u32>, String) {
        let ready = self.wait_line("ready line", |line| line.starts_with("ready: "));
        let rows = self.seen.iter().rev().skip(1).take_while(|line| !line.contains("PID"));
        let pid = |row: &String| row.split_whitespace().nth(1).and_then(|pid| pid.parse().ok());
        let mut pids: Vec<u32> = rows.filter_map(pid).collect();
        pids.reverse();
        (pids, ready["ready: ".len()..].to_owned())
    }

    /// Sends a signal and waits for the end; the exit code, none: by a signal.
    pub fn end(&mut self, number: i32) -> Option<i32> {
        signal(self.child.id(), number);
        let mut ended = None;
        eventually("the supervisor to end", || {
            ended = self.child.try_wait().expect("the child is ours");
            ended.is_some()
        });
        // The pipes close with the last process that holds them.
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        ended.and_then(|status| status.code())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whether a process still runs: one that nobody has waited for does not.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}
