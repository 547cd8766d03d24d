//! `skyriff relay` and `skyriff project`: roles that answer nobody. They listen for health checks and metrics only, so
//! they need no secret.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use skyriff_edge::Tokens;

use crate::{
    config::DatabaseArguments,
    serve::{self, Role, Running, Streams, Tuning},
    token,
};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    databases: DatabaseArguments,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    streams: Streams,
}

pub async fn run(arguments: Arguments, role: Role) -> Result<ExitCode> {
    let databases = arguments.databases.databases()?;
    let stop = serve::on_signal()?;
    // Nobody has a token of a secret that nobody knows.
    let tokens = Tokens::new(token::new_secret().as_bytes())?;
    let running =
        Running::start(&databases, &tokens, None, None, None, &arguments.tuning, &arguments.streams, &[role]).await?;
    println!("SkyRiff listens on http://{}", running.address);
    running.until(stop).await?;
    Ok(ExitCode::SUCCESS)
}
