//! Who is asking: a signed token (JWT, HS256) says which role, and whose.

use std::{str::FromStr, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use skyriff_domain::UserId;
use uuid::Uuid;

use crate::{
    problem::{Kind, Problem},
    rights::{Reach, Right},
};

/// What a caller is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A person with the app; acts for itself only.
    User,
    /// Another system of ours: payments, importers.
    Service,
    /// Runs the system and corrects by hand.
    Operator,
    /// Decides withdrawals.
    Reviewer,
    /// Reads the books.
    Auditor,
    /// Reads the events.
    Analyst,
    /// Makes videos.
    Worker,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::User, Self::Service, Self::Operator, Self::Reviewer, Self::Auditor, Self::Analyst, Self::Worker];

    /// As in tokens and in an event's `actor`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Service => "service",
            Self::Operator => "operator",
            Self::Reviewer => "reviewer",
            Self::Auditor => "auditor",
            Self::Analyst => "analyst",
            Self::Worker => "worker",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| format!("a role is one of {}", names()))
    }
}

/// Who is asking. As an extractor it refuses whoever cannot show a valid token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// In which role.
    pub role: Role,
    /// Who: a user's id, or the id that names the service, operator, worker …
    pub id: Uuid,
}

impl Caller {
    /// Whether the caller may do this to what is nobody's.
    ///
    /// # Errors
    /// [`Kind::FORBIDDEN`].
    pub fn may_at_all(&self, right: Right) -> Result<(), Problem> {
        match right.reach(self.role) {
            Reach::All => Ok(()),
            Reach::Own | Reach::None => Err(Problem::new(&Kind::FORBIDDEN)),
        }
    }

    /// As kept in the metadata of events, and as part of what makes a command's id.
    pub fn actor(&self) -> String {
        format!("{}:{}", self.role.as_str(), self.id)
    }

    /// Whether the caller may do this to what is `user`'s.
    ///
    /// # Errors
    /// [`Kind::FORBIDDEN`], the same whether the user exists or not.
    pub fn may(&self, right: Right, user: UserId) -> Result<(), Problem> {
        match right.reach(self.role) {
            Reach::All => Ok(()),
            Reach::Own if self.id == user.0 => Ok(()),
            Reach::Own | Reach::None => Err(Problem::new(&Kind::FORBIDDEN)),
        }
    }

