//! Queries out: read models served from replicas, as fresh as the client asks for.
//!
//! A query is a file per screen, its response and its SQL together; [`replicas`] decides which database answers, [`page`]
//! cuts lists, and [`cached`] keeps what is too much work for each request. [`events`] streams the log itself, from the
//! event store's replicas; for auditors [`ledger`] has the books, and [`proofs`] shows that nobody edits the log.

pub mod balance;
pub mod events;
pub mod hot_works;
pub mod ledger;
pub mod ledger_entries;
pub mod liked_works;
pub mod likes;
pub mod proofs;
pub mod reconciliations;
pub mod story;
pub mod tips;
pub mod video_costs;
pub mod video_jobs;
pub mod withdrawals;
pub mod work;
pub mod work_likes;
pub mod works;

pub mod cached;
mod opening;
pub mod page;
pub mod replicas;

use std::collections::BTreeMap;

use skyriff_domain::Label;
use skyriff_vault::Vault;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use events::EventLogs;
use hot_works::HotWorks;
use opening::Opening;
pub use proofs::Proofs;
pub use replicas::{ReadDatabase, Replicas};
pub use story::Stories;

/// Every query's route, but for those of withdrawals and videos.
pub fn routes(replicas: Replicas, vault: Vault) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(balance::balance))
        .routes(routes!(ledger_entries::ledger_entries))
        .routes(routes!(likes::likes))
        .routes(routes!(liked_works::liked_works))
        .routes(routes!(tips::tip))
        .routes(routes!(tips::tips))
        .routes(routes!(work_likes::work_likes))
        .routes(routes!(work::work))
        .routes(routes!(works::newest))
        .routes(routes!(works::of_user))
        .routes(routes!(reconciliations::reconciliations))
        .routes(routes!(reconciliations::exceptions))
        .with_state(Opening { replicas: replicas.clone(), vault })
        .merge(OpenApiRouter::new().routes(routes!(hot_works::hot_works)).with_state(HotWorks::new(replicas)))
}

/// The books, for auditors; the log says whether they have everything.
pub fn ledger_routes(replicas: Replicas, log: Stories) -> OpenApiRouter {
    let ledger = ledger::Ledger { replicas, log };
    let statements = OpenApiRouter::new()
        .routes(routes!(ledger::statement::statement))
        .with_state(ledger::statement::Statements::new(ledger.clone()));
    OpenApiRouter::new()
        .routes(routes!(ledger::accounts::accounts))
        .routes(routes!(ledger::balance::balance))
        .routes(routes!(ledger::entries::entries))
        .routes(routes!(ledger::holds::holds))
        .routes(routes!(ledger::trial_balance::trial_balance))
        .with_state(ledger)
        .merge(statements)
}

/// The routes of withdrawals, whose destinations are shown masked.
pub fn withdrawal_routes(replicas: Replicas, vault: Vault) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(withdrawals::own::withdrawals))
        .routes(routes!(withdrawals::own::withdrawal))
        .routes(routes!(withdrawals::queue::queue))
        .with_state(withdrawals::Withdrawals { replicas, vault })
}

/// The routes of video jobs, whose prompts are shown to their owners; and what they cost and brought in, where a point is
/// worth so many millionths of each currency's unit.
pub fn video_routes(replicas: Replicas, vault: Vault, point_worth: BTreeMap<Label, u64>) -> OpenApiRouter {
    let jobs = OpenApiRouter::new()
        .routes(routes!(video_jobs::video_jobs))
        .routes(routes!(video_jobs::video_job))
        .with_state(video_jobs::VideoJobs { replicas: replicas.clone(), vault });
    let costs = OpenApiRouter::new()
        .routes(routes!(video_costs::video_costs))
        .with_state(video_costs::VideoCosts { replicas, point_worth });
    jobs.merge(costs)
}

/// What is sealed of the log, and proofs.
pub fn proof_routes(proofs: Proofs) -> OpenApiRouter {
    proofs::routes(proofs)
}

/// The streams of events.
pub fn event_routes(logs: EventLogs) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(events::events)).with_state(logs)
}

/// The stories of entries of the books.
pub fn story_routes(stories: Stories) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(story::story)).with_state(stories)
}
