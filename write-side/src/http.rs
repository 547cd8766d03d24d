//! Commands over HTTP.

mod bulk;
mod likes;
mod points;
mod submit;
mod tips;
mod works;

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
