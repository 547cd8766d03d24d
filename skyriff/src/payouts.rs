//! Who pays withdrawals, from options or the environment.

use std::{fs, path::Path, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use reqwest::Url;
use skyriff_domain::Label;
use skyriff_postgres::databases;
use skyriff_vault::MasterKeys;
use skyriff_write_side::payouts::{
    Patience, PayoutProvider, Payouts, WithdrawalRecords,
    http::{HttpProvider, Settings},
    local::LocalProvider,
    signature::Secret,
};

use crate::{config::Databases, master_key};

/// Which provider pays withdrawals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    /// Writes payment files for finance.
    Local,
    /// Asks somebody's HTTP API.
    Http,
    /// Nobody: approved withdrawals wait.
    None,
}

/// Who pays withdrawals, and how long it may take.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Who pays withdrawals")]
pub struct PayoutArguments {
    /// Who pays withdrawals; without it this process pays none. `skyriff dev` pays with payment files unless told otherwise.
    #[arg(long, value_enum, env = "SKYRIFF_PAYOUT_PROVIDER")]
    payout_provider: Option<Provider>,
    /// Where the local provider keeps its payment files; one folder for all processes of a store.
    #[arg(long, env = "SKYRIFF_PAYOUT_FOLDER")]
    payout_folder: Option<PathBuf>,
    /// What the HTTP provider is called in events and in the address of its callbacks. Never another one's name: payouts
    /// that have started are only ever asked about under it. So there is no default: who changes the URL has to think of it.
    #[arg(long, env = "SKYRIFF_PAYOUT_NAME")]
    payout_name: Option<Label>,
    /// Where the HTTP provider's API is; https, unless it is on this machine.
    #[arg(long, env = "SKYRIFF_PAYOUT_URL")]
    payout_url: Option<Url>,
    /// What we and the HTTP provider sign with, at least 32 bytes.
    #[arg(long, env = "SKYRIFF_PAYOUT_SECRET", hide_env_values = true)]
    payout_secret: Option<String>,
    /// The file that holds it instead.
    #[arg(long, env = "SKYRIFF_PAYOUT_SECRET_FILE", conflicts_with = "payout_secret")]
    payout_secret_file: Option<PathBuf>,
    /// How long connecting to the HTTP provider may take, in milliseconds.
    #[arg(long, env = "SKYRIFF_PAYOUT_CONNECT_TIMEOUT_MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    payout_connect_timeout_ms: u64,
    /// How long one question to the HTTP provider may take, with its repetitions, in milliseconds.
    #[arg(long, env = "SKYRIFF_PAYOUT_TIMEOUT_MS", default_value_t = 8_000, value_parser = clap::value_parser!(u64).range(1..=12_000))]
    payout_timeout_ms: u64,
    /// The first wait before a payout that is not decided is looked up again, in milliseconds.
    #[arg(long, env = "SKYRIFF_PAYOUT_LOOK_AGAIN_MIN_MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    payout_look_again_min_ms: u64,
    /// The longest, in milliseconds.
    #[arg(long, env = "SKYRIFF_PAYOUT_LOOK_AGAIN_MAX_MS", default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(10..=86_400_000))]
    payout_look_again_max_ms: u64,
    /// After so many seconds a payout that is not decided needs a person's attention.
    #[arg(long, env = "SKYRIFF_PAYOUT_ATTENTION_AFTER_S", default_value_t = 86_400, value_parser = clap::value_parser!(u64).range(1..=31 * 86_400))]
    payout_attention_after_s: u64,
}

impl PayoutArguments {
    /// With payment files in this folder, unless something else was said.
    pub fn or_local(mut self, folder: &Path) -> Self {
        self.payout_provider = self.payout_provider.or(Some(Provider::Local));
        self.payout_folder = self.payout_folder.or_else(|| Some(folder.to_owned()));
        self
    }

    /// Whether this process pays anything.
    pub const fn pays(&self) -> bool {
        matches!(self.payout_provider, Some(Provider::Local | Provider::Http))
    }

    /// What the process that pays needs, if it is to pay.
    pub fn payouts(&self, databases: &Databases, master_keys: Option<&MasterKeys>) -> Result<Option<Payouts>> {
        let provider: Arc<dyn PayoutProvider> = match self.payout_provider {
            None | Some(Provider::None) => return Ok(None),
            Some(Provider::Local) => {
                let folder = self.payout_folder.as_ref().context("the local provider needs --payout-folder")?;
                let opened = LocalProvider::open(folder);
                Arc::new(opened.with_context(|| format!("the payment files in {}", folder.display()))?)
            }
            Some(Provider::Http) => Arc::new(HttpProvider::new(self.settings()?)?),
        };
        let master_keys = master_keys.context("paying withdrawals takes the key that wraps the keys of persons")?;
        let patience = Patience {
            look_again_min: Duration::from_millis(self.payout_look_again_min_ms),
            look_again_max: Duration::from_millis(self.payout_look_again_max_ms),
            attention_after: Duration::from_secs(self.payout_attention_after_s),
        };
        let vault = master_key::vault(databases, databases::PROCESS, master_keys);
        Ok(Some(Payouts { provider, vault, records: records(databases, databases::PROCESS), patience }))
    }

    /// Whose callbacks are believed.
    pub fn callbacks(&self) -> Result<Option<(Label, Secret)>> {
        let is_http = self.payout_provider == Some(Provider::Http);
        is_http.then(|| Ok((self.name()?, self.secret()?))).transpose()
    }

    fn settings(&self) -> Result<Settings> {
        let url = self.payout_url.clone().context("the HTTP provider needs --payout-url")?;
        let is_here = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_here);
        ensure!(is_safe, "--payout-url must be https: it is told where people's money goes");
        ensure!(url.query().is_none() && url.fragment().is_none(), "--payout-url has neither query nor fragment");
        Ok(Settings {
            name: self.name()?,
            url,
            secret: self.secret()?,
            connect_timeout: Duration::from_millis(self.payout_connect_timeout_ms),
            timeout: Duration::from_millis(self.payout_timeout_ms),
        })
    }

    fn name(&self) -> Result<Label> {
        let name = self.payout_name.clone();
        let name = name.context("the HTTP provider needs --payout-name: one that no other provider has had")?;
        ensure!(!name.as_str().starts_with("local"), "--payout-name is one of the payment files'; take another");
        Ok(name)
    }

    fn secret(&self) -> Result<Secret> {
        let secret = match (&self.payout_secret, &self.payout_secret_file) {
            (Some(secret), _) => secret.clone(),
            (None, Some(file)) => fs::read_to_string(file).with_context(|| file.display().to_string())?,
            (None, None) => String::new(),
        };
        Secret::new(secret.trim().as_bytes())
            .context("the HTTP provider needs SKYRIFF_PAYOUT_SECRET, or a file with it, of at least 32 bytes")
    }
}

/// What is recorded of withdrawals, read as this role.
pub fn records(databases: &Databases, role: &str) -> WithdrawalRecords {
    let of = |place: &crate::config::Place| (place.primary.as_role(role), place.shards.clone());
    WithdrawalRecords::new(databases.event_store.iter().map(of))
}
