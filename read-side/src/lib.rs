//! Queries out: read models served from replicas, as fresh as the client asks for.
//!
//! A query is a file per screen, its response and its SQL together ([`balance`], [`ledger_entries`], [`tips`]); [`replicas`]
//! decides which database answers.

pub mod balance;
pub mod ledger_entries;
pub mod tips;

pub mod replicas;

use utoipa_axum::{router::OpenApiRouter, routes};

pub use replicas::{ReadDatabase, Replicas};

/// Every query's route.
pub fn routes(replicas: Replicas) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(balance::balance))
        .routes(routes!(ledger_entries::ledger_entries))
        .routes(routes!(tips::tip))
        .routes(routes!(tips::tips))
        .with_state(replicas)
}
