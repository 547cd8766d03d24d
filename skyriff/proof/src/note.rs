//! Signed notes, as C2SP `signed-note` has them: a text, an empty line, and a line for each signature.
//!
//! ```text
//! example.org/ledger/3
//! 1042
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//!
//! — example.org/ledger Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
//! ```
//!
//! A signature is the base64 of the key's id (4 bytes) and the Ed25519 signature (64 bytes) of the text with its last newline.
//! Those of keys that are not known are passed over, so that others may sign as well and keys may change; every one of a
//! known key must be right, and there must be one.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::key::{KeyId, KeyName, KnownKeys, SignerKey, VerifierKey};

/// A longer note is not read. A top checkpoint of 1,024 shards has 75 KB.
pub const NOTE_BYTES_MAX: usize = 1_000_000;
/// A note with more signatures is not read. The specification asks for at least 16.
pub const SIGNATURES_MAX: usize = 100;

/// A note, whose text may not be believed before [`SignedNote::open`] has looked at the signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignedNote {
    text: String,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: KeyName,
    id: KeyId,
    bytes: Vec<u8>,
}

/// A note, and which known keys signed it: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened<'n> {
    /// Ends with a newline.
    pub text: &'n str,
    /// In the order of their signatures.
    pub signed_by: Vec<&'n VerifierKey>,
}

/// A note that is none, or that is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not written like one, or too long.
    #[error("this is not a signed note")]
    Malformed,
    /// A text that no note can have: without a newline at its end, or with control characters.
    #[error("the text of a note ends with a newline and has no other control characters")]
    Text,
    /// A known key did not sign this text.
    #[error("the signature of the key {name}+{id} is not of this text")]
    Forged {
        /// Whose it claims to be.
        name: KeyName,
        /// Likewise.
        id: KeyId,
    },
    /// No key that signed it is known.
    #[error("no known key has signed the note")]
    Unknown,
}

fn may_be_text(text: &str) -> bool {
    text.ends_with('\n') && !text.contains(|c: char| c < ' ' && c != '\n')
}

impl SignedNote {
    /// Sign a text with each of the keys, at most [`SIGNATURES_MAX`].
    ///
    /// # Errors
    /// [`NoteError::Text`]; [`NoteError::Malformed`], when there is no key, or too much of anything.
    pub fn sign(text: String, keys: &[&SignerKey]) -> Result<Self, NoteError> {
        if !may_be_text(&text) {
            return Err(NoteError::Text);
        }
        let signatures = keys.iter().map(|key| Signature {
            name: key.verifier().name().clone(),
            id: key.verifier().id(),
            bytes: key.sign(&text).to_vec(),
        });
        let note = Self { signatures: signatures.collect(), text };
        let fits = (1..=SIGNATURES_MAX).contains(&note.signatures.len()) && note.to_string().len() <= NOTE_BYTES_MAX;
        if fits { Ok(note) } else { Err(NoteError::Malformed) }
    }

    /// The text, if at least one known key has signed it, and no signature of a known key is wrong.
    ///
    /// # Errors
    /// [`NoteError::Forged`] and [`NoteError::Unknown`].
    pub fn open<'n>(&'n self, known: &'n KnownKeys) -> Result<Opened<'n>, NoteError> {
        let mut signed_by = Vec::new();
        for Signature { name, id, bytes } in &self.signatures {
            let Some(key) = known.get(name, *id) else { continue };
            if !key.signed(&self.text, bytes) {
                return Err(NoteError::Forged { name: name.clone(), id: *id });
            }
            signed_by.push(key);
        }
        if signed_by.is_empty() { Err(NoteError::Unknown) } else { Ok(Opened { text: &self.text, signed_by }) }
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, id, bytes } in &self.signatures {
            let bytes: Vec<u8> = id.0.iter().chain(bytes).copied().collect();
            writeln!(f, "— {name} {}", STANDARD.encode(bytes))?;
        }
        Ok(())
    }
}

impl FromStr for SignedNote {
    type Err = NoteError;

    fn from_str(note: &str) -> Result<Self, NoteError> {
        let malformed = NoteError::Malformed;
        if note.len() > NOTE_BYTES_MAX || !may_be_text(note) {
            return Err(malformed);
        }
        // The text may have empty lines of its own; the signatures follow the last one.
        let end = note.rfind("\n\n").ok_or(malformed)?;
        let (text, signatures) = note.split_at(end + 1);
        let lines = signatures.trim_matches('\n').split('\n');
        let signatures = lines.map(str::parse).take(SIGNATURES_MAX + 1).collect::<Result<Vec<_>, _>>()?;
        let note = Self { text: text.to_owned(), signatures };
        if note.signatures.len() > SIGNATURES_MAX { Err(NoteError::Malformed) } else { Ok(note) }
    }
}

