//! How a request between SkyRiff and a payout provider proves who sent it, in both directions.
//!
//! Two headers: `Skyriff-Timestamp`, the Unix time in whole seconds as decimal digits, and `Skyriff-Signature`, which is
//! `v1=` and 64 lower-case hexadecimal digits: the HMAC-SHA256 (RFC 2104) under the shared secret's bytes over
//!
//! ```text
//! timestamp LF method LF path LF body
//! ```
//!
//! * `timestamp`: the header's bytes
//! * `method`: `POST` or `GET`
//! * `path`: path and query of the URL as they stand in the request line: `/payouts/0b6f…`, `/v1/payout-callbacks/acme`
//! * `body`: the body's bytes as they are sent; none for a `GET`
//! * `LF`: one byte, 0x0A
//!
//! A receiver refuses what is not signed like this, and what is older or newer than [`FRESH_S`] seconds. Method and path
//! are signed, so nothing can be sent back to where it came from, or somewhere else.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The header with the Unix time, in seconds.
pub const TIMESTAMP: &str = "skyriff-timestamp";
/// The header with the signature.
pub const SIGNATURE: &str = "skyriff-signature";
/// How far a timestamp may be from the receiver's clock, in seconds.
pub const FRESH_S: i64 = 300;
/// The fewest bytes of a secret.
const SECRET_MIN: usize = 32;

/// What both sides know. Its `Debug` does not show it.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a signature covers.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// Unix time in seconds.
    pub timestamp: i64,
    /// `POST` or `GET`.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// As sent.
    pub body: &'a [u8],
}

/// Why something that claims to be signed is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotBelieved {
    /// There is no signature, or not this one.
    #[error("the signature is not valid")]
    Forged,
    /// It is signed, and too old or too new.
    #[error("the timestamp is not fresh")]
    Stale,
}

impl Secret {
    /// Of at least 32 bytes.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mac = Hmac::new_from_slice(bytes).ok()?;
        (bytes.len() >= SECRET_MIN).then_some(Self(mac))
    }

    /// The header's value.
    pub fn sign(&self, signed: Signed<'_>) -> String {
        let digest = self.over(signed).finalize().into_bytes();
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("v1={hex}")
    }

    /// Whether a request is from who knows the secret, and from now. The comparison takes the same time whatever is
    /// wrong, and whether it is fresh is only said of what is signed.
    ///
    /// # Errors
    /// [`NotBelieved`].
    pub fn verify(&self, signed: Signed<'_>, signature: &str, now: i64) -> Result<(), NotBelieved> {
        let bytes = signature.strip_prefix("v1=").and_then(unhex).ok_or(NotBelieved::Forged)?;
        self.over(signed).verify_slice(&bytes).map_err(|_| NotBelieved::Forged)?;
        if now.saturating_sub(signed.timestamp).saturating_abs() > FRESH_S { Err(NotBelieved::Stale) } else { Ok(()) }
    }

    fn over(&self, Signed { timestamp, method, path, body }: Signed<'_>) -> Hmac<Sha256> {
        let head = format!("{timestamp}\n{method}\n{path}\n");
        self.0.clone().chain_update(head).chain_update(body)
    }
}

/// Lower case only: one signature has one spelling.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? * 16 + digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: Signed<'_> =
        Signed { timestamp: 1_767_225_600, method: "POST", path: "/v1/payout-callbacks/acme", body: br#"{"a":1}"# };

    /// Made with `printf '1767225600\nPOST\n/v1/payout-callbacks/acme\n{"a":1}' | openssl dgst -sha256 -hmac …`.
    #[test]
    fn signatures_are_what_the_protocol_says() {
        let secret = Secret::new(b"0123456789abcdef0123456789abcdef").unwrap();
        let signature = "v1=4260055299a54c1550640778cda2e7f2b66cc8f8f7105427ea9957f8ee4b9599";
        assert_eq!(secret.sign(SIGNED), signature);
        assert_eq!(secret.verify(SIGNED, signature, SIGNED.timestamp + FRESH_S), Ok(()));
        for stale in [FRESH_S + 1, -FRESH_S - 1] {
            assert_eq!(secret.verify(SIGNED, signature, SIGNED.timestamp + stale), Err(NotBelieved::Stale));
        }
        let others = [
            Signed { timestamp: SIGNED.timestamp + 1, ..SIGNED },
            Signed { method: "GET", ..SIGNED },
            Signed { path: "/v1/payout-callbacks/acm", ..SIGNED },
            Signed { body: br#"{"a":2}"#, ..SIGNED },
        ];
        for other in others {
            assert_eq!(secret.verify(other, signature, SIGNED.timestamp), Err(NotBelieved::Forged), "{other:?}");
        }
        for bad in ["", "v1=", "v1=0", "v2=00", &signature.to_uppercase(), &signature[..signature.len() - 2]] {
            assert_eq!(secret.verify(SIGNED, bad, SIGNED.timestamp), Err(NotBelieved::Forged), "{bad}");
        }
        assert!(Secret::new(&[7; SECRET_MIN - 1]).is_none());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
