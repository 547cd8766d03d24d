//! `skyriff worker`: makes videos and speech.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use chrono::{TimeDelta, Utc};
use clap::{Args, ValueEnum};
use skyriff_domain::Label;
use skyriff_edge::{Caller, Role, Tokens};
use skyriff_storage::ObjectStorage;
use skyriff_worker::{
    Limits, VideoProvider, Worker, WorkerApi,
    provider::{
        local::Local,
        noop::Noop,
        predictions::{self, Predictions, webhooks::Webhooks},
    },
    scratch::Scratch,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{outputs::StorageArguments, serve, token};

/// Where attempts are made, unless told otherwise, in the folder of `dev`.
const SCRATCH: &str = "scratch";
/// A worker inside of `dev` gives up what it cannot finish soon: Ctrl-C is meant.
const DEV_GRACE: Duration = Duration::from_secs(3);

#[derive(Args)]
pub struct Arguments {
    /// Where the API is.
    #[arg(long, env = "SKYRIFF_URL", default_value = "http://127.0.0.1:8080")]
    url: reqwest::Url,
    /// A token with the role worker: `skyriff token --role worker`.
    #[arg(long, env = "SKYRIFF_WORKER_TOKEN", hide_env_values = true)]
    token: String,
    /// What this worker is called in the events of jobs; the machine's name, unless given.
    #[arg(long, env = "SKYRIFF_WORKER_NAME")]
    name: Option<Label>,
    /// What it makes things with, the preferred ones first.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "local")]
    providers: Vec<Provider>,
    /// Jobs that it makes at the same time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    #[command(flatten)]
    storage: StorageArguments,
    /// The folder of `skyriff dev`, whose storage and scratch folder are used when none are given.
    #[arg(long, default_value = token::FOLDER)]
    folder: PathBuf,
    /// Where attempts are made; what workers that were killed have left there is deleted.
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// How much ffmpeg and espeak-ng stand back for other programs: 0 not at all, 19 as far as possible.
    #[arg(long, default_value_t = Limits::default().niceness, value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
    /// When told to end: how long jobs in hand may go on before they are given back, in seconds.
    #[arg(long, default_value_t = 20)]
    grace_s: u32,
    /// How large an output may be, in MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    output_max_mib: u32,
    #[command(flatten)]
    predictions: PredictionsArguments,
}

/// What jobs are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// ffmpeg and espeak-ng on this machine.
    Local,
    /// A predictions-style API.
    Predictions,
    /// Nothing at all, at once: for load runs. Only for jobs that name it.
    Noop,
}

#[derive(Args)]
#[command(next_help_heading = "The provider `predictions`")]
struct PredictionsArguments {
    /// Where its API is.
    #[arg(long, env = "SKYRIFF_PREDICTIONS_URL")]
    predictions_url: Option<reqwest::Url>,
    /// Its token.
    #[arg(long, env = "SKYRIFF_PREDICTIONS_TOKEN", hide_env_values = true)]
    predictions_token: Option<String>,
    /// Where its webhooks come in; without them it is asked at intervals.
    #[arg(long, env = "SKYRIFF_PREDICTIONS_WEBHOOK_LISTEN", requires = "predictions_webhook_url")]
    predictions_webhook_listen: Option<SocketAddr>,
    /// How it reaches that from outside: https://…/webhooks/predictions.
    #[arg(long, env = "SKYRIFF_PREDICTIONS_WEBHOOK_URL", requires = "predictions_webhook_secret")]
    predictions_webhook_url: Option<reqwest::Url>,
    /// What it signs them with.
    #[arg(long, env = "SKYRIFF_PREDICTIONS_WEBHOOK_SECRET", hide_env_values = true)]
    predictions_webhook_secret: Option<String>,
}

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let stop = serve::on_signal()?;
    let limits = Limits {
        concurrency: usize::from(arguments.concurrency),
        grace: Duration::from_secs(u64::from(arguments.grace_s)),
        bytes_max: u64::from(arguments.output_max_mib) * 1_024 * 1_024,
        niceness: arguments.nice,
        ..Limits::default()
    };
    let mut providers: Vec<Arc<dyn VideoProvider>> = Vec::new();
    for provider in &arguments.providers {
        providers.push(match provider {
            Provider::Local => {
                Local::check().map_err(|missing| anyhow!(missing))?;
                Arc::new(Local { niceness: arguments.nice })
            }
            Provider::Noop => Arc::new(Noop),
            Provider::Predictions => Arc::new(arguments.predictions.provider(&stop).await?),
        });
    }
    let storage = arguments.storage.open(&arguments.folder)?;
    let scratch = scratch(arguments.scratch.unwrap_or_else(|| arguments.folder.join(SCRATCH)).as_path())?;
    let name = arguments.name.map_or_else(machine_name, Ok)?;
    let api = WorkerApi::new(&arguments.url, &arguments.token, name.as_str())?;
    let names: Vec<_> = providers.iter().map(|provider| provider.name()).collect();
    println!("{name} makes videos for {} with {}, {} at a time", arguments.url, names.join(", "), limits.concurrency);
    println!("what it makes goes to {storage}; Ctrl-C ends it");
    Worker::new(api, storage, scratch, providers, limits).until(stop).await;
    Ok(ExitCode::SUCCESS)
}

