//! The nodes as child processes: started so that they cannot outlive the supervisor, ended in order.
//!
//! A child asks the kernel for SIGKILL when its parent's thread ends (PR_SET_PDEATHSIG), and then
//! checks that its parent is still there: it may have died before the request. The signal goes by
//! thread, so children are only ever started from the main thread, on which the supervisor runs from
//! beginning to end. Each child has a process group of its own: Ctrl-C reaches the supervisor alone.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use super::plan::{NodePlan, Plan};
use crate::cli::failure::{Failure, Result};

/// How long the others wait for a node that is stopping before they are told to stop too.
const HEAD_START: Duration = Duration::from_secs(3);
/// How long an orderly stop may take before it is ended by force.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(10);

/// A node's process.
#[derive(Debug)]
pub struct Process {
    /// The node's id.
    pub node: u64,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a node; `new`: its store may have to be made.
    pub fn start(plan: &Plan, node: &NodePlan, new: bool) -> Result<Self> {
        let path = node.stderr_file();
        let stderr = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| File::create(&path));
        let stderr = stderr.map_err(|error| Failure::file("write", &path, &error))?;
        let stdout = stderr.try_clone().map_err(|error| Failure::file("write", &path, &error))?;
        let mut command = Command::new(&plan.program);
        command.args(plan.arguments(node, new));
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        let parent = Pid::from_raw(std::process::id().cast_signed());
        let before_exec = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() == parent { Ok(()) } else { Err(std::io::Error::from(std::io::ErrorKind::NotFound)) }
        };
        // SAFETY: it runs between fork and exec, where only async-signal-safe calls are allowed:
        // prctl and getppid are system calls, and nothing is allocated.
        unsafe { command.pre_exec(before_exec) };
        let child = command.spawn().map_err(|error| Failure::file("run", &plan.program, &error))?;
        Ok(Self { node: node.id, child, ended: None })
    }

    /// The process' id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether its end has not been noticed yet.
    pub fn runs(&self) -> bool {
        self.ended.is_none()
    }

    /// How it ended, once it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error would mean that it is no child of ours, which it is.
            self.ended = self.child.try_wait().unwrap_or(None);
        }
        self.ended
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_some() {
            return;
        }
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It was not waited for, so the id is still its own; it may have ended this moment.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    pub async fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        while self.ended().is_none() && began.elapsed() < timeout {
            tokio::time::sleep(POLL).await;
        }
        self.ended
    }
}

/// How a process ended, in words.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(9)) => "was killed (signal 9)".into(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Stops all nodes, the last one first, so that each can hand its leaders over to those that go on.
/// Returns those that did not stop in order, with how they ended.
pub async fn stop_all(processes: &mut [Process]) -> Vec<(u64, String)> {
    let running: Vec<u64> = processes.iter_mut().filter_map(|one| one.ended().is_none().then_some(one.node)).collect();
    for process in processes.iter_mut().rev() {
        process.signal(Signal::TERM);
        process.wait(HEAD_START).await;
    }
    let mut bad = Vec::new();
    for process in processes.iter_mut().filter(|process| running.contains(&process.node)) {
        match process.wait(STOP_TIMEOUT).await {
            Some(status) if status.success() => {}
            Some(status) => bad.push((process.node, ending(status))),
            None => {
                process.signal(Signal::KILL);
                process.wait(STOP_TIMEOUT).await;
                bad.push((process.node, "did not stop and was killed".into()));
            }
        }
    }
    bad
}

/// Ends all nodes at once.
pub async fn kill_all(processes: &mut [Process]) {
    for process in processes.iter_mut() {
        process.signal(Signal::KILL);
    }
    for process in processes.iter_mut() {
        process.wait(STOP_TIMEOUT).await;
    }
}
