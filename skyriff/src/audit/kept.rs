//! Checkpoints that somebody has kept, and the newest one: signed by a known key, or not used at all.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use skyriff_domain::{ShardCount, ShardId};
use skyriff_proof::{
    KnownKeys, SignedNote,
    answer::{Sealed, heads},
    note::NOTE_BYTES_MAX,
};
use url::Url;

use super::tree::Kept;

/// Where checkpoints come from.
#[derive(Args)]
#[command(next_help_heading = "What was sealed")]
pub struct KeptArguments {
    /// A checkpoint that was kept: a signed note, or the API's answer that has one. May be given several times; `-` is the
    /// standard input.
    #[arg(long = "checkpoint", value_name = "FILE", requires = "keys")]
    checkpoints: Vec<PathBuf>,
    /// The public keys that sign checkpoints, those of before among them: one a line.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Compare with the newest checkpoint of this API as well: http://host:8080.
    #[arg(long, requires = "keys", requires = "token")]
    url: Option<Url>,
    /// A token of an auditor, for that.
    #[arg(long, env = "SKYRIFF_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// What was kept of every shard.
#[derive(Default)]
pub struct AllKept {
    /// Their names, in the order in which they were given, and of how many shards they are.
    names: Vec<(Arc<str>, usize)>,
    of: BTreeMap<ShardId, Vec<Kept>>,
}

impl AllKept {
    pub fn of(&self, shard: ShardId) -> Vec<Kept> {
        self.of.get(&shard).cloned().unwrap_or_default()
    }

    fn add(&mut self, name: &str, text: &str, known: &KnownKeys) -> Result<()> {
        let name: Arc<str> = name.into();
        let note = match serde_json::from_str::<Sealed>(text) {
            Ok(sealed) => sealed.checkpoint,
            Err(_) => text.parse::<SignedNote>().with_context(|| name.to_string())?,
        };
        let heads = heads(&note, known).with_context(|| format!("{name} is not to be believed"))?;
        self.names.push((name.clone(), heads.len()));
        for (shard, head) in heads {
            self.of.entry(shard).or_default().push(Kept { head, name: name.clone() });
        }
        Ok(())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(name, _)| &**name)
    }

    /// They must be of this store: of all of its shards, or of one.
    pub fn check(&self, count: ShardCount) -> Result<()> {
        let shards = count.get();
        if let Some(beyond) = self.of.keys().find(|shard| shard.0 >= shards) {
            bail!("a checkpoint is of shard {beyond}, and there are {shards} shards");
        }
        for (name, sealed) in &self.names {
            ensure!(
                *sealed == 1 || *sealed == usize::from(shards),
                "{name} is of {sealed} shards, and there are {shards}"
            );
        }
        Ok(())
    }
}

impl KeptArguments {
    pub async fn read(&self) -> Result<AllKept> {
        let mut kept = AllKept::default();
        let Some(keys) = &self.keys else { return Ok(kept) };
        let text = std::fs::read_to_string(keys).with_context(|| format!("cannot read {}", keys.display()))?;
        let known: KnownKeys = text.parse().with_context(|| format!("{} are not keys", keys.display()))?;
        for place in &self.checkpoints {
            kept.add(&place.display().to_string(), &text_of(place)?, &known)?;
        }
        if let (Some(url), Some(token)) = (&self.url, &self.token) {
            kept.add("the newest checkpoint", &newest(url, token).await?, &known)?;
        }
        ensure!(!kept.names.is_empty(), "keys are for checkpoints: give --checkpoint or --url");
        Ok(kept)
    }
}

fn text_of(place: &Path) -> Result<String> {
    let mut text = String::new();
    let limit = u64::try_from(NOTE_BYTES_MAX)?.saturating_mul(2);
    let read = if place.as_os_str() == "-" {
        std::io::stdin().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(place).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {}", place.display()))?;
    Ok(text)
}

/// The API's answer: `GET /v1/ledger/checkpoint`.
async fn newest(url: &Url, token: &str) -> Result<String> {
    let address = url.join("/v1/ledger/checkpoint").context("--url")?;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    let answer = client.get(address).bearer_auth(token).send().await.context("cannot reach --url")?;
    let answer = answer.error_for_status().context("there is no newest checkpoint to be had")?;
    Ok(answer.text().await?)
}
