//! Queries out: read models served from replicas, as fresh as the client asks for.
//!
//! A query is a file per screen, its response and its SQL together ([`balance`], [`ledger_entries`]); [`replicas`]
//! decides which database answers. [`events`] streams the log itself, from the event store's replicas.

pub mod balance;
pub mod events;
pub mod ledger_entries;

pub mod replicas;

use utoipa_axum::{router::OpenApiRouter, routes};

pub use events::EventLogs;
pub use replicas::{ReadDatabase, Replicas};

/// Every query's route.
pub fn routes(replicas: Replicas) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(balance::balance))
        .routes(routes!(ledger_entries::ledger_entries))
        .with_state(replicas)
}

/// The streams of events.
pub fn event_routes(logs: EventLogs) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(events::events)).with_state(logs)
}
