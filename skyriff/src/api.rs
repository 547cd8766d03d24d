//! The HTTP surface of one process: the routes of its roles, their description, health and metrics.

use axum::{Json, Router, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use skyriff_domain::UserId;
use skyriff_edge::{
    Tokens,
    request::{self, Limits},
};
use skyriff_read_side::{EventLogs, Replicas};
use skyriff_write_side::Commands;
use sqlx::PgPool;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "SkyRiff",
        description = "Commands append events; queries read what became of them.\n\n\
            Every command needs an `Idempotency-Key`: sent again with the same key and body it is answered as the \
            first time, be it yes or no, and never applied twice. An accepted command answers with `Skyriff-Position`; send it as \
            `Skyriff-At-Least` with a query to read your own write. Everything that goes wrong is \
            `application/problem+json` (RFC 9457) with a stable `type`."
    ),
    tags(
        (name = "points", description = "What users have, and what moves it"),
        (name = "events", description = "What happened, for analysts")
    ),
    // Every path names it, no body of a command does: a process of only that role would leave it out.
    components(schemas(UserId)),
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
    pub events: Option<EventLogs>,
    pub tokens: Tokens,
    pub limits: Limits,
    pub metrics: PrometheusHandle,
    /// Asked by the readiness check.
    pub event_store: Vec<PgPool>,
}

/// Everything this process answers.
pub fn router(served: Served) -> Router {
    let mut routes = OpenApiRouter::with_openapi(Description::openapi());
    if let Some(commands) = served.commands {
        routes = routes.merge(skyriff_write_side::http::routes(commands));
    }
    if let Some(queries) = served.queries {
        routes = routes.merge(skyriff_read_side::routes(queries));
    }
    if let Some(events) = served.events {
        routes = routes.merge(skyriff_read_side::event_routes(events));
    }
    let (routes, openapi) = routes.split_for_parts();
    let (metrics, event_store) = (served.metrics, served.event_store);
    let routes = routes
        .merge(SwaggerUi::new("/v1/docs").url("/v1/openapi.json", openapi))
        .route("/health/live", get(async || Json("alive")))
        .route("/health/ready", get(async move || ready(&event_store).await))
        .route("/metrics", get(async move || metrics.render()));
    request::around(routes, served.tokens, served.limits)
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
