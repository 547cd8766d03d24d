//! One person's key, and what it seals. No IO here.

use aes_gcm_siv::{
    Aes256GcmSiv, KeyInit,
    aead::{Aead, Payload},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use skyriff_domain::{Sealed, UserId};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::master_keys::{Key, MasterKey, random_key};

/// What something sealed is for. It opens for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Where a withdrawal is paid to; the thing is the withdrawal.
    WithdrawalDestination,
    /// What a video or speech is to be of; the thing is the job.
    VideoPrompt,
    /// Why somebody's points were corrected; the thing is the account, since a correction has no id of its own.
    AdjustmentReason,
    /// Why a withdrawal was rejected, or was not paid; the thing is the withdrawal.
    WithdrawalReason,
    /// Why an attempt at a job failed; the thing is the job.
    AttemptReason,
    /// Why an exception of a reconciliation was resolved; the thing is the exception.
    ExceptionReason,
    /// What a work is called; the thing is the work.
    WorkTitle,
}

impl Purpose {
    /// Part of what every sealed text is bound to: changing it would leave them unreadable.
    const fn as_str(self) -> &'static str {
        match self {
            Self::WithdrawalDestination => "withdrawal destination",
            Self::VideoPrompt => "video prompt",
            Self::AdjustmentReason => "adjustment reason",
            Self::WithdrawalReason => "withdrawal reason",
            Self::AttemptReason => "attempt reason",
            Self::ExceptionReason => "exception reason",
            Self::WorkTitle => "work title",
        }
    }
}

/// The first byte of everything sealed: how it was done.
const VERSION: u8 = 1;
/// Texts are filled up to a multiple of this, so that the length of an account's number, which stays in the log when the
/// key is gone, says nothing.
const BLOCK: usize = 64;
/// The longest clear text, in bytes: sealed, it still fits into [`Sealed`].
pub(crate) const CLEAR_MAX: usize = 4_096;

/// It was not sealed with this key for this, or has been changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged;

/// A person's key, in the clear for as long as it is used.
pub(crate) struct PersonKey {
    person: UserId,
    key: Key,
}

impl PersonKey {
    pub(crate) fn generate(person: UserId) -> Self {
        Self { person, key: random_key() }
    }

    /// As kept in the database.
    pub(crate) fn wrap(&self, master: &MasterKey) -> Result<Vec<u8>, Damaged> {
        encrypt(&master.key, &self.wrapping(master), &self.key[..])
    }

    pub(crate) fn unwrap(person: UserId, wrapped: &[u8], master: &MasterKey) -> Result<Self, Damaged> {
        let mut this = Self { person, key: Key::default() };
        let bytes = decrypt(&master.key, &this.wrapping(master), wrapped)?;
        this.key = Key::new(bytes.as_slice().try_into().map_err(|_| Damaged)?);
        Ok(this)
    }

    fn wrapping(&self, master: &MasterKey) -> Vec<u8> {
        context("person key", &[self.person.0.as_bytes(), master.id.as_bytes()])
    }

    fn sealing(&self, purpose: Purpose, thing: Uuid) -> Vec<u8> {
        context(purpose.as_str(), &[self.person.0.as_bytes(), thing.as_bytes()])
    }

    /// The same bytes for the same text, purpose and thing.
    pub(crate) fn seal(&self, purpose: Purpose, thing: Uuid, clear: &[u8]) -> Result<Sealed, Damaged> {
        if clear.len() > CLEAR_MAX {
            return Err(Damaged);
        }
        let mut filled = Zeroizing::new(Vec::with_capacity(clear.len() + 1 + BLOCK));
        filled.extend_from_slice(clear);
        // As ISO 7816-4 does it: one byte that is not zero, then zeros.
        filled.push(0x80);
        let length = filled.len().next_multiple_of(BLOCK);
        filled.resize(length, 0);
        let mut bytes = vec![VERSION];
        bytes.extend(encrypt(&self.key, &self.sealing(purpose, thing), &filled)?);
        Sealed::try_from(URL_SAFE_NO_PAD.encode(bytes)).map_err(|_| Damaged)
    }

    pub(crate) fn open(&self, purpose: Purpose, thing: Uuid, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, Damaged> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed.as_str()).map_err(|_| Damaged)?;
        let Some((&VERSION, bytes)) = bytes.split_first() else { return Err(Damaged) };
        let mut clear = decrypt(&self.key, &self.sealing(purpose, thing), bytes)?;
        let end = clear.iter().rposition(|byte| *byte != 0).filter(|end| clear.get(*end) == Some(&0x80));
        clear.truncate(end.ok_or(Damaged)?);
        Ok(clear)
    }
}

