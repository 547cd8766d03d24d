//! The keys that sign: Ed25519 (RFC 8032), named and written as C2SP `signed-note` and Go's `sumdb/note` do.
//!
//! ```text
//! key id       first 4 bytes of SHA-256(name || 0x0A || 0x01 || public key)
//! public key   <name>+<key id, 8 hexadecimal digits>+<base64(0x01 || public key)>
//! private key  PRIVATE+KEY+<name>+<key id>+<base64(0x01 || seed)>
//! ```
//!
//! # Rotation
//!
//! The name stays, and the new key has another id. 1. Auditors are told the new public key beside the old one. 2. For a while
//! notes are signed with both ([`crate::SignedNote::sign`] takes several), so that whoever knows either can check them. 3. The
//! old private key is destroyed. Old notes are not signed anew: they stay good as long as the old public key is among the
//! [`KnownKeys`], which is for ever. A private key that got into other hands is another matter: notes with only its
//! signature prove nothing any more, except to whoever kept them from before.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The byte that says Ed25519.
const ED25519: u8 = 1;
/// What every private key begins with, so that nobody takes it for a public one.
const PRIVATE: &str = "PRIVATE+KEY+";

/// Who signs: not empty, without spaces, plus signs and control characters. By convention an address without its scheme,
/// as in `example.org/ledger`; nothing has to be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

/// Which of the keys of a name: not a secret, and no proof of anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 4]);

/// What signatures are checked with.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: KeyName,
    id: KeyId,
    key: VerifyingKey,
}

/// What notes are signed with. Wiped from memory when it is dropped, and never shown.
pub struct SignerKey {
    verifier: VerifierKey,
    key: SigningKey,
}

/// The keys of a log, those of before among them.
#[derive(Clone, Debug, Default)]
pub struct KnownKeys(BTreeMap<(KeyName, KeyId), VerifierKey>);

/// A text is not a key. It is not repeated, since it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    /// Empty, or with what a name may not have.
    #[error("the name of a key is not empty and has no spaces, plus signs or control characters")]
    Name,
    /// Not written like one.
    #[error("a public key is written NAME+ID+BASE64, a private one PRIVATE+KEY+NAME+ID+BASE64")]
    Form,
    /// Not Ed25519, or none that signatures could be trusted of.
    #[error("the key is not one of Ed25519")]
    Algorithm,
    /// Another key's, or a typing error.
    #[error("the id of the key is not that of its name and bytes")]
    Id,
    /// Two keys have one name and id: somebody made them so.
    #[error("two different keys have the same name and id")]
    Ambiguous,
}

impl KeyName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = NotAKey;

    fn from_str(name: &str) -> Result<Self, NotAKey> {
        let may_not = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if name.is_empty() || name.contains(may_not) { Err(NotAKey::Name) } else { Ok(Self(name.to_owned())) }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl VerifierKey {
    fn new(name: KeyName, key: VerifyingKey) -> Result<Self, NotAKey> {
        // With such a key, one signature is good for many texts.
        if key.is_weak() {
            return Err(NotAKey::Algorithm);
        }
        let hash = Sha256::new()
            .chain_update(name.as_str())
            .chain_update([b'\n', ED25519])
            .chain_update(key.as_bytes())
            .finalize();
        let [a, b, c, d, ..]: [u8; 32] = hash.into();
        Ok(Self { name, id: KeyId([a, b, c, d]), key })
    }

    /// Whose it is.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// Which of the name's keys it is.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether this key signed the text.
    pub(crate) fn signed(&self, text: &str, signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(text.as_bytes(), &signature).is_ok())
    }
}

/// As auditors are given it.
impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<u8> = [ED25519].iter().chain(self.key.as_bytes()).copied().collect();
        write!(f, "{}+{}+{}", self.name, self.id, STANDARD.encode(bytes))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VerifierKey {
    type Err = NotAKey;

    /// Only of what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let (name, id, bytes) = parts(text)?;
        let key = Self::new(name, VerifyingKey::from_bytes(&bytes).map_err(|_| NotAKey::Algorithm)?)?;
        if key.id.to_string() == id { Ok(key) } else { Err(NotAKey::Id) }
    }
}

impl SignerKey {
    /// From 32 random bytes that serve nothing else.
    ///
    /// # Errors
    /// None for random bytes.
    pub fn from_seed(name: KeyName, seed: &[u8; 32]) -> Result<Self, NotAKey> {
        let key = SigningKey::from_bytes(seed);
        Ok(Self { verifier: VerifierKey::new(name, key.verifying_key())?, key })
    }

    /// What its signatures are checked with.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// The secret, as [`FromStr`] reads it.
    pub fn to_private_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([ED25519; 33]);
        bytes.iter_mut().skip(1).zip(self.key.as_bytes()).for_each(|(byte, of_seed)| *byte = *of_seed);
        let base64 = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        Zeroizing::new(format!("{PRIVATE}{}+{}+{}", self.verifier.name, self.verifier.id, base64.as_str()))
    }

    pub(crate) fn sign(&self, text: &str) -> [u8; 64] {
        self.key.sign(text.as_bytes()).to_bytes()
    }
}

