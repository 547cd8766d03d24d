//! `skyriff token`: a token for a caller, signed with the store's secret.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use clap::Args;
use rand::{RngCore, TryRngCore, rngs::OsRng};
use skyriff_edge::{Caller, Role, Tokens};
use uuid::Uuid;

/// Where `dev` keeps everything, unless told otherwise.
pub const FOLDER: &str = ".skyriff";

#[derive(Args)]
pub struct Arguments {
    /// Whose token: a user's id, or the id that names the service, operator, worker …
    #[arg(long)]
    user: Uuid,
    /// user, service, operator, reviewer, auditor, analyst or worker.
    #[arg(long, default_value = "user")]
    role: Role,
    /// For how many hours it is good.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=24 * 366))]
    hours: u32,
    #[command(flatten)]
    secret: SecretArguments,
}

/// Where the secret is.
#[derive(Args, Clone)]
pub struct SecretArguments {
    /// The key that signs tokens, at least 32 bytes.
    #[arg(long, env = "SKYRIFF_TOKEN_SECRET", hide_env_values = true)]
    token_secret: Option<String>,
    /// The folder of `skyriff dev`, whose secret is used when none is given.
    #[arg(long, default_value = FOLDER)]
    folder: PathBuf,
}

impl SecretArguments {
    /// The folder of `skyriff dev`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// As given, or else from the development folder.
    pub fn tokens(&self) -> Result<Tokens> {
        let secret = match &self.token_secret {
            Some(secret) => secret.clone(),
            None => fs::read_to_string(secret_file(&self.folder)).with_context(|| {
                format!(
                    "no SKYRIFF_TOKEN_SECRET, and no secret in {}: start `skyriff dev` first",
                    self.folder.display()
                )
            })?,
        };
        Ok(Tokens::new(secret.trim().as_bytes())?)
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let caller = Caller { role: arguments.role, id: arguments.user };
    let lifetime = TimeDelta::hours(i64::from(arguments.hours));
    println!("{}", arguments.secret.tokens()?.mint(&caller, Utc::now(), lifetime)?);
    Ok(ExitCode::SUCCESS)
}

fn secret_file(folder: &Path) -> PathBuf {
    folder.join("token-secret")
}

/// The development folder's secret, made at the first start.
pub fn secret_of(folder: &Path) -> Result<Tokens> {
    let file = secret_file(folder);
    if !file.exists() {
        let mut bytes = [0; 32];
        OsRng.unwrap_err().fill_bytes(&mut bytes);
        write_secret(&file, &bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())?;
    }
    Ok(Tokens::new(fs::read_to_string(&file)?.trim().as_bytes())?)
}

/// A new file that only its owner reads, whole or not at all.
pub fn write_secret(file: &Path, secret: &str) -> Result<()> {
    let half_made = file.with_extension("half-made");
    let mut new = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half_made)?;
    new.write_all(secret.as_bytes())?;
    new.sync_all()?;
    fs::rename(half_made, file)?;
    Ok(())
}
