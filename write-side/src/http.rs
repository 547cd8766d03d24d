//! Commands over HTTP.

mod bulk;
mod likes;
mod points;
mod submit;

use utoipa_axum::router::OpenApiRouter;

use crate::Commands;

/// Every command's route.
pub fn routes(commands: Commands) -> OpenApiRouter {
    points::routes().merge(likes::routes()).merge(bulk::routes()).with_state(commands)
}
