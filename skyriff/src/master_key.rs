//! The key that wraps the keys of persons: where it is, and made at the first start of `dev`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use skyriff_vault::{KeyDatabase, MasterKeys, Vault};

use crate::{
    config::{Databases, Place, small_pool},
    token,
};

/// Where the master key is.
#[derive(Args, Clone)]
pub struct MasterKeyArguments {
    /// The key that wraps the keys of persons: the base64 of 32 bytes. While it is being changed, the new one and then the
    /// older ones, separated by commas. Without it nothing that is sealed opens again: keep a copy where no database is.
    #[arg(long, env = "SKYRIFF_MASTER_KEY", hide_env_values = true)]
    master_key: Option<String>,
    /// The file that holds it instead. The folder of `skyriff dev` has one.
    #[arg(long, env = "SKYRIFF_MASTER_KEY_FILE")]
    master_key_file: Option<PathBuf>,
}

impl MasterKeyArguments {
    /// As given, or else from the development folder.
    pub fn keys(&self, folder: &Path) -> Result<MasterKeys> {
        match (&self.master_key, &self.master_key_file) {
            (Some(_), Some(_)) => bail!(
                "the master key is given twice: SKYRIFF_MASTER_KEY (or --master-key) and SKYRIFF_MASTER_KEY_FILE (or \
                 --master-key-file) are both set; unset one"
            ),
            (Some(text), None) => Ok(MasterKeys::from_base64(text)?),
            (None, Some(file)) => read(file),
            (None, None) => read(&file_of(folder)).context(
                "commands and queries need the key that wraps the keys of persons: set SKYRIFF_MASTER_KEY or \
                 SKYRIFF_MASTER_KEY_FILE, or start `skyriff dev` first",
            ),
        }
    }
}

/// In the development folder.
pub fn file_of(folder: &Path) -> PathBuf {
    folder.join("master-key")
}

/// The development folder's, made at the first start.
pub fn keys_of(folder: &Path) -> Result<MasterKeys> {
    let file = file_of(folder);
    if !file.exists() {
        token::write_secret(&file, &MasterKeys::generate())?;
    }
    read(&file)
}

fn read(file: &Path) -> Result<MasterKeys> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read the master key in {}", file.display()))?;
    MasterKeys::from_base64(&text).with_context(|| file.display().to_string())
}

/// Where persons' keys are, seen as a role of the database: the one that appends may make keys, the one that reads may
/// not. Both ask the primary: a replica may still have a key that was destroyed.
pub fn vault(store: &Databases, role: &str, master_keys: &MasterKeys) -> Vault {
    let of = |place: &Place| KeyDatabase {
        shards: place.shards.clone(),
        primary: small_pool(&place.primary, role, "skyriff keys"),
    };
    Vault::new(master_keys.clone(), store.shard_count, store.event_store.iter().map(of).collect())
}
