//! Commands over HTTP.

mod bulk;
mod erasure;
mod likes;
pub mod payout_callbacks;
mod points;
mod reconciliations;
mod sealing;
mod submit;
mod tips;
mod videos;
mod withdrawals;
mod workers;
mod works;

use std::sync::Arc;

pub use payout_callbacks::PayoutCallbacks;
use sealing::Sealing;
use skyriff_vault::Vault;
use utoipa_axum::router::OpenApiRouter;

use crate::{Commands, outputs::Outputs, video_queue::VideoQueue};

/// Every command's route.
pub fn routes(commands: Commands, vault: Vault) -> OpenApiRouter {
    let sealing = Sealing { commands: commands.clone(), vault };
    let of_words = points::routes()
        .merge(works::routes())
        .merge(withdrawals::routes())
        .merge(erasure::routes())
        .merge(reconciliations::routes())
        .merge(bulk::routes())
        .with_state(sealing);
    likes::routes().merge(tips::routes()).with_state(commands).merge(of_words)
}

/// What payout providers say by themselves.
pub fn payout_callback_routes(callbacks: PayoutCallbacks) -> OpenApiRouter {
    payout_callbacks::routes(callbacks)
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
