//! A process, and everything it said.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{LIMIT, eventually};

/// The binary, with no configuration but the one the test gives it.
pub fn skyriff(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skyriff"));
    for (name, _) in std::env::vars_os() {
        // Who Postgres runs as is the machine's affair.
        if name.to_string_lossy().starts_with("SKYRIFF_") && name != "SKYRIFF_POSTGRES_USER" {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// How much of what a process has said is shown when a test fails.
const LAST_LINES: usize = 100;

/// A running process. Dropped, it is killed.
pub struct Process {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: [JoinHandle<()>; 2],
}

/// What became of a process.
#[derive(Debug)]
pub struct Ended {
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = [
            keep(child.stdout.take().unwrap(), Arc::clone(&stdout)),
            keep(child.stderr.take().unwrap(), Arc::clone(&stderr)),
        ];
        Self { child, stdout, stderr, readers }
    }

    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// What `find` finds in the standard output so far, as soon as it does.
    pub async fn says<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        eventually(what, async || {
            let found = find(&self.stdout());
            if found.is_none()
                && let Some(exit) = self.child.try_wait().unwrap()
            {
                panic!("{exit} before {what}\n{}\n{}", self.stdout(), self.stderr());
            }
            found
        })
        .await
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it still runs");
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// How much memory it has.
    pub fn memory_kib(&self) -> i64 {
        let pid = self.child.id().expect("it still runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Wait for its end.
    pub async fn end(self) -> Ended {
        self.end_within(LIMIT).await
    }

    /// Wait for its end, which may take this long.
    pub async fn end_within(mut self, limit: Duration) -> Ended {
        let Ok(exit) = timeout(limit, self.child.wait()).await else {
            panic!("does not end within {limit:?}\n{}\n{}", self.stdout(), self.stderr());
        };
        // Whoever inherited the output may still hold it open; what the process itself wrote is there by then.
        for reader in &mut self.readers {
            timeout(Duration::from_secs(5), reader).await.ok();
        }
        Ended { code: exit.unwrap().code(), stdout: self.stdout(), stderr: self.stderr() }
    }
}

/// What a process said last is what somebody wants to read who sees that a test has failed.
impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = self.stderr();
            let lines: Vec<_> = said.lines().collect();
            let last = lines.len().saturating_sub(LAST_LINES);
            eprintln!("process {:?} had said last:\n{}", self.child.id(), lines[last..].join("\n"));
        }
    }
}

impl Ended {
    /// It must have ended well.
    #[track_caller]
    pub fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// It must have refused, and said all of this.
    #[track_caller]
    pub fn refused(&self, because: &[&str]) {
        assert!(!matches!(self.code, Some(0) | None), "{self:?}");
        for because in because {
            assert!(self.stderr.contains(because), "{because:?} is not in\n{}", self.stderr);
        }
    }
}

fn keep(mut from: impl AsyncRead + Unpin + Send + 'static, to: Arc<Mutex<String>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut bytes = [0; 4_096];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    })
}
