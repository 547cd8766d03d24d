//! Commands over HTTP.

mod bulk;
mod likes;
pub mod payout_callbacks;
mod points;
mod submit;
mod tips;
mod withdrawals;
mod works;

pub use payout_callbacks::PayoutCallbacks;
use skyriff_vault::Vault;
use utoipa_axum::router::OpenApiRouter;

use crate::Commands;

/// Every command's route.
pub fn routes(commands: Commands) -> OpenApiRouter {
    points::routes()
        .merge(likes::routes())
        .merge(tips::routes())
        .merge(works::routes())
        .merge(bulk::routes())
        .with_state(commands)
}

/// What payout providers say by themselves.
pub fn payout_callback_routes(callbacks: PayoutCallbacks) -> OpenApiRouter {
    payout_callbacks::routes(callbacks)
}

/// The routes of withdrawals, whose destinations are sealed.
pub fn withdrawal_routes(commands: Commands, vault: Vault) -> OpenApiRouter {
    withdrawals::routes().with_state(withdrawals::Withdrawals { commands, vault })
}
