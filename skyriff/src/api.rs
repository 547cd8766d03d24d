//! The HTTP surface of one process: the routes of its roles, their description, health and metrics.

use std::collections::BTreeMap;

use axum::{Extension, Json, Router, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use skyriff_domain::{ExceptionId, JobId, Label, UserId, WithdrawalId};
use skyriff_edge::{
    Tokens,
    request::{self, BehindProxy, Limits},
};
use skyriff_read_side::{EventLogs, Proofs, Replicas, Stories};
use skyriff_storage::Links;
use skyriff_vault::Vault;
use skyriff_write_side::{
    Commands,
    http::{PayoutCallbacks, VideoApi},
};
use sqlx::PgPool;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    openapi::{ContentBuilder, PathItem, Ref, RefOr, Response, ResponseBuilder},
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::outputs;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "SkyRiff",
        description = "Commands append events; queries read what became of them.\n\n\
            Every command needs an `Idempotency-Key`, unless it says otherwise: sent again with the same key and body it is answered as the \
            first time, be it yes or no, and never applied twice. An accepted command answers with `Skyriff-Position`; send it as \
            `Skyriff-At-Least` with a query to read your own write. Everything that goes wrong is \
            `application/problem+json` (RFC 9457) with a stable `type`."
    ),
    tags(
        (name = "points", description = "What users have, and what moves it"),
        (name = "likes", description = "Who likes what, and what is liked most"),
        (name = "tips", description = "Points from one user to another"),
        (name = "withdrawals", description = "Income that is paid out as money, after review"),
        (name = "videos", description = "Videos and speech that are ordered, made and paid for"),
        (name = "workers", description = "For whoever makes them"),
        (name = "works", description = "What users show"),
        (name = "events", description = "What happened, for analysts"),
        (name = "proofs", description = "That nobody edits the log, for auditors"),
        (name = "ledger", description = "The books, for auditors"),
        (name = "reconciliation", description = "What providers' files say beside the ledger"),
        (name = "erasure", description = "Persons who are forgotten")
    ),
    // Paths name them, bodies of commands do not: a process of only that role would leave them out.
    components(schemas(UserId, JobId, WithdrawalId, ExceptionId)),
    modifiers(&Bearer)
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = Http::builder().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
        openapi.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    }
}

/// What a process serves.
pub struct Served {
    pub commands: Option<Commands>,
    pub queries: Option<Replicas>,
    /// Seals what commands say of persons.
    pub sealing: Option<Vault>,
    /// Video jobs, for those who order them and for workers.
    pub videos: Option<VideoApi>,
    /// To what was made.
    pub links: Option<Links>,
    /// What a point is worth in each currency that providers are paid in, in millionths of its unit.
    pub point_worth: BTreeMap<Label, u64>,
    /// Opens it for queries, which show it masked.
    pub opening: Option<Vault>,
    /// What payout providers say by themselves.
    pub payout_callbacks: Option<PayoutCallbacks>,
    pub events: Option<EventLogs>,
    /// What is sealed of the log, for auditors.
    pub proofs: Option<Proofs>,
    pub stories: Option<Stories>,
    pub tokens: Tokens,
    pub limits: Limits,
    /// Whether every request comes through a proxy of ours.
    pub behind_proxy: bool,
    pub metrics: PrometheusHandle,
    /// Asked by the readiness check.
    pub event_store: Vec<PgPool>,
}

/// Everything this process answers.
pub fn router(served: Served) -> Router {
    let mut routes = OpenApiRouter::with_openapi(Description::openapi());
    if let (Some(commands), Some(vault)) = (served.commands, served.sealing) {
        routes = routes.merge(skyriff_write_side::http::routes(commands, vault));
    }
    if let Some(callbacks) = served.payout_callbacks {
        routes = routes.merge(skyriff_write_side::http::payout_callback_routes(callbacks));
    }
    if let (Some(videos), Some(links)) = (served.videos, served.links) {
        routes = routes.merge(outputs::routes(videos.queue.clone(), links));
        routes = routes.merge(skyriff_write_side::http::video_routes(videos));
    }
    if let (Some(queries), Some(stories)) = (&served.queries, &served.stories) {
        routes = routes.merge(skyriff_read_side::ledger_routes(queries.clone(), stories.clone()));
    }
    if let (Some(queries), Some(vault)) = (served.queries, served.opening) {
        let videos = skyriff_read_side::video_routes(queries.clone(), vault.clone(), served.point_worth);
        let withdrawals = skyriff_read_side::withdrawal_routes(queries.clone(), vault.clone());
        routes = routes.merge(videos).merge(withdrawals);
        routes = routes.merge(skyriff_read_side::routes(queries, vault));
    }
    if let Some(events) = served.events {
        routes = routes.merge(skyriff_read_side::event_routes(events));
    }
    if let Some(proofs) = served.proofs {
        routes = routes.merge(skyriff_read_side::proof_routes(proofs));
    }
    if let Some(stories) = served.stories {
        routes = routes.merge(skyriff_read_side::story_routes(stories));
    }
    let (routes, mut openapi) = routes.split_for_parts();
    openapi.paths.paths.iter_mut().for_each(|(path, item)| describe_edge(path, item));
    let (metrics, event_store) = (served.metrics, served.event_store);
    let routes = routes
        .merge(SwaggerUi::new("/v1/docs").url("/v1/openapi.json", openapi))
        .route("/health/live", get(async || Json("alive")))
        .route("/health/ready", get(async move || ready(&event_store).await))
        .route("/metrics", get(async move || metrics.render()));
    let routes = request::around(routes, served.tokens, served.limits);
    if served.behind_proxy { routes.layer(Extension(BehindProxy)) } else { routes }
}

/// Refused by the HTTP layer before anything here sees it, so it is no problem of ours.
const URI_TOO_LONG: &str = "The URI has more than 65,534 bytes; without a body";

/// What the edge and the extractors may answer to any request, where a route does not describe it itself.
fn describe_edge(path: &str, item: &mut PathItem) {
    let PathItem { get, put, post, delete, .. } = item;
    for operation in [get, put, post, delete].into_iter().flatten() {
        let always = ["400", "401", "403", "500", "503", "504"].as_slice();
        let of_body = if operation.request_body.is_some() { ["413", "415", "422"].as_slice() } else { &[] };
        let of_path = if path.contains('{') { ["404"].as_slice() } else { &[] };
        let responses = &mut operation.responses.responses;
        responses.insert("414".to_owned(), RefOr::T(Response::new(URI_TOO_LONG)));
        for status in always.iter().chain(of_body).chain(of_path) {
            responses.entry((*status).to_owned()).or_insert_with(|| RefOr::T(problem()));
        }
    }
}

fn problem() -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description("As its `type` explains").content("application/problem+json", content).build()
}

/// Whether the event store can be reached; load balancers ask.
async fn ready(event_store: &[PgPool]) -> (StatusCode, Json<&'static str>) {
    for pool in event_store {
        if sqlx::query("SELECT 1").execute(pool).await.is_err() {
            return (StatusCode::SERVICE_UNAVAILABLE, Json("the event store cannot be reached"));
        }
    }
    (StatusCode::OK, Json("ready"))
}
