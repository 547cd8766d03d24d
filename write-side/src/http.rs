//! Commands over HTTP.

mod points;
mod submit;

use utoipa_axum::router::OpenApiRouter;

use crate::Commands;

/// Every command's route.
pub fn routes(commands: Commands) -> OpenApiRouter {
    points::routes().with_state(commands)
}