/// What a ciphertext is bound to. The parts are of fixed length each, so no two contexts read the same.
fn context(what: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut context = format!("skyriff {what}\0").into_bytes();
    parts.iter().for_each(|part| context.extend_from_slice(part));
    context
}

fn encrypt(key: &Key, context: &[u8], clear: &[u8]) -> Result<Vec<u8>, Damaged> {
    let cipher = Aes256GcmSiv::new((&**key).into());
    cipher.encrypt(&nonce(context), Payload { msg: clear, aad: context }).map_err(|_| Damaged)
}

fn decrypt(key: &Key, context: &[u8], bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, Damaged> {
    let cipher = Aes256GcmSiv::new((&**key).into());
    let clear = cipher.decrypt(&nonce(context), Payload { msg: bytes, aad: context });
    clear.map(Zeroizing::new).map_err(|_| Damaged)
}

/// Derived, not random: see the crate.
fn nonce(context: &[u8]) -> aes_gcm_siv::Nonce {
    let mut nonce = aes_gcm_siv::Nonce::default();
    for (byte, hash) in nonce.iter_mut().zip(Sha256::digest(context)) {
        *byte = hash;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MasterKeys;

    const PURPOSE: Purpose = Purpose::WithdrawalDestination;

    fn key(person: u128, byte: u8) -> PersonKey {
        PersonKey { person: UserId(Uuid::from_u128(person)), key: Key::new([byte; 32]) }
    }

    fn master(byte: u8) -> MasterKeys {
        MasterKeys::from_base64(&base64::engine::general_purpose::STANDARD.encode([byte; 32])).unwrap()
    }

    /// Sealed texts are kept for ever: these must open, and be made the same, in every version to come.
    #[test]
    fn what_is_sealed_keeps_its_form() {
        let (thing, clear) = (Uuid::from_u128(2), b"where it goes".as_slice());
        let sealed = key(1, 7).seal(PURPOSE, thing, clear).unwrap();
        assert_eq!(
            sealed.as_str(),
            "AVBDj-Rm0guNndyiQFF-GM0AAQq3NxvjVMZCeb_eM2QEyqBCFlwYeCDj_btPOV98c8r6ylU7voj-fF4VCcBxZN3DOyTWYE32PNsAO-phXG0X"
        );
        assert_eq!(key(1, 7).open(PURPOSE, thing, &sealed).unwrap().as_slice(), clear);
        let wrapped = key(1, 7).wrap(master(9).current().unwrap()).unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.encode(&wrapped),
            "zTnObD0wmn4uErmDw0y6HRb3Hf_ZhfBf83jlMHEFJQsF_u6WEZyYiGetAvLhD995"
        );
        let unwrapped = PersonKey::unwrap(UserId(Uuid::from_u128(1)), &wrapped, master(9).current().unwrap());
        assert_eq!(unwrapped.unwrap().key, key(1, 7).key);
    }

    #[test]
    fn it_opens_with_the_same_key_for_the_same_person_and_thing_only() {
        let thing = Uuid::from_u128(2);
        let sealed = key(1, 7).seal(PURPOSE, thing, b"x").unwrap();
        for (person, byte, thing) in [(2, 7, thing), (1, 8, thing), (1, 7, Uuid::from_u128(3))] {
            assert_eq!(key(person, byte).open(PURPOSE, thing, &sealed).unwrap_err(), Damaged);
        }
        for place in 0..sealed.as_str().len() {
            let mut text = sealed.as_str().to_owned();
            let other = if text.as_bytes()[place] == b'A' { "B" } else { "A" };
            text.replace_range(place..=place, other);
            let changed = Sealed::try_from(text).unwrap();
            assert_eq!(key(1, 7).open(PURPOSE, thing, &changed).unwrap_err(), Damaged, "{place}");
        }
        let wrapped = key(1, 7).wrap(master(9).current().unwrap()).unwrap();
        for (person, byte) in [(1, 8), (2, 9)] {
            let person = UserId(Uuid::from_u128(person));
            assert!(PersonKey::unwrap(person, &wrapped, master(byte).current().unwrap()).is_err());
        }
    }

    #[test]
    fn lengths_come_back_and_do_not_show() {
        let seal = |length: usize| key(1, 7).seal(PURPOSE, Uuid::nil(), &vec![0x80; length]);
        for length in [0, 1, 63, 64, 65, CLEAR_MAX] {
            let opened = key(1, 7).open(PURPOSE, Uuid::nil(), &seal(length).unwrap()).unwrap();
            assert_eq!(opened.as_slice(), vec![0x80; length]);
        }
        assert!(seal(CLEAR_MAX + 1).is_err());
        let shown = |length| seal(length).unwrap().as_str().len();
        assert!(shown(1) == shown(63) && shown(63) < shown(64));
    }
}
