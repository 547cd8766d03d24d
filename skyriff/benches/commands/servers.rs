//! What is measured: our command API, the stock path behind the same HTTP, the same HTTP with a constant answer, and
//! plain inserts by pgbench.

use std::{process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    routing::post,
};
use chrono::{TimeDelta, Utc};
use cqrs_es::{AggregateError, CqrsFramework, persist::PersistedEventStore};
use postgres_es::PostgresEventRepository;
use serde::Deserialize;
use skyriff_domain::{
    Bucket, Label, Points, PointsPolicy, UserId,
    points_account::{Action, Command as PointsCommand, PointsAccount},
};
use skyriff_edge::{
    Caller, Json, Kind, Path, Problem, Role, Tokens,
    request::{self, Limits},
};
use skyriff_postgres::{Server, binaries::Binaries, databases};
use sqlx::{Connection, Executor, postgres::PgPoolOptions};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use uuid::Uuid;

use crate::{
    ACCOUNTS, EVENTS, STOCK,
    constant::{constant, constant_bulk},
    report::Figure,
    store,
};

pub const SECRET: &str = "a secret that is only for benchmarks";
/// 32 bytes that are only for benchmarks.
pub const MASTER_KEY: &str = "YmVuY2htYXJrcyBiZW5jaG1hcmtzIGJlbmNobWFya3M=";
/// The stock path decides again as often as it takes; this is only so that it ends.
const STOCK_ATTEMPTS_MAX: u32 = 10_000;

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Skyriff,
    Stock,
    Constant,
}

impl Target {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "serve-stock" => Some(Self::Stock),
            "serve-constant" => Some(Self::Constant),
            _ => None,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Skyriff => "skyriff",
            Self::Stock => "stock cqrs-es + postgres-es",
            Self::Constant => "the same HTTP, a constant answer",
        }
    }

    /// How many accounts and connections.
    pub fn loads(self) -> Vec<(u32, u32)> {
        let accounts: &[u32] = if self == Self::Constant { &[ACCOUNTS] } else { &[ACCOUNTS, 1] };
        accounts.iter().flat_map(|accounts| [1, 64, 256, 1_024].map(|n| (*accounts, n))).collect()
    }
}

/// A running server.
pub struct Served {
    pub url: String,
    pub token: String,
    /// Of somebody who reads the books.
    pub auditor: String,
    child: Child,
}

impl Served {
    /// Start one; what is ours gets a store and further arguments.
    pub async fn start(target: Target, server: &Server, events: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_with(target, server, events, arguments, &[]).await
    }

    /// The same, with further variables.
    pub async fn start_with(
        target: Target,
        server: &Server,
        events: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = match target {
            Target::Skyriff => {
                let mut skyriff = Command::new(env!("CARGO_BIN_EXE_skyriff"));
                skyriff
                    .args(["serve", "--roles", "command", "--listen", "127.0.0.1:0", "--log", "warn"])
                    .args(arguments);
                skyriff
            }
            Target::Stock | Target::Constant => {
                let mut this = Command::new(std::env::current_exe()?);
                this.arg(if target == Target::Stock { "serve-stock" } else { "serve-constant" });
                this
            }
        };
        command
            .env("SKYRIFF_EVENT_STORE", format!("0-15={}", server.url(events)))
            // Not used by commands.
            .env("SKYRIFF_READ_MODELS", format!("0-15={}", server.url(events)))
            .env("BENCH_STOCK_SOCKET", &server.socket_folder)
            .env("SKYRIFF_TOKEN_SECRET", SECRET)
            .env("SKYRIFF_MASTER_KEY", MASTER_KEY)
            .envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let stdout = child.stdout.take().context("its output is piped")?;
        let line = BufReader::new(stdout).lines().next_line().await?.context("the server said nothing")?;
        let url = line.split_whitespace().last().context("the server said where it listens")?.to_owned();
        let tokens = Tokens::new(SECRET.as_bytes())?;
        let mint = |role| tokens.mint(&Caller { role, id: Uuid::nil() }, Utc::now(), TimeDelta::hours(2));
        let (token, auditor) = (mint(Role::Service)?, mint(Role::Auditor)?);
        Ok(Self { url, token, auditor, child })
    }

