//! The queries behind their HTTP edge, and databases to put behind them.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, header},
};
use chrono::{TimeDelta, Utc};
use serde_json::Value;
use skyriff_domain::{ShardCount, UserId};
use skyriff_edge::{
    Caller, Role, Tokens,
    request::{self, Limits},
};
use skyriff_postgres::{databases::QUERY, testing::TestDatabases};
use skyriff_read_side::{ReadDatabase, Replicas, routes};
use skyriff_vault::{MasterKeys, Vault};
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use tempfile::TempDir;
use tokio::{net::UnixListener, time::sleep};
use tower::ServiceExt;
use uuid::Uuid;

/// Long for a test that waits for something that has to come.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) struct Api {
    router: Router,
    tokens: Tokens,
}

pub(crate) struct Answer {
    status: u16,
    headers: HeaderMap,
    pub(crate) body: Value,
    /// The same as it came, also when it is no JSON.
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Its status, and the end of the `type` of a problem.
    pub(crate) fn kind(&self) -> (u16, &str) {
        let problem = self.body["type"].as_str().and_then(|kind| kind.strip_prefix("/problems/"));
        assert_eq!(problem.is_some(), self.header("content-type") == Some("application/problem+json"));
        (self.status, problem.unwrap_or_default())
    }
}

impl Api {
    pub(crate) fn new(primary: PgPool, replicas: Vec<PgPool>, patience: Duration) -> Self {
        let shards = ShardCount::default().shards().collect();
        Self::over(vec![ReadDatabase { shards, primary, replicas }], patience)
    }

    /// On several read databases.
    pub(crate) fn over(databases: Vec<ReadDatabase>, patience: Duration) -> Self {
        // What the tests have in the tables is in the clear, and needs no keys.
        let keys = MasterKeys::from_base64(&MasterKeys::generate()).unwrap();
        let vault = Vault::new(keys, ShardCount::default(), Vec::new());
        let (routes, _) = routes(Replicas::new(ShardCount::default(), databases, patience), vault).split_for_parts();
        Self::of(routes)
    }

    /// These routes.
    pub(crate) fn of(routes: Router) -> Self {
        let tokens = Tokens::new(&[7; 32]).unwrap();
        Self { router: request::around(routes, tokens.clone(), Limits { timeout: LONG, ..Limits::default() }), tokens }
    }

    /// On the primary alone.
    pub(crate) fn on_primary(databases: &TestDatabases) -> Self {
        Self::new(primary(databases), Vec::new(), LONG)
    }

    pub(crate) fn request(&self, role: Role, id: Uuid, path: &str) -> axum::http::request::Builder {
        let token = self.tokens.mint(&Caller { role, id }, Utc::now(), TimeDelta::minutes(5)).unwrap();
        Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"))
    }

    pub(crate) async fn send(&self, request: axum::http::request::Builder) -> Answer {
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer { status: parts.status.as_u16(), headers: parts.headers, body, text }
    }

    /// Whether an answer that began well breaks off.
    pub(crate) async fn is_cut_off(&self, request: axum::http::request::Builder) -> bool {
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        to_bytes(response.into_body(), usize::MAX).await.is_err()
    }

    /// As the user itself.
    pub(crate) async fn own(&self, user: UserId, rest: &str) -> Answer {
        self.send(self.request(Role::User, user.0, &format!("/v1/users/{user}/{rest}"))).await
    }

    pub(crate) async fn balance_at_least(&self, user: UserId, at_least: &str) -> Answer {
        let path = format!("/v1/users/{user}/balance");
        self.send(self.request(Role::User, user.0, &path).header("skyriff-at-least", at_least)).await
    }
}

fn pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(10)).connect_lazy_with(options)
}

pub(crate) fn primary(databases: &TestDatabases) -> PgPool {
    pool(databases.read_models(QUERY))
}

/// The real replica, once it has heard of the database at all.
pub(crate) async fn replica(databases: &TestDatabases) -> PgPool {
    let end = tokio::time::Instant::now() + LONG;
    while databases.replica(QUERY).connect().await.is_err() {
        assert!(tokio::time::Instant::now() < end, "the replica follows");
        sleep(Duration::from_millis(10)).await;
    }
    pool(databases.replica(QUERY))
}

/// A database whose machine is gone.
pub(crate) struct Dead(TempDir);

impl Dead {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Nobody listens any more: the socket's file stays and refuses.
        drop(UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap());
        Self(folder)
    }

    pub(crate) fn pool(&self) -> PgPool {
        let options = PgConnectOptions::new_without_pgpass().socket(self.0.path()).port(5432).username(QUERY);
        PgPoolOptions::new().acquire_timeout(Duration::from_millis(50)).connect_lazy_with(options)
    }
}
