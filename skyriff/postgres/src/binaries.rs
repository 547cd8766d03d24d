//! Finding the Postgres server programs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Major versions that are known to work.
const VERSIONS: std::ops::RangeInclusive<u32> = 15..=18;

/// A folder with `initdb`, `postgres` and `pg_basebackup` of one version.
#[derive(Clone, Debug)]
pub struct Binaries {
    folder: PathBuf,
    major: u32,
}

impl Binaries {
    /// The first usable of: `PG_BIN`, `unpacked` (where the installer unpacks a prebuilt Postgres), `pg_config`, the
    /// usual folders of distributions (newest first), `PATH`.
    ///
    /// # Errors
    /// When none has all three programs in a version from 15 to 18; the message says what to install.
    pub fn find(unpacked: &Path) -> Result<Self> {
        if let Some(folder) = env::var_os("PG_BIN") {
            let folder = PathBuf::from(folder);
            return Self::at(&folder).with_context(|| format!("PG_BIN is {}", folder.display()));
        }
        let found = candidates(unpacked).into_iter().find_map(|folder| Self::at(&folder).ok());
        found.context(
            "no Postgres server programs of version 15 to 18 found (initdb, postgres, pg_basebackup).\n\
             Run `make setup`, or install a package such as postgresql, or set PG_BIN to their folder",
        )
    }

    fn at(folder: &Path) -> Result<Self> {
        for program in ["initdb", "postgres", "pg_basebackup"] {
            if !folder.join(program).is_file() {
                bail!("{} has no {program}", folder.display());
            }
        }
        let output = Command::new(folder.join("postgres")).arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        let major = text
            .split_whitespace()
            .find_map(|word| word.split(['.', 'b', 'r', 'd']).next()?.parse().ok())
            .with_context(|| format!("cannot read a version from {text:?}"))?;
        if !VERSIONS.contains(&major) {
            bail!("Postgres {major} in {} is not one of 15 to 18", folder.display());
        }
        Ok(Self { folder: folder.to_owned(), major })
    }

    /// One of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }
}

fn candidates(unpacked: &Path) -> Vec<PathBuf> {
    let mut folders = vec![unpacked.join("bin")];
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    for major in VERSIONS.rev() {
        folders.push(format!("/usr/lib/postgresql/{major}/bin").into());
        folders.push(format!("/usr/pgsql-{major}/bin").into());
        folders.push(format!("/opt/homebrew/opt/postgresql@{major}/bin").into());
    }
    folders.push("/usr/local/pgsql/bin".into());
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    folders
}
