//! Queries out: read models served from replicas, as fresh as the client asks for.
//!
//! A query is a file per screen, its response and its SQL together ([`balance`], [`ledger_entries`], [`withdrawals`]); [`replicas`]
//! decides which database answers.

pub mod balance;
pub mod ledger_entries;
pub mod withdrawals;

pub mod replicas;

use skyriff_vault::Vault;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use replicas::{ReadDatabase, Replicas};

/// Every query's route.
pub fn routes(replicas: Replicas) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(balance::balance))
        .routes(routes!(ledger_entries::ledger_entries))
        .with_state(replicas)
}

/// The routes of withdrawals, whose destinations are shown masked.
pub fn withdrawal_routes(replicas: Replicas, vault: Vault) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(withdrawals::own::withdrawals))
        .routes(routes!(withdrawals::own::withdrawal))
        .routes(routes!(withdrawals::queue::queue))
        .with_state(withdrawals::Withdrawals { replicas, vault })
}
