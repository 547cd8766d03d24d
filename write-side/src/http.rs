//! Commands over HTTP.

mod bulk;
mod points;
mod submit;
mod tips;

use utoipa_axum::router::OpenApiRouter;

use crate::Commands;

/// Every command's route.
pub fn routes(commands: Commands) -> OpenApiRouter {
    points::routes().merge(tips::routes()).merge(bulk::routes()).with_state(commands)
}