impl FromStr for Signature {
    type Err = NoteError;

    fn from_str(line: &str) -> Result<Self, NoteError> {
        let (name, base64) =
            line.strip_prefix("— ").and_then(|rest| rest.split_once(' ')).ok_or(NoteError::Malformed)?;
        let bytes = STANDARD.decode(base64).map_err(|_| NoteError::Malformed)?;
        let name = name.parse().map_err(|_| NoteError::Malformed)?;
        match bytes.split_first_chunk() {
            Some((id, bytes)) if !bytes.is_empty() => Ok(Self { name, id: KeyId(*id), bytes: bytes.to_vec() }),
            _ => Err(NoteError::Malformed),
        }
    }
}

impl TryFrom<String> for SignedNote {
    type Error = NoteError;

    fn try_from(note: String) -> Result<Self, NoteError> {
        note.parse()
    }
}

impl From<SignedNote> for String {
    fn from(note: SignedNote) -> Self {
        note.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // From the documentation and tests of Go's `sumdb/note`.
    const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const PETER_PRIVATE: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
    const TEXT: &str = "If you think cryptography is the answer to your problem,\n\
                        then you don't know what your problem is.\n";
    const BY_PETER: &str =
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    const BY_ENOCH: &str =
        "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

    fn known(keys: &[&str]) -> KnownKeys {
        KnownKeys::new(keys.iter().map(|key| key.parse().unwrap())).unwrap()
    }

    /// Who signed it, or why it is not believed.
    fn opened(note: &str, keys: &[&str]) -> Result<Vec<String>, NoteError> {
        let note: SignedNote = note.parse()?;
        let known = known(keys);
        let opened = note.open(&known)?;
        assert_eq!(opened.text, TEXT);
        Ok(opened.signed_by.iter().map(|key| key.name().to_string()).collect())
    }

    #[test]
    fn notes_are_those_of_go_and_of_the_specification() {
        let peter: SignerKey = PETER_PRIVATE.parse().unwrap();
        let note = SignedNote::sign(TEXT.to_owned(), &[&peter]).unwrap();
        assert_eq!(note.to_string(), format!("{TEXT}\n{BY_PETER}"));
        let names = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        let both = format!("{TEXT}\n{BY_PETER}{BY_ENOCH}");
        assert_eq!(opened(&both, &[PETER]), names(&["PeterNeumann"]));
        assert_eq!(opened(&both, &[ENOCH, PETER]), names(&["PeterNeumann", "EnochRoot"]));
        assert_eq!(opened(&both, &[]), Err(NoteError::Unknown));
        let of_specification = "This is an example message.\n\n— example.com/foo \
            Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";
        let note: SignedNote = of_specification.parse().unwrap();
        let known = known(&["example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"]);
        assert_eq!(note.open(&known).unwrap().text, "This is an example message.\n");
        assert_eq!(note.to_string(), of_specification);
    }

    #[test]
    fn a_known_key_must_have_signed_this_text() {
        let forged = || {
            let peter: VerifierKey = PETER.parse().unwrap();
            NoteError::Forged { name: peter.name().clone(), id: peter.id() }
        };
        let other_text = format!("{}\n{BY_PETER}", TEXT.replace("your", "my"));
        assert_eq!(opened(&other_text, &[PETER]), Err(forged()));
        let other_signature = format!("{TEXT}\n{}{BY_ENOCH}", BY_PETER.replace("JnAM=", "JnAI="));
        assert_eq!(opened(&other_signature, &[PETER, ENOCH]), Err(forged()));
        assert_eq!(opened(&other_signature, &[ENOCH]), Ok(vec!["EnochRoot".to_owned()]));
        let too_long = format!("{TEXT}\n{}ABCD{}", &BY_PETER[..62], &BY_PETER[62..]);
        assert_eq!(opened(&too_long, &[PETER]), Err(forged()));
        // The name of one with the id of the other is the key of neither.
        let misnamed = format!("{TEXT}\n{}", BY_PETER.replace("PeterNeumann", "EnochRoot"));
        assert_eq!(opened(&misnamed, &[PETER, ENOCH]), Err(NoteError::Unknown));
    }

    #[test]
    fn what_is_not_a_note_is_not_read() {
        let good = format!("{TEXT}\n{BY_PETER}");
        let too_many = format!("{TEXT}\n{}", BY_PETER.repeat(101));
        let too_long = format!("{}\n{BY_PETER}", "x\n".repeat(500_000));
        for bad in [
            "",
            "\n",
            "\n\n",
            TEXT,
            &format!("{TEXT}\n"),
            &good[..good.len() - 1],
            &format!("{good}\n"),
            &format!("\u{1}{good}"),
            &good.replace('\n', "\r\n"),
            &good.replace("PeterNeumann ", "Peter Neumann "),
            &good.replace("PeterNeumann ", " "),
            &good.replace("— ", "- "),
            &good.replace("— ", "—  "),
            &format!("{good}Unexpected line.\n"),
            &format!("{TEXT}\n— PeterNeumann x08gow==\n"),
            &format!("{TEXT}\n— PeterNeumann x08\n"),
            &format!("{TEXT}\n— PeterNeumann\n"),
            &too_many,
            &too_long,
        ] {
            let start: String = bad.chars().take(200).collect();
            assert_eq!(bad.parse::<SignedNote>(), Err(NoteError::Malformed), "{start:?}");
        }
        assert!(format!("{TEXT}\n{}", BY_PETER.repeat(100)).parse::<SignedNote>().is_ok());
        let peter: SignerKey = PETER_PRIVATE.parse().unwrap();
        for bad in ["", "no newline", "tab\t\n", "\u{0}\n"] {
            assert_eq!(SignedNote::sign(bad.to_owned(), &[&peter]), Err(NoteError::Text), "{bad:?}");
        }
        assert_eq!(SignedNote::sign(TEXT.to_owned(), &[]), Err(NoteError::Malformed));
    }

    /// From one key to the next under the same name: everybody can check everything as long as it keeps the old one.
    #[test]
    fn keys_change_and_old_notes_stay_good() {
        let key = |seed: u8| SignerKey::from_seed("example.org/ledger".parse().unwrap(), &[seed; 32]).unwrap();
        let (old, new) = (key(1), key(2));
        let note = |keys: &[&SignerKey]| SignedNote::sign(TEXT.to_owned(), keys).unwrap();
        let (before, between, after) = (note(&[&old]), note(&[&old, &new]), note(&[&new]));
        let of = |keys: &[&SignerKey]| KnownKeys::new(keys.iter().map(|key| key.verifier().clone())).unwrap();
        for (note, known, signatures) in [
            (&before, of(&[&old]), Some(1)),
            (&before, of(&[&old, &new]), Some(1)),
            (&before, of(&[&new]), None),
            (&between, of(&[&old]), Some(1)),
            (&between, of(&[&new]), Some(1)),
            (&between, of(&[&old, &new]), Some(2)),
            (&after, of(&[&old]), None),
            (&after, of(&[&old, &new]), Some(1)),
        ] {
            let opened = note.open(&known);
            assert_eq!(opened.as_ref().ok().map(|opened| opened.signed_by.len()), signatures);
            assert!(signatures.is_some() || opened == Err(NoteError::Unknown));
        }
    }

    proptest! {
        #[test]
        fn a_note_is_read_as_it_is_written(text in "([ -~\u{a1}-\u{2fff}]{0,20}\n){1,5}", seed: [u8; 32], bit in 0_usize..1_000) {
            let key = SignerKey::from_seed("example.org/ledger".parse().unwrap(), &seed).unwrap();
            let known = KnownKeys::new([key.verifier().clone()]).unwrap();
            let note = SignedNote::sign(text.clone(), &[&key]).unwrap();
            let written = note.to_string();
            prop_assert_eq!(written.parse(), Ok(note.clone()));
            prop_assert_eq!(note.open(&known).unwrap().text, text);
            // One bit anywhere, and it is not believed; whether it is still a note does not matter.
            let mut changed = written.into_bytes();
            let at = bit % (changed.len() * 8);
            changed[at / 8] ^= 1 << (at % 8);
            if let Ok(changed) = String::from_utf8(changed) {
                let believed = changed.parse::<SignedNote>().is_ok_and(|note| note.open(&known).is_ok());
                prop_assert!(!believed);
            }
        }
    }
}
