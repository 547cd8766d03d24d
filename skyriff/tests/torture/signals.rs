//! Signals to a private Postgres, found by its pid file.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal, kill_process};

fn postmaster(data: &Path) -> Option<i32> {
    fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

/// Only the postmaster.
pub fn to_postmaster(data: &Path, signal: Signal) {
    if let Some(pid) = postmaster(data).and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// The postmaster and all that it has started.
pub fn to_server(data: &Path, signal: Signal) {
    let Some(postmaster) = postmaster(data) else { return };
    to_postmaster(data, signal);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // pid (name) state parent …
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let (true, Some(pid)) = (parent == Some(postmaster), pid) {
            kill_process(pid, signal).ok();
        }
    }
}