    /// Whether the caller may do this to what is everybody's.
    ///
    /// # Errors
    /// [`Kind::FORBIDDEN`].
    pub fn may_everywhere(&self, right: Right) -> Result<(), Problem> {
        match right.reach(self.role) {
            Reach::All => Ok(()),
            Reach::Own | Reach::None => Err(Problem::new(&Kind::FORBIDDEN)),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: Uuid,
    role: Role,
    iat: i64,
    exp: i64,
}

/// Makes and checks tokens.
#[derive(Clone)]
pub struct Tokens(Arc<Keys>);

struct Keys {
    secret: Box<[u8]>,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

/// The shortest secret that is accepted, in bytes: as long as the hash (RFC 7518, 3.2).
pub const SECRET_MIN: usize = 32;

/// The secret is shorter than [`SECRET_MIN`].
#[derive(Debug, thiserror::Error)]
#[error("the token secret must have at least {SECRET_MIN} bytes")]
pub struct SecretTooShort;

impl Tokens {
    /// Tokens signed with `secret`.
    ///
    /// # Errors
    /// [`SecretTooShort`].
    pub fn new(secret: &[u8]) -> Result<Self, SecretTooShort> {
        if secret.len() < SECRET_MIN {
            return Err(SecretTooShort);
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.leeway = 5;
        let (encoding, decoding) = (EncodingKey::from_secret(secret), DecodingKey::from_secret(secret));
        Ok(Self(Arc::new(Keys { secret: secret.into(), encoding, decoding, validation })))
    }

    /// Another secret, for one purpose (HMAC-SHA256 of it): the same wherever the token secret is the same. A purpose has
    /// a space in it, which nothing that a token is signed over has.
    pub fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        // HMAC takes keys of every length.
        let mac = Hmac::<Sha256>::new_from_slice(&self.0.secret);
        mac.map(|mac| mac.chain_update(purpose).finalize().into_bytes().into()).unwrap_or_default()
    }

    /// A token for `caller` that is good for `lifetime`.
    ///
    /// # Errors
    /// As jsonwebtoken's; none for these claims.
    pub fn mint(
        &self,
        caller: &Caller,
        now: DateTime<Utc>,
        lifetime: TimeDelta,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let exp = now.checked_add_signed(lifetime).unwrap_or(DateTime::<Utc>::MAX_UTC).timestamp();
        let claims = Claims { sub: caller.id, role: caller.role, iat: now.timestamp(), exp };
        encode(&Header::new(Algorithm::HS256), &claims, &self.0.encoding)
    }

    fn check(&self, token: &str) -> Option<Caller> {
        let claims = decode::<Claims>(token, &self.0.decoding, &self.0.validation).ok()?.claims;
        Some(Caller { role: claims.role, id: claims.sub })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let tokens = parts.extensions.get::<Tokens>();
        let token = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.strip_prefix("Bearer ").or(value.strip_prefix("bearer ")));
        let caller = tokens.zip(token).and_then(|(tokens, token)| tokens.check(token.trim()));
        caller.ok_or(Problem::new(&Kind::UNAUTHENTICATED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(byte: u8) -> Tokens {
        Tokens::new(&[byte; SECRET_MIN]).unwrap()
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_only_for_the_key_that_signed_it() {
        let caller = Caller { role: Role::Auditor, id: Uuid::from_u128(7) };
        let token = tokens(1).mint(&caller, Utc::now(), TimeDelta::minutes(5)).unwrap();
        assert_eq!(tokens(1).check(&token), Some(caller.clone()));
        assert_eq!(tokens(2).check(&token), None);
        let over = tokens(1).mint(&caller, Utc::now() - TimeDelta::hours(1), TimeDelta::minutes(5)).unwrap();
        assert_eq!(tokens(1).check(&over), None);
        // {"alg":"none"}: a token that nobody signed.
        let claims = token.split('.').nth(1).unwrap();
        assert_eq!(tokens(1).check(&format!("eyJhbGciOiJub25lIn0.{claims}.")), None);
        assert!(Tokens::new(&[0; SECRET_MIN - 1]).is_err());
        // Each purpose and each secret has its own.
        let derived =
            [(1, "a purpose"), (1, "another one"), (2, "a purpose")].map(|(b, p)| tokens(b).derived_secret(p));
        assert!(derived[0] != derived[1] && derived[0] != derived[2] && derived.iter().all(|d| *d != [0; 32]));
    }

    #[test]
    fn a_user_acts_for_itself_and_the_others_as_their_role_says() {
        let own = UserId(Uuid::from_u128(1));
        let other = UserId(Uuid::from_u128(2));
        let may = |role, right, user| Caller { role, id: own.0 }.may(right, user).is_ok();
        let table = [
            (Role::User, Right::CheckIn, true, false),
            (Role::User, Right::Spend, true, false),
            (Role::User, Right::ReadAccount, true, false),
            (Role::User, Right::Credit, false, false),
            (Role::User, Right::Settle, false, false),
            (Role::User, Right::Adjust, false, false),
            (Role::User, Right::Backdate, false, false),
            (Role::Service, Right::Credit, true, true),
            (Role::Service, Right::Backdate, true, true),
            (Role::Service, Right::Adjust, false, false),
            (Role::Operator, Right::Adjust, true, true),
            (Role::Operator, Right::Credit, false, false),
            (Role::Auditor, Right::ReadAccount, true, true),
            (Role::Auditor, Right::Spend, false, false),
            (Role::Analyst, Right::ReadAccount, false, false),
            (Role::Analyst, Right::ReadEvents, true, true),
            (Role::Operator, Right::ReadEvents, false, false),
            (Role::Worker, Right::CheckIn, false, false),
        ];
        for (role, right, on_own, on_other) in table {
            assert_eq!(may(role, right, own), on_own, "{role:?} {right:?} own");
            assert_eq!(may(role, right, other), on_other, "{role:?} {right:?} other");
        }
    }
}
