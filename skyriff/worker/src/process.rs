//! A program that is run for an attempt: at a lower priority, for a bounded time, and never for longer than the worker.

use std::{process::Stdio, sync::LazyLock, time::Duration};

use rustix::process::{Pid, setpriority_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{Stop, Why};

/// Ends its program when its own parent is gone, however that came about.
static SETPRIV: LazyLock<bool> = LazyLock::new(|| {
    let mut probe = std::process::Command::new("setpriv");
    probe.args(["--pdeathsig", "KILL", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
});

/// Why a program did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// It cannot be started.
    #[error("{program} cannot be started; `make setup` installs it")]
    Missing {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// It said no.
    #[error("{program} ended with {status}")]
    Failed { program: &'static str, status: std::process::ExitStatus },
    /// It was to end earlier.
    #[error("{program} was stopped")]
    Stopped { program: &'static str, why: Why },
    /// Its output cannot be read.
    #[error("cannot read what {program} says")]
    Io {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// How a program is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// 0 for as everything else, 19 for only when nothing else wants to run.
    pub(crate) niceness: i32,
    /// How long it may take.
    pub(crate) time_max: Duration,
}

/// A command that ends with this process. What it complains about is let go: it may quote what belongs to a person.
pub(crate) fn command(program: &'static str) -> Command {
    let mut command = if *SETPRIV {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    } else {
        Command::new(program)
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

/// Run it to its end, telling every line that it prints.
pub(crate) async fn run(
    program: &'static str,
    mut command: Command,
    bounds: Bounds,
    stop: &Stop,
    mut line: impl FnMut(&str),
) -> Result<(), RunError> {
    let mut child = command.spawn().map_err(|source| RunError::Missing { program, source })?;
    be_nice(&child, bounds.niceness);
    let io = |source| RunError::Io { program, source };
    let Some(stdout) = child.stdout.take() else {
        return Err(io(std::io::ErrorKind::BrokenPipe.into()));
    };
    let whole = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Some(text) = lines.next_line().await? {
            line(&text);
        }
        child.wait().await
    };
    let ended = tokio::select! {
        ended = timeout(bounds.time_max, whole) => ended.map_err(|_| Why::TooLong),
        why = stop.heard() => Err(why),
    };
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(RunError::Failed { program, status }),
        Ok(Err(source)) => Err(io(source)),
        Err(why) => {
            child.kill().await.ok();
            Err(RunError::Stopped { program, why })
        }
    }
}

fn be_nice(child: &Child, niceness: i32) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Err(error) = setpriority_process(pid, niceness)
        && pid.is_some()
    {
        tracing::debug!(%error, "cannot lower the priority");
    }
}
