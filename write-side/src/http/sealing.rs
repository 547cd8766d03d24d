//! What the routes work with that take people's words: where commands go, and what seals the words before.

use axum::extract::FromRef;
use skyriff_domain::{Note, UserId, Words};
use skyriff_edge::{Kind, Problem, problem::ProblemBody};
use skyriff_vault::{Error, Purpose, Vault};
use uuid::Uuid;

use crate::Commands;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sealing {
    pub(super) commands: Commands,
    pub(super) vault: Vault,
}

impl FromRef<Sealing> for Commands {
    fn from_ref(sealing: &Sealing) -> Self {
        sealing.commands.clone()
    }
}

/// Words, as an event has them. Only for whoever may do what they are for: the first that are sealed make a key.
pub(super) async fn sealed(
    vault: &Vault,
    person: UserId,
    purpose: Purpose,
    thing: Uuid,
    words: &Note,
) -> Result<Words, Problem> {
    vault.seal_words(person, purpose, thing, words).await.map_err(|error| unsealed(&error))
}

/// Words about a person in the books, which go on without the person: of one who is forgotten, that nothing was kept.
pub(super) async fn sealed_for_the_books(
    vault: &Vault,
    person: UserId,
    purpose: Purpose,
    thing: Uuid,
    words: &Note,
) -> Result<Words, Problem> {
    match vault.seal_words(person, purpose, thing, words).await {
        Err(Error::Erased) => Ok(Words::not_kept()),
        sealed => sealed.map_err(|error| unsealed(&error)),
    }
}

/// Nothing was recorded.
pub(super) fn unsealed(error: &Error) -> Problem {
    match error {
        Error::Erased => Problem::new(&Kind::ERASED),
        Error::Unavailable(source) => {
            tracing::warn!(error = %source, "what belongs to a person cannot be sealed");
            Problem::new(&Kind::UNAVAILABLE).retry_after_s(2)
        }
        // While the master key is being changed, the one process that was not given the new one. Others can.
        Error::UnknownMasterKey(_) => {
            tracing::error!(%error, "what belongs to a person cannot be sealed: give this process the new master key too");
            Problem::new(&Kind::UNAVAILABLE).retry_after_s(2)
        }
        Error::NoKey | Error::Damaged => Problem::fault(error),
    }
}

/// For the API's description.
#[derive(utoipa::IntoResponses)]
#[response(
    status = 410,
    description = "What belonged to this person was erased",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "only described, never made")]
pub(super) struct Erased(#[to_schema] ProblemBody<'static>);
