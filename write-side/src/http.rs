//! Commands over HTTP.

mod bulk;
mod points;
mod submit;
mod videos;
mod withdrawals;
mod workers;

use std::sync::Arc;

use skyriff_vault::Vault;
use utoipa_axum::router::OpenApiRouter;

use crate::{Commands, outputs::Outputs, video_queue::VideoQueue};

/// Every command's route.
pub fn routes(commands: Commands) -> OpenApiRouter {
    points::routes().merge(bulk::routes()).with_state(commands)
}

/// What the routes of video jobs work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VideoApi {
    /// Where commands are handed in.
    pub commands: Commands,
    /// Whose turn it is.
    pub queue: VideoQueue,
    /// Seals prompts.
    pub vault: Vault,
    /// Whether what was made is there.
    pub outputs: Arc<dyn Outputs>,
}

/// Every route of video jobs, for the people who order them and for workers.
pub fn video_routes(api: VideoApi) -> OpenApiRouter {
    videos::routes().merge(workers::routes()).with_state(api)
}

/// The routes of withdrawals, whose destinations are sealed.
pub fn withdrawal_routes(commands: Commands, vault: Vault) -> OpenApiRouter {
    withdrawals::routes().with_state(withdrawals::Withdrawals { commands, vault })
}
