//! `with-postgres COMMAND …`: run a command beside a private Postgres primary and replica that exist only for it.
//!
//! The command finds them through `SKYRIFF_TEST_POSTGRES`, the folder that [`skyriff_postgres::testing`] reads.

use std::{
    env, fs,
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result};
use skyriff_postgres::{Cluster, Durability, Servers, testing};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).init();
    let mut arguments = env::args_os().skip(1);
    let program = arguments.next().context("usage: with-postgres COMMAND [ARGUMENT …]")?;

    // Short, and open to the user that Postgres runs as.
    let folder = env::temp_dir().join(format!("skyriff-test-{}", std::process::id()));
    let mut cluster =
        Cluster::start(&folder, Servers::PrimaryAndReplica, Durability::UntilPowerLoss, |line| eprintln!("{line}"))
            .await?;
    testing::prepare(&cluster).await?;

    let mut child = tokio::process::Command::new(&program)
        .args(arguments)
        .env(testing::FOLDER, &folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let code = tokio::select! {
        exit = child.wait() => exit?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        error = cluster.failed() => return Err(error),
        _ = tokio::signal::ctrl_c() => 130,
    };
    cluster.stop().await?;
    fs::remove_dir_all(&folder)?;
    Ok(ExitCode::from(code))
}
