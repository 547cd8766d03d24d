//! Links to private objects, good for a while.
//!
//! Of a bucket they are S3 presigned URLs. Of a folder they lead to our own route:
//!
//! ```text
//! /v1/objects/{object}?expires={unix seconds}&signature={base64url(HMAC-SHA256(key, text))}
//! text = "GET\n/v1/objects/{object}\n{unix seconds}"
//! ```

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::Sha256;
use utoipa::ToSchema;

use crate::{ObjectName, ObjectStorage, StorageError};

/// How long a link is good, unless configured.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Longer ones are not made: S3 has no longer ones either.
pub const LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The key that signs links to objects in a folder. Whoever serves them needs the same one as whoever makes them.
#[derive(Clone)]
pub struct LinkKey(Arc<[u8]>);

/// Why a link is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLink {
    /// Not signed by us, or changed since.
    #[error("the signature is not that of this address")]
    Forged,
    /// Its time is over.
    #[error("the link has expired")]
    Expired,
}

impl LinkKey {
    /// From a secret of at least 32 bytes that serves nothing else.
    pub fn new(secret: &[u8]) -> Self {
        Self(secret.into())
    }

    fn mac(&self, object: &ObjectName, expires: i64) -> Option<Hmac<Sha256>> {
        // HMAC takes keys of every length; there is nothing that this could fail on.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(format!("GET\n/v1/objects/{object}\n{expires}").as_bytes());
        Some(mac)
    }

    /// The path and query that lead to `object` until `expires`, in unix seconds.
    fn sign(&self, object: &ObjectName, expires: i64) -> String {
        let signature = self.mac(object, expires).map(|mac| mac.finalize().into_bytes());
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signature.unwrap_or_default());
        format!("/v1/objects/{object}?expires={expires}&signature={signature}")
    }

    /// Whether a link is ours and still good. Compares in constant time.
    ///
    /// # Errors
    /// [`BadLink`].
    pub fn check(&self, object: &ObjectName, expires: i64, signature: &str, now: DateTime<Utc>) -> Result<(), BadLink> {
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).map_err(|_| BadLink::Forged)?;
        let mac = self.mac(object, expires).ok_or(BadLink::Forged)?;
        mac.verify_slice(&signature).map_err(|_| BadLink::Forged)?;
        if now.timestamp() < expires { Ok(()) } else { Err(BadLink::Expired) }
    }
}

/// A link, and until when it is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Link {
    /// Where the object is: an address of its own, or a path on this server.
    pub url: String,
    /// Until then.
    pub expires_at: DateTime<Utc>,
    /// The media type of what is there.
    pub content_type: &'static str,
}

/// Makes links.
#[derive(Clone)]
pub struct Links {
    pub(crate) storage: ObjectStorage,
    pub(crate) key: LinkKey,
    /// Before the path of links to a folder: `https://api.example.org`; nothing for links that stay on the server.
    public_url: String,
    lifetime: Duration,
}

impl Links {
    /// Links to what is in `storage`, good for `lifetime`, at most [`LIFETIME_MAX`].
    pub fn new(storage: ObjectStorage, key: LinkKey, public_url: Option<&str>, lifetime: Duration) -> Self {
        let public_url = public_url.unwrap_or_default().trim_end_matches('/').to_owned();
        Self { storage, key, public_url, lifetime: lifetime.min(LIFETIME_MAX) }
    }

    /// What they lead to.
    pub fn storage(&self) -> &ObjectStorage {
        &self.storage
    }

    /// A link to `object`, whether it exists or not: who may have one is for the caller to decide.
    ///
    /// # Errors
    /// [`StorageError`], when a bucket's credentials cannot be had.
    pub async fn link(&self, object: &ObjectName, now: DateTime<Utc>) -> Result<Link, StorageError> {
        let expires_at = now + self.lifetime;
        let url = match self.storage.presigned(object, self.lifetime).await? {
            Some(url) => url.into(),
            None => format!("{}{}", self.public_url, self.key.sign(object, expires_at.timestamp())),
        };
        Ok(Link { url, expires_at, content_type: object.format.content_type() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_one_object_one_time_and_one_key() {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let object: ObjectName = "959de6e1-d9ef-5a29-a884-f19f971b9c27.1.mp4".parse().unwrap();
        let other: ObjectName = "959de6e1-d9ef-5a29-a884-f19f971b9c27.2.mp4".parse().unwrap();
        let (key, other_key) = (LinkKey::new(&[1; 32]), LinkKey::new(&[2; 32]));
        let expires = now.timestamp() + 60;
        let url = key.sign(&object, expires);
        // Pinned: whoever reads the form above can make it with any HMAC.
        assert_eq!(
            url,
            format!(
                "/v1/objects/{object}?expires=1700000060&signature={}",
                "kRxYRGc7u6Ep6xr8T05-tgYcOBriXPfCAMT52p3uMlY"
            )
        );
        let (_, signature) = url.rsplit_once('=').unwrap();
        assert_eq!(key.check(&object, expires, signature, now), Ok(()));
        let last = now + chrono::TimeDelta::seconds(59);
        assert_eq!(key.check(&object, expires, signature, last), Ok(()));
        let over = now + chrono::TimeDelta::seconds(60);
        assert_eq!(key.check(&object, expires, signature, over), Err(BadLink::Expired));
        for (key, object, expires, signature) in [
            (&key, &other, expires, signature),
            (&key, &object, expires + 1, signature),
            (&other_key, &object, expires, signature),
            (&key, &object, expires, ""),
            (&key, &object, expires, "AAAA"),
            (&key, &object, expires, "not base64!"),
            (&key, &object, expires, &signature[1..]),
        ] {
            assert_eq!(
                key.check(object, expires, signature, now),
                Err(BadLink::Forged),
                "{object} {expires} {signature}"
            );
        }
    }
}
