//! Sealing the log: its keys, where they are and how they are made; `skyriff seal` and `skyriff seal-key`.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use skyriff_edge::Tokens;
use skyriff_postgres::databases;
use skyriff_proof::KeyName;
use skyriff_seal::{Ledger, PublicKeys, SealKeys, Sealer, Settings, keys};
use skyriff_storage::ObjectStorage;

use crate::{
    config::{DatabaseArguments, Databases},
    serve::{self, Role, Running, Streams, Tuning},
    token,
};

/// The private keys in the folder of `dev`, and the public ones, to which every one that was ever used is added.
const KEY: &str = "seal-key";
const PUBLIC_KEYS: &str = "seal-keys.pub";
/// What the ledger of `dev` is called.
const DEV_LEDGER: &str = "localhost/v1/ledger/tlog";

/// Where the keys of the ledger are.
#[derive(Args, Clone)]
#[command(next_help_heading = "The keys of the ledger")]
pub struct SealArguments {
    /// The private keys that seal the log, as `skyriff seal-key` makes them: one; while it is being changed the new one and the
    /// old one, separated by commas, which both sign.
    #[arg(long, env = "SKYRIFF_SEAL_KEY", hide_env_values = true)]
    seal_key: Option<String>,
    /// The file that holds them instead, a line each. The folder of `skyriff dev` has one.
    #[arg(long, env = "SKYRIFF_SEAL_KEY_FILE", conflicts_with = "seal_key")]
    seal_key_file: Option<PathBuf>,
    /// The public keys of the ledger, those of before among them: separated by commas. What they have signed stays good.
    #[arg(long, env = "SKYRIFF_SEAL_PUBLIC_KEYS")]
    seal_public_keys: Option<String>,
    /// The file that holds them instead, a line each. The folder of `skyriff dev` has one.
    #[arg(long, env = "SKYRIFF_SEAL_PUBLIC_KEYS_FILE", conflicts_with = "seal_public_keys")]
    seal_public_keys_file: Option<PathBuf>,
}

/// Without the key.
impl fmt::Debug for SealArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealArguments").field("public_keys", &self.seal_public_keys).finish_non_exhaustive()
    }
}

/// What a process has to do with the ledger.
pub struct Sealing {
    /// Where tiles and seals are.
    pub storage: ObjectStorage,
    /// For whoever seals.
    pub keys: Option<SealKeys>,
    /// For whoever reads.
    pub public: Option<PublicKeys>,
    /// Whether only what a standby has too is sealed: what is sealed and lost in a failover cannot be unsealed.
    pub require_standby: bool,
}

impl SealArguments {
    /// What a process with these roles needs, as given, or else from the development folder.
    pub fn sealing(
        &self,
        roles: &[Role],
        storage: &ObjectStorage,
        folder: &Path,
        require_standby: bool,
    ) -> Result<Sealing> {
        let keys = roles.contains(&Role::Seal).then(|| self.keys(folder)).transpose()?;
        let public = match &keys {
            Some(keys) => Some(keys.public().clone()),
            None if roles.contains(&Role::Query) => self.public(folder)?,
            None => None,
        };
        Ok(Sealing { storage: storage.clone(), keys, public, require_standby })
    }

    fn keys(&self, folder: &Path) -> Result<SealKeys> {
        let private = match (&self.seal_key, &self.seal_key_file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => read(&folder.join(KEY)).context(
                "sealing the log needs a private key: set SKYRIFF_SEAL_KEY or SKYRIFF_SEAL_KEY_FILE (`skyriff seal-key` makes \
                 one), or start `skyriff dev` first",
            )?,
        };
        // The message of a wrong key has none of it.
        SealKeys::new(&private, &self.public_text(folder)?.unwrap_or_default()).context("the keys of the ledger")
    }

    /// Nothing when nobody has said which.
    fn public(&self, folder: &Path) -> Result<Option<PublicKeys>> {
        let text = self.public_text(folder)?;
        text.map(|text| PublicKeys::new(&text)).transpose().context("the public keys of the ledger")
    }

    fn public_text(&self, folder: &Path) -> Result<Option<String>> {
        match (&self.seal_public_keys, &self.seal_public_keys_file) {
            (Some(text), _) => Ok(Some(text.replace(',', "\n"))),
            (None, Some(file)) => read(file).map(Some),
            (None, None) if self.seal_key.is_some() || self.seal_key_file.is_some() => Ok(None),
            (None, None) => match folder.join(PUBLIC_KEYS) {
                file if file.exists() => read(&file).map(Some),
                _ => Ok(None),
            },
        }
    }
}

