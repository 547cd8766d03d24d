//! Who signs, and which keys are known.
//!
//! The first private key names the ledger, and all of them have its name. Each signs every seal: while keys are changed, the
//! new one and the old one, so that whoever knows either can check what is signed.

use std::sync::Arc;

use rand::{RngCore, TryRngCore, rngs::OsRng};
use skyriff_proof::{KeyName, KnownKeys, SignedNote, SignerKey, key::NotAKey, note::NoteError};
use zeroize::Zeroizing;

/// More would make every seal long for nothing.
const SIGNERS_MAX: usize = 8;

/// The keys that sign, and all that are known.
#[derive(Clone, Debug)]
pub struct SealKeys {
    ledger: KeyName,
    signers: Arc<[SignerKey]>,
    known: PublicKeys,
}

/// The public keys of a ledger, those of before among them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PublicKeys(Arc<KnownKeys>);

/// Texts are not the keys of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// One is none.
    #[error(transparent)]
    NotAKey(#[from] NotAKey),
    /// There is none to sign with.
    #[error("there is no private key to seal with")]
    None,
    /// There are more than any change of keys takes.
    #[error("there are more than {SIGNERS_MAX} private keys")]
    Many,
    /// They would sign for different ledgers.
    #[error("the keys are of {one} and of {other}, and a ledger has one name")]
    Names {
        /// The first key's.
        one: KeyName,
        /// Another key's.
        other: KeyName,
    },
}

impl SealKeys {
    /// Private keys, separated by white space or commas, and public ones, a line each: those of before, which sign no more.
    ///
    /// # Errors
    /// [`BadKeys`].
    pub fn new(private: &str, public: &str) -> Result<Self, BadKeys> {
        let lines = private.lines().filter(|line| !line.trim_start().starts_with('#'));
        let words = lines.flat_map(|line| line.split([' ', '\t', ',']).filter(|word| !word.trim().is_empty()));
        let signers: Vec<SignerKey> = words.map(|word| word.trim().parse()).collect::<Result<_, _>>()?;
        let Some(first) = signers.first() else { return Err(BadKeys::None) };
        let name = first.verifier().name().clone();
        if signers.len() > SIGNERS_MAX {
            return Err(BadKeys::Many);
        }
        let before: KnownKeys = public.parse()?;
        let own = signers.iter().map(|key| key.verifier().clone());
        let known: Vec<_> = own.chain(before.iter().cloned()).collect();
        if let Some(other) = known.iter().find(|key| *key.name() != name) {
            return Err(BadKeys::Names { one: name, other: other.name().clone() });
        }
        Ok(Self { ledger: name, signers: signers.into(), known: PublicKeys(Arc::new(KnownKeys::new(known)?)) })
    }

    /// Whose ledger it is.
    pub fn ledger(&self) -> &KeyName {
        &self.ledger
    }

    /// What is checked with.
    pub fn public(&self) -> &PublicKeys {
        &self.known
    }

    /// Sign a text with every key.
    pub(crate) fn sign(&self, text: String) -> Result<SignedNote, NoteError> {
        SignedNote::sign(text, &self.signers.iter().collect::<Vec<_>>())
    }

    /// Whether every key has signed a note.
    pub(crate) fn have_signed(&self, note: &SignedNote) -> bool {
        note.open(self.known.known()).is_ok_and(|opened| {
            self.signers.iter().all(|signer| opened.signed_by.iter().any(|key| *key == signer.verifier()))
        })
    }
}

impl PublicKeys {
    /// A key a line; empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`BadKeys`].
    pub fn new(text: &str) -> Result<Self, BadKeys> {
        Ok(Self(Arc::new(text.parse()?)))
    }

    /// The keys.
    pub fn known(&self) -> &KnownKeys {
        &self.0
    }

    /// A key a line.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

/// A key that nobody has yet.
///
/// # Errors
/// None but by a chance that nobody meets.
pub fn generate(name: KeyName) -> Result<SignerKey, NotAKey> {
    let mut seed = Zeroizing::new([0; 32]);
    OsRng.unwrap_err().fill_bytes(seed.as_mut_slice());
    SignerKey::from_seed(name, &seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private(name: &str, seed: u8) -> SignerKey {
        SignerKey::from_seed(name.parse().unwrap(), &[seed; 32]).unwrap()
    }

    #[test]
    fn keys_are_one_ledgers_and_each_signs() {
        let (new, old, older) = (private("example.org/a", 2), private("example.org/a", 1), private("example.org/a", 3));
        let (new_text, old_text) = (new.to_private_text(), old.to_private_text());
        for separator in ["\n", ",", " \n", ", "] {
            let text = format!("{}{separator}{}", *new_text, *old_text);
            let keys = SealKeys::new(&text, &format!("# of before\n{}\n", older.verifier())).unwrap();
            assert_eq!(keys.ledger().as_str(), "example.org/a");
            assert_eq!(keys.public().lines().len(), 3);
            let note = keys.sign("text\n".to_owned()).unwrap();
            assert_eq!(note.open(keys.public().known()).unwrap().signed_by, [new.verifier(), old.verifier()]);
            assert!(keys.have_signed(&note));
            let before = SealKeys::new(&old_text, "").unwrap().sign("text\n".to_owned()).unwrap();
            assert!(!keys.have_signed(&before));
        }
        assert_eq!(SealKeys::new("", "").unwrap_err(), BadKeys::None);
        assert_eq!(SealKeys::new("# none\n", "").unwrap_err(), BadKeys::None);
        assert_eq!(SealKeys::new(&[old_text.as_str(); 9].join(","), "").unwrap_err(), BadKeys::Many);
        assert_eq!(SealKeys::new(&new.verifier().to_string(), "").unwrap_err(), BadKeys::NotAKey(NotAKey::Form));
        let other = private("example.org/b", 1);
        for (private, public) in [
            (format!("{},{}", *old_text, *other.to_private_text()), String::new()),
            (old_text.to_string(), other.verifier().to_string()),
        ] {
            assert!(matches!(SealKeys::new(&private, &public), Err(BadKeys::Names { .. })));
        }
    }
}