impl PredictionsArguments {
    async fn provider(&self, stop: &CancellationToken) -> Result<Predictions> {
        let url = self.predictions_url.as_ref().context("the provider predictions needs --predictions-url")?;
        let token = self.predictions_token.as_ref();
        let token = token.context("the provider predictions needs SKYRIFF_PREDICTIONS_TOKEN")?;
        let webhooks =
            match (self.predictions_webhook_listen, &self.predictions_webhook_url, &self.predictions_webhook_secret) {
                (Some(listen), Some(url), Some(secret)) => {
                    ensure!(secret.len() >= 24, "the webhooks' secret must have at least 24 bytes");
                    let webhooks = Webhooks::new(url.clone(), secret.as_bytes());
                    let listener =
                        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
                    let (routes, stop) = (webhooks.routes(), stop.clone());
                    tokio::spawn(async move {
                        let serve = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
                        if let Err(error) = serve.await {
                            tracing::warn!(%error, "webhooks no longer come in; the provider is asked at intervals");
                        }
                    });
                    Some(webhooks)
                }
                _ => None,
            };
        Ok(Predictions::new(url, token, webhooks, predictions::Limits::default())?)
    }
}

/// The worker inside of `dev`: in this process, while what it runs stands back for everything else. None when the machine
/// has not what it needs, which is said.
pub fn inside_dev(
    folder: &Path,
    api: SocketAddr,
    tokens: &Tokens,
    storage: ObjectStorage,
    stop: CancellationToken,
) -> Result<Option<JoinHandle<()>>> {
    if let Err(missing) = Local::check() {
        eprintln!("· no videos are made here: {missing}");
        return Ok(None);
    }
    let caller = Caller { role: Role::Worker, id: Uuid::new_v4() };
    let token = tokens.mint(&caller, Utc::now(), TimeDelta::days(366))?;
    let limits = Limits { concurrency: 1, grace: DEV_GRACE, ..Limits::default() };
    let scratch = scratch(&folder.join(SCRATCH))?;
    let api = WorkerApi::new(&format!("http://{api}").parse()?, &token, "dev")?;
    let providers: Vec<Arc<dyn VideoProvider>> = vec![Arc::new(Local { niceness: limits.niceness })];
    Ok(Some(tokio::spawn(Worker::new(api, storage, scratch, providers, limits).until(stop))))
}

fn scratch(folder: &Path) -> Result<Scratch> {
    let folder = std::path::absolute(folder)?;
    Scratch::new(&folder).with_context(|| format!("cannot work in {}", folder.display()))
}

/// As much of it as a label can hold.
fn machine_name() -> Result<Label> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "_.-".contains(*c)).take(64).collect();
    // The longer one is well-formed whatever the machine is called.
    Ok(name.parse().or_else(|_| format!("worker{name}").parse())?)
}
