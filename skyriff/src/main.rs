//! SkyRiff's one binary: its roles are subcommands.

#![expect(unreachable_pub, reason = "a binary exports nothing")]

mod api;
mod audit;
mod background;
mod config;
mod demo;
mod dev;
mod erase;
mod group;
mod keys;
mod ledger_watch;
mod master_key;
mod migrate;
mod outputs;
mod payouts;
mod play;
mod rebuild;
mod reconcile;
mod replay;
mod seal;
mod serve;
mod storage;
mod telemetry;
mod token;
mod worker;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

/// A command is some dozens of small allocations, most of them made by one thread and given back by another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The backend of SkyRiff: points, as events.
#[derive(Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log, as tracing directives: info, debug, skyriff_write_side=trace …
    #[arg(long, global = true, env = "SKYRIFF_LOG", default_value = "info,sqlx=warn")]
    log: String,
    /// Log lines for people, or one JSON object a line for machines.
    #[arg(long, global = true, env = "SKYRIFF_LOG_FORMAT", value_enum, default_value_t)]
    log_format: telemetry::Format,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine, with a private Postgres primary and replica: for development and for trying.
    Dev(dev::Arguments),
    /// Tell one story through the API, from a check-in to a payout, with a system of its own.
    Demo(demo::Arguments),
    /// Run roles of the backend on databases that exist: command API, query API, projections, relay.
    Serve(serve::Arguments),
    /// Keep the read models up with the log, or with Kafka.
    Project(background::Arguments),
    /// Send the log to Kafka.
    Relay(background::Arguments),
    /// Seal the log: keep the trees over its events, and sign them.
    Seal(seal::Arguments),
    /// Make a key that seals, and print its public half.
    SealKey(seal::NewKey),
    /// Bring the databases up to date, and make what is missing in them.
    Migrate(migrate::Arguments),
    /// Make videos and speech, as a worker of the API.
    Worker(worker::Arguments),
    /// Look after the object storage.
    #[command(subcommand)]
    Storage(storage::Command),
    /// Mint a token for a caller of the API.
    Token(token::Arguments),
    /// Send a trace of actions through the API, keeping each user's order.
    Play(play::Arguments),
    /// Export events into files: NDJSON, CSV, or Parquet by day and type.
    Replay(replay::Arguments),
    /// Build a read model anew beside the live one, switch to it, go back, drop what is kept.
    Rebuild(rebuild::Arguments),
    /// Compare a provider's file with the ledger.
    #[command(subcommand)]
    Reconcile(reconcile::Command),
    /// Forget a person, for ever.
    Erase(erase::Arguments),
    /// Look after the keys of persons.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Check the books.
    #[command(subcommand)]
    Audit(audit::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::log(&cli.log, cli.log_format);
    // One thread that reads waits for the socket itself. With more of them another one waits and wakes it, for each message.
    let reads_alone = matches!(cli.command, Command::Replay(_));
    let mut runtime = if reads_alone { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    let result = runtime.enable_all().build().context("no threads to run with");
    match result.and_then(|runtime| runtime.block_on(run(cli.command))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Dev(arguments) => dev::run(arguments).await,
        Command::Demo(arguments) => demo::run(arguments).await,
        Command::Serve(arguments) => serve::run(arguments).await,
        Command::Project(arguments) => background::run(arguments, serve::Role::Project).await,
        Command::Relay(arguments) => background::run(arguments, serve::Role::Relay).await,
        Command::Seal(arguments) => seal::run(arguments).await,
        Command::SealKey(arguments) => seal::new_key(&arguments),
        Command::Migrate(arguments) => migrate::run(arguments).await,
        Command::Worker(arguments) => worker::run(arguments).await,
        Command::Storage(command) => storage::run(command).await,
        Command::Token(arguments) => token::run(&arguments),
        Command::Play(arguments) => play::run(arguments).await,
        Command::Replay(arguments) => replay::run(arguments).await,
        Command::Rebuild(arguments) => rebuild::run(arguments).await,
        Command::Reconcile(command) => reconcile::run(command).await,
        Command::Erase(arguments) => erase::run(arguments).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Audit(command) => audit::run(command).await,
    }
}