impl Sealing {
    /// The sealer, for a process that has a key.
    pub fn sealer(&self, databases: &Databases) -> Result<Option<Sealer>> {
        let Some(keys) = &self.keys else { return Ok(None) };
        let lock = databases.to_lock_seals().context("no database has shard 0")?;
        Ok(Some(Sealer::start(Settings {
            keys: keys.clone(),
            storage: self.storage.clone(),
            shard_count: databases.shard_count,
            lock,
            listen: databases.to_listen_for_seals(),
            logs: databases.to_read_rows(databases::SEAL, "skyriff seal"),
            require_standby: self.require_standby,
        })))
    }

    /// The proofs, for a process that knows the public keys.
    pub fn proofs(&self, databases: &Databases) -> Option<skyriff_read_side::Proofs> {
        let ledger = Ledger::new(self.storage.clone(), self.public.clone()?);
        let rows = databases.to_read_rows(databases::QUERY, "skyriff proofs");
        Some(skyriff_read_side::Proofs::new(ledger, databases.shard_count, rows))
    }
}

/// The development folder's, made at the first start. Every key that signs there is added to the public ones, and stays.
pub fn make_keys_in(folder: &Path) -> Result<()> {
    let (file, public) = (folder.join(KEY), public_file_of(folder));
    if !file.exists() {
        let key = keys::generate(DEV_LEDGER.parse()?)?;
        token::write_secret(&file, &key.to_private_text())?;
    }
    let known = if public.exists() { read(&public)? } else { String::new() };
    let keys = SealKeys::new(&read(&file)?, &known).with_context(|| file.display().to_string())?;
    let lines = keys.public().lines().join("\n") + "\n";
    if lines != known {
        let half_made = public.with_extension("half-made");
        fs::write(&half_made, lines)?;
        fs::rename(half_made, &public)?;
    }
    Ok(())
}

/// In the development folder.
pub fn file_of(folder: &Path) -> PathBuf {
    folder.join(KEY)
}

/// Likewise.
pub fn public_file_of(folder: &Path) -> PathBuf {
    folder.join(PUBLIC_KEYS)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    streams: Streams,
    /// The folder of `skyriff dev`, whose key and storage are used when none are given.
    #[arg(long, default_value = token::FOLDER)]
    folder: PathBuf,
}

/// `skyriff seal`. It listens for health checks and metrics only, so it needs no secret but its key.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { databases, tuning, streams, folder } = arguments;
    let (databases, roles) = (databases.databases()?, [Role::Seal]);
    let stop = serve::on_signal()?;
    // Nobody has a token of a secret that nobody knows.
    let tokens = Tokens::new(token::new_secret().as_bytes())?;
    let storage = tuning.links.storage(&folder)?;
    let sealing = tuning.seal.sealing(&roles, &storage, &folder, tuning.require_standby)?;
    let running = Running::start(&databases, &tokens, None, None, Some(&sealing), &tuning, &streams, &roles).await?;
    println!("SkyRiff listens on http://{}", running.address);
    running.until(stop).await?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
pub struct NewKey {
    /// The ledger's name, without spaces and plus signs: that of the keys before it, if there were any. Where it is the address
    /// of the API without https://, followed by /v1/ledger/tlog, other people's tools for tlog-tiles find the trees by it.
    #[arg(long)]
    name: String,
    /// The file that the private key is written to, readable by its owner only. It must not be there yet.
    #[arg(long)]
    out: PathBuf,
}

/// `skyriff seal-key`: prints the public key.
pub fn new_key(arguments: &NewKey) -> Result<ExitCode> {
    let NewKey { name, out } = arguments;
    ensure!(!out.exists(), "{} is there already; a key is never overwritten", out.display());
    let name: KeyName = name.parse().map_err(|error| anyhow!("--name: {error}"))?;
    let key = keys::generate(name)?;
    // A line of its own, since files of keys are put together.
    token::write_secret(out, &format!("{}\n", *key.to_private_text())).with_context(|| out.display().to_string())?;
    println!("{}", key.verifier());
    Ok(ExitCode::SUCCESS)
}
