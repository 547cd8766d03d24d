//! Postgres refuses to run as root, so root's servers run as somebody else.

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

/// Who the private servers run as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OsUser {
    /// Whoever started us.
    Same,
    /// We are root, and drop to this user.
    Other { uid: u32, gid: u32 },
}

impl OsUser {
    /// Ourselves, unless we are root: then `SKYRIFF_POSTGRES_USER` if set, else `postgres`, else `nobody`.
    pub(crate) fn choose() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Same);
        }
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let find = |name: &str| {
            passwd.lines().find_map(|line| {
                let fields: Vec<_> = line.split(':').collect();
                let (user, uid, gid) = (fields.first()?, fields.get(2)?, fields.get(3)?);
                (*user == name).then_some(Self::Other { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
            })
        };
        match std::env::var("SKYRIFF_POSTGRES_USER") {
            Ok(name) => find(&name).with_context(|| format!("SKYRIFF_POSTGRES_USER: there is no user {name}")),
            Err(_) => find("postgres").or_else(|| find("nobody")).context(
                "Postgres does not run as root, and there is neither a user postgres nor nobody to run it as; \
                 set SKYRIFF_POSTGRES_USER to one",
            ),
        }
    }

    /// Make a program run as this user, in a process group of its own: a Ctrl-C in the terminal is ours to handle.
    pub(crate) fn run(self, command: &mut Command) -> &mut Command {
        command.process_group(0);
        match self {
            Self::Same => command,
            Self::Other { uid, gid } => command.uid(uid).gid(gid),
        }
    }

    /// Give a file or folder to this user.
    pub(crate) fn own(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Same => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(uid), Some(gid)),
        }
    }

    /// Whether the user can enter the folder: every folder on the way must let it pass.
    pub(crate) fn can_enter(self, folder: &Path) -> bool {
        let Self::Other { uid, gid } = self else { return true };
        folder.ancestors().all(|folder| {
            fs::metadata(folder).is_ok_and(|folder| {
                let mode = folder.mode();
                mode & 0o001 != 0
                    || (folder.uid() == uid && mode & 0o100 != 0)
                    || (folder.gid() == gid && mode & 0o010 != 0)
            })
        })
    }
}