    pub async fn stop(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

/// The databases: ours, and one with the stock table.
pub async fn prepare(server: &Server) -> Result<()> {
    store::fresh(server, EVENTS).await?;
    databases::create(server, &[STOCK]).await?;
    let mut stock = server.superuser(STOCK).await?;
    // As postgres-es' own db/init.sql has it.
    stock
        .execute(
            "CREATE TABLE events (
                aggregate_type text NOT NULL, aggregate_id text NOT NULL,
                sequence bigint CHECK (sequence >= 0) NOT NULL,
                event_type text NOT NULL, event_version text NOT NULL, payload json NOT NULL, metadata json NOT NULL,
                PRIMARY KEY (aggregate_type, aggregate_id, sequence));
             CREATE TABLE inserts (LIKE events);
             ALTER TABLE inserts ADD shard smallint, ADD position bigserial, ADD occurred_at timestamptz,
                                 ADD recorded_at timestamptz;
             ALTER TABLE inserts ADD PRIMARY KEY (shard, position);
             ALTER TABLE inserts ADD UNIQUE (aggregate_type, aggregate_id, sequence)",
        )
        .await?;
    stock.close().await?;
    Ok(())
}

/// Be one of the servers, until killed.
pub async fn serve(target: Target) -> Result<()> {
    let routes = match target {
        Target::Stock => {
            let server = Server { socket_folder: std::env::var_os("BENCH_STOCK_SOCKET").context("a socket")?.into() };
            let pool = PgPoolOptions::new().max_connections(32).acquire_timeout(Duration::from_secs(60));
            let pool = pool.connect_with(server.options("postgres", STOCK)).await?;
            let store = PersistedEventStore::new_event_store(PostgresEventRepository::new(pool));
            let framework = Arc::new(CqrsFramework::new(store, Vec::new(), PointsPolicy::default()));
            Router::new().route("/v1/users/{user}/earnings", post(stock)).with_state(framework)
        }
        Target::Constant => Router::new()
            .route("/v1/users/{user}/earnings", post(constant))
            .route("/v1/commands:batch", post(constant_bulk).layer(DefaultBodyLimit::max(2 * 1_024 * 1_024))),
        Target::Skyriff => bail!("the binary serves itself"),
    };
    let secret = std::env::var("SKYRIFF_TOKEN_SECRET")?;
    let routes = request::around(
        routes,
        Tokens::new(secret.as_bytes())?,
        Limits { timeout: Duration::from_secs(60), ..Limits::default() },
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, routes).await?)
}

#[derive(Deserialize)]
pub struct Earn {
    bucket: Bucket,
    points: Points,
    reason: Label,
}

type Stock = CqrsFramework<PointsAccount, PersistedEventStore<PostgresEventRepository, PointsAccount>>;

/// The same command on the same aggregate, decided again whenever somebody else was faster.
async fn stock(
    State(framework): State<Arc<Stock>>,
    Path(user): Path<UserId>,
    _caller: Caller,
    Json(Earn { bucket, points, reason }): Json<Earn>,
) -> Result<(StatusCode, String), Problem> {
    for _ in 0..STOCK_ATTEMPTS_MAX {
        let action = Action::Earn { bucket, points, reason: reason.clone() };
        let command = PointsCommand { at: Utc::now(), action };
        match framework.execute(&user.to_string(), command).await {
            Ok(()) => return Ok((StatusCode::CREATED, "{}".to_owned())),
            Err(AggregateError::AggregateConflict) => {}
            Err(error) => return Err(Problem::fault(&error)),
        }
    }
    Err(Problem::new(&Kind::CONFLICT))
}

/// One event in one transaction, with the same columns and indexes.
pub async fn pgbench(server: &Server, clients: u32, time: Duration) -> Result<Figure> {
    let script = std::env::temp_dir().join(format!("skyriff-bench-{}.sql", std::process::id()));
    std::fs::write(
        &script,
        format!(
            "\\set account random(1, {ACCOUNTS})\n\\set sequence random(1, 1000000000000)\n\
             INSERT INTO inserts (shard, aggregate_type, aggregate_id, sequence, event_type, event_version, payload, \
             metadata, occurred_at, recorded_at) VALUES (:account % 16, 'points_account', \
             '00000000-0000-4000-8000-' || lpad(:account::text, 12, '0'), :sequence, 'earned', '1', \
             '{{\"earned\":{{\"credited\":{{\"income\":1}},\"reason\":\"bench\"}}}}', \
             '{{\"command_id\":\"e873007a-4dd4-5411-a32e-2745ce451a1a\",\"actor\":\"service:00000000-0000-0000-0000-000000000000\",\"request_id\":\"01a1fdb2-664f-7163-837c-1d16c6b8eda6\"}}', \
             now(), now());\n"
        ),
    )?;
    let output = Command::new(Binaries::find(std::path::Path::new("."))?.program("pgbench"))
        .args(["--no-vacuum", "--protocol", "prepared", "--jobs", "2", "--client", &clients.to_string()])
        .args(["--time", &time.as_secs().max(1).to_string(), "--file"])
        .arg(&script)
        .arg("--host")
        .arg(&server.socket_folder)
        .args(["--username", "postgres", STOCK])
        .output()
        .await
        .context("cannot run pgbench")?;
    std::fs::remove_file(&script)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |label: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(label));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        number.with_context(|| format!("pgbench printed no {label}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    };
    Ok(Figure {
        title: "pgbench, one insert a transaction".to_owned(),
        accounts: ACCOUNTS,
        connections: clients,
        per_second: number("tps =")?,
        p50: Some(Duration::from_secs_f64(number("latency average =")? / 1e3)),
        ..Figure::default()
    })
}
