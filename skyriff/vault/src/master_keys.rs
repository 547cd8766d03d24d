//! The keys that wrap the keys of persons. They come from the operator, and are in no database.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::{TryRngCore, rngs::OsRng};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// 256 bits.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// The master keys that this process has: the first wraps new keys, all of them unwrap.
#[derive(Clone)]
pub struct MasterKeys(Arc<Vec<MasterKey>>);

pub(crate) struct MasterKey {
    /// Says which key it is, and nothing about it.
    pub(crate) id: String,
    pub(crate) key: Key,
}

/// The text holds no master keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a master key is the base64 of 32 bytes (openssl rand -base64 32); several are separated by commas, the current one first"
)]
pub struct NoMasterKey;

impl MasterKeys {
    /// From `key` or `current,older,…`, each in base64. Older ones are kept until no person's key is wrapped by them.
    ///
    /// # Errors
    /// [`NoMasterKey`]. It does not repeat the text.
    pub fn from_base64(text: &str) -> Result<Self, NoMasterKey> {
        let keys = text.trim().split(',').map(|text| MasterKey::from_base64(text.trim()));
        keys.collect::<Result<_, _>>().map(|keys| Self(Arc::new(keys)))
    }

    /// A new one, in base64.
    pub fn generate() -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(random_key()))
    }

    /// What wraps new keys.
    pub(crate) fn current(&self) -> Option<&MasterKey> {
        self.0.first()
    }

    pub(crate) fn get(&self, id: &str) -> Option<&MasterKey> {
        self.0.iter().find(|key| key.id == id)
    }
}

impl MasterKey {
    fn from_base64(text: &str) -> Result<Self, NoMasterKey> {
        let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| NoMasterKey)?);
        let key = Key::new(bytes.as_slice().try_into().map_err(|_| NoMasterKey)?);
        let hash = Sha256::new().chain_update(b"skyriff master key id\0").chain_update(&key[..]).finalize();
        let id = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, key })
    }
}

/// The ids only: a key is never shown.
impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

/// From the operating system, which ends the process if it has no randomness to give.
pub(crate) fn random_key() -> Key {
    let mut key = Key::default();
    rand::RngCore::fill_bytes(&mut OsRng.unwrap_err(), &mut key[..]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_named_and_never_shown() {
        let (one, two) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
        let keys = MasterKeys::from_base64(&format!(" {one}, {two}\n")).unwrap();
        assert_eq!(format!("{keys:?}"), r#"["e6a86b13a2f284e3", "ca08d418d59dccb1"]"#);
        assert_eq!(keys.current().unwrap().key[..], [1; 32]);
        let other_way_round = MasterKeys::from_base64(&format!("{two},{one}")).unwrap();
        assert_eq!(other_way_round.get(&keys.current().unwrap().id).unwrap().key[..], [1; 32]);
        assert!(MasterKeys::from_base64(&MasterKeys::generate()).is_ok());
        for bad in ["", ",", "x", &one[1..], &STANDARD.encode([1; 31]), &format!("{one},")] {
            assert_eq!(MasterKeys::from_base64(bad).unwrap_err(), NoMasterKey, "{bad}");
        }
    }
}