impl FromStr for SignerKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let (name, id, seed) = parts(text.strip_prefix(PRIVATE).ok_or(NotAKey::Form)?)?;
        let key = Self::from_seed(name, &seed)?;
        if key.verifier.id.to_string() == id { Ok(key) } else { Err(NotAKey::Id) }
    }
}

/// The public half only.
impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignerKey({})", self.verifier)
    }
}

/// Name, id and bytes. Base64 may have a plus sign, a name may not.
fn parts(text: &str) -> Result<(KeyName, &str, Zeroizing<[u8; 32]>), NotAKey> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(base64)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(NotAKey::Form);
    };
    let bytes = Zeroizing::new(STANDARD.decode(base64).map_err(|_| NotAKey::Form)?);
    match bytes.as_slice() {
        [ED25519, bytes @ ..] => {
            let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| NotAKey::Form)?;
            Ok((name.parse()?, id, Zeroizing::new(bytes)))
        }
        _ => Err(NotAKey::Algorithm),
    }
}

impl KnownKeys {
    /// These keys.
    ///
    /// # Errors
    /// [`NotAKey::Ambiguous`].
    pub fn new(keys: impl IntoIterator<Item = VerifierKey>) -> Result<Self, NotAKey> {
        let mut known = BTreeMap::new();
        for key in keys {
            let known = known.entry((key.name.clone(), key.id)).or_insert_with(|| key.clone());
            if *known != key {
                return Err(NotAKey::Ambiguous);
            }
        }
        Ok(Self(known))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &VerifierKey> {
        self.0.values()
    }

    pub(crate) fn get(&self, name: &KeyName, id: KeyId) -> Option<&VerifierKey> {
        self.0.get(&(name.clone(), id))
    }
}

impl FromStr for KnownKeys {
    type Err = NotAKey;

    /// A key a line. Empty lines and those that begin with `#` are passed over.
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self::new(lines.map(str::parse).collect::<Result<Vec<_>, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the documentation and tests of Go's `sumdb/note`, public and private.
    const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const PETER_PRIVATE: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";

    #[test]
    fn keys_are_those_of_go_and_of_the_specification() {
        for (text, name, id) in [
            (PETER, "PeterNeumann", "c74f20a3"),
            ("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "example.com/foo", "530d903a"),
            ("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8", "sum.golang.org", "033de0ae"),
        ] {
            let key: VerifierKey = text.parse().unwrap();
            assert_eq!(
                (key.name().as_str(), key.id().to_string().as_str(), key.to_string().as_str()),
                (name, id, text)
            );
        }
        let signer: SignerKey = PETER_PRIVATE.parse().unwrap();
        assert_eq!((signer.verifier().to_string().as_str(), signer.to_private_text().as_str()), (PETER, PETER_PRIVATE));
        assert_eq!(format!("{signer:?}"), format!("SignerKey({PETER})"));
    }

    #[test]
    fn no_part_and_no_change_of_a_key_is_a_key() {
        for key in [PETER, PETER_PRIVATE] {
            let parse = |text: &str| text.parse::<VerifierKey>().is_ok() || text.parse::<SignerKey>().is_ok();
            for begin in 0..key.len() {
                for end in begin..=key.len() {
                    let part = &key[begin..end];
                    // What follows PRIVATE+KEY+ names the id of the public half, so it is none either.
                    assert_eq!(parse(part), part == key, "{part}");
                }
                let mut changed = key.as_bytes().to_vec();
                changed[begin] += 1;
                assert!(!parse(str::from_utf8(&changed).unwrap()), "{begin}");
            }
        }
        for (bad, why) in [
            ("PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", NotAKey::Id),
            // Too long, and of another algorithm, each with the id that it would have.
            ("PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==", NotAKey::Form),
            ("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", NotAKey::Algorithm),
            ("Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", NotAKey::Name),
            // The point of order one: its signatures are good for every text.
            ("weak+00000000+AQEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", NotAKey::Algorithm),
        ] {
            assert_eq!(bad.parse::<VerifierKey>().unwrap_err(), why, "{bad}");
        }
        for bad in ["", "a b", "a\u{a0}b", "a\u{2003}", "a+b", "a\nb", "a\u{0}"] {
            assert_eq!(bad.parse::<KeyName>(), Err(NotAKey::Name), "{bad:?}");
        }
    }

    #[test]
    fn known_keys_are_read_a_line_each() {
        let text = format!("# ours\n\n{PETER}\n  {PETER}  \n");
        let known: KnownKeys = text.parse().unwrap();
        assert_eq!(known.iter().map(ToString::to_string).collect::<Vec<_>>(), [PETER]);
        assert_eq!(format!("{PETER} x").parse::<KnownKeys>().unwrap_err(), NotAKey::Form);
        let peter: VerifierKey = PETER.parse().unwrap();
        let other = SignerKey::from_seed("other".parse().unwrap(), &[7; 32]).unwrap();
        let same_id = VerifierKey { key: other.verifier.key, ..peter.clone() };
        assert_eq!(KnownKeys::new([peter, same_id]).unwrap_err(), NotAKey::Ambiguous);
    }
}
