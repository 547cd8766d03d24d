//! What queries need that show words of persons: who answers, and who opens what is sealed.

use axum::extract::FromRef;
use skyriff_vault::Vault;

use crate::Replicas;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) replicas: Replicas,
    pub(crate) vault: Vault,
}

impl FromRef<Opening> for Replicas {
    fn from_ref(opening: &Opening) -> Self {
        opening.replicas.clone()
    }
}
