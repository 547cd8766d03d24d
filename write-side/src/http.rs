//! Commands over HTTP.

mod bulk;
pub mod payout_callbacks;
mod points;
mod submit;

pub use payout_callbacks::PayoutCallbacks;
use utoipa_axum::router::OpenApiRouter;

use crate::Commands;

/// Every command's route.
pub fn routes(commands: Commands) -> OpenApiRouter {
    points::routes().merge(bulk::routes()).with_state(commands)
}

/// What payout providers say by themselves.
pub fn payout_callbacks(callbacks: PayoutCallbacks) -> OpenApiRouter {
    payout_callbacks::routes(callbacks)
}
