//! Where the money of a withdrawal goes. In the clear only between the request and its sealing, and between its opening
//! and the provider that pays.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// What the account is an account of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = DestinationKind)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Alipay: an email address, or a phone number of 8 to 15 digits, with or without a plus sign before it.
    Alipay,
    /// A bank account or card: 8 to 34 digits and capital letters without spaces; the check digits of an IBAN are checked.
    BankAccount,
    /// PayPal: an email address.
    Paypal,
}

/// Where the money of a withdrawal goes: kept sealed, and shown masked to the owner and to reviewers only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Unchecked")]
#[schema(example = json!({"kind": "alipay", "account": "mei@example.com", "name": "Mei Lin"}))]
pub struct Destination {
    kind: Kind,
    /// The account at the provider, in the form that the kind asks for.
    #[schema(min_length = 5, max_length = 128)]
    account: String,
    /// Who the account belongs to, as the provider knows them.
    #[schema(min_length = 1, max_length = 64)]
    name: String,
}

/// As it may be shown: enough to recognise one's own account, too little to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Masked {
    /// What the account is an account of.
    pub kind: Kind,
    /// What is left of it.
    #[schema(example = "***@***.com")]
    pub account: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    kind: Kind,
    account: String,
    name: String,
}

/// The account or the name has not the form that is asked for. Says which, and never repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("destination: {0}")]
pub struct Malformed(&'static str);

const EMAIL_MAX: usize = 128;
const NAME_MAX: usize = 64;

impl TryFrom<Unchecked> for Destination {
    type Error = Malformed;

    fn try_from(Unchecked { kind, account, name }: Unchecked) -> Result<Self, Malformed> {
        let (formed, asked) = match kind {
            Kind::Alipay => (
                is_email(&account) || is_phone(&account),
                "an alipay account is an email address or a phone number of 8 to 15 digits",
            ),
            Kind::Paypal => (is_email(&account), "a paypal account is an email address"),
            Kind::BankAccount => (
                is_bank_account(&account),
                "a bank account is 8 to 34 digits and capital letters without spaces, with right check digits if it is an IBAN",
            ),
        };
        if !formed {
            return Err(Malformed(asked));
        }
        let length = name.chars().count();
        if !(1..=NAME_MAX).contains(&length) || name.trim() != name || name.chars().any(char::is_control) {
            return Err(Malformed("a name is 1 to 64 characters without control characters or spaces around them"));
        }
        Ok(Self { kind, account, name })
    }
}

impl Destination {
    /// What the account is an account of.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The account at the provider, in the clear.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// Who it belongs to, in the clear.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As it may be shown. The name is not shown at all.
    pub fn masked(&self) -> Masked {
        let account = match self.account.rsplit_once('@') {
            // All but what says nothing about anybody.
            Some((_, domain)) => format!("***@***.{}", domain.rsplit('.').next().unwrap_or_default()),
            None => {
                let shown = self.account.len().saturating_sub(4);
                format!("…{}", self.account.get(shown..).unwrap_or_default())
            }
        };
        Masked { kind: self.kind, account }
    }

    /// As it is sealed. The order of the members is part of the form: the same destination must give the same bytes.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Two strings and a name: it cannot fail.
        Zeroizing::new(serde_json::to_vec(self).unwrap_or_default())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Masked, so that it can never be logged by mistake.
impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.masked().fmt(f)
    }
}

/// Not RFC 5321, whose odd corners no provider takes: something, an at sign, labels with dots between them.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let local_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._%+-".contains(&byte);
    text.len() <= EMAIL_MAX
        && !local.is_empty()
        && local.bytes().all(local_byte)
        && domain.contains('.')
        && domain.split('.').all(label)
}

fn is_phone(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or(text);
    (8..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_bank_account(text: &str) -> bool {
    let formed = text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    let iban = text.bytes().take(2).all(|byte| byte.is_ascii_uppercase());
    (8..=34).contains(&text.len()) && formed && (!iban || has_iban_check_digits(text))
}

/// ISO 13616: the first four characters last, letters as 10 to 35, the number modulo 97 is 1.
fn has_iban_check_digits(text: &str) -> bool {
    let (start, rest) = text.split_at_checked(4).unwrap_or((text, ""));
    let digits = rest.chars().chain(start.chars()).map(|character| character.to_digit(36).unwrap_or_default());
    let modulo = digits.fold(0, |sum, digit| if digit < 10 { sum * 10 + digit } else { sum * 100 + digit } % 97);
    modulo == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, account: &str, name: &str) -> Result<Destination, String> {
        let json = serde_json::json!({"kind": kind, "account": account, "name": name});
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_has_its_form_and_its_mask() {
        let table = [
            ("alipay", "mei.lin@example.com", "***@***.com"),
            ("alipay", "a+b@mail.example.co.uk", "***@***.uk"),
            ("alipay", "13800138000", "…8000"),
            ("alipay", "+8613800138000", "…8000"),
            ("paypal", "mei@example.org", "***@***.org"),
            ("bank_account", "6222020200112233", "…2233"),
            ("bank_account", "DE89370400440532013000", "…3000"),
            ("bank_account", "GB82WEST12345698765432", "…5432"),
        ];
        for (kind, account, masked) in table {
            let destination = read(kind, account, "Mei Lin").unwrap();
            assert_eq!(destination.masked().account, masked, "{account}");
            assert_eq!(serde_json::to_value(destination.masked().kind).unwrap(), kind);
            let shown = format!("{destination:?}");
            assert!(!shown.contains(account) && !shown.contains("Mei"), "{shown}");
        }
    }

    #[test]
    fn what_no_provider_could_pay_is_refused_without_being_repeated() {
        let long = format!("{}@example.com", "x".repeat(120));
        let bad_accounts = [
            ("alipay", ""),
            ("alipay", "mei"),
            ("alipay", "1234567"),
            ("alipay", "1234567890123456"),
            ("alipay", "138 0013 8000"),
            ("alipay", "mei@example"),
            ("alipay", "@example.com"),
            ("alipay", "mei@@example.com"),
            ("alipay", "mei@.com"),
            ("alipay", "mei lin@example.com"),
            ("alipay", "mei@example.com\n"),
            ("alipay", &long),
            ("paypal", "13800138000"),
            ("bank_account", "1234567"),
            ("bank_account", "6222 0202 0011 2233"),
            ("bank_account", "de89370400440532013000"),
            ("bank_account", "DE88370400440532013000"),
            ("bank_account", "12345678901234567890123456789012345"),
            ("bank_account", "mei@example.com"),
        ];
        for (kind, account) in bad_accounts {
            let error = read(kind, account, "Mei Lin").unwrap_err();
            assert!(error.starts_with("destination: a"), "{account}: {error}");
            assert!(account.is_empty() || !error.contains(account), "{error}");
        }
        for name in ["", " ", " Mei", "Mei ", "Mei\nLin", &"x".repeat(65)] {
            assert!(read("paypal", "mei@example.com", name).unwrap_err().contains("a name is"), "{name:?}");
        }
        assert!(read("cash", "mei@example.com", "Mei").is_err());
        assert!(read("paypal", "mei@example.com", &"林".repeat(64)).is_ok());
    }

    /// Sealed destinations are read back for as long as there are withdrawals to pay.
    #[test]
    fn its_sealed_form_is_kept() {
        let destination = read("alipay", "mei@example.com", "林美").unwrap();
        let json = r#"{"kind":"alipay","account":"mei@example.com","name":"林美"}"#;
        assert_eq!(destination.to_bytes().as_slice(), json.as_bytes());
        assert_eq!(Destination::from_bytes(json.as_bytes()), Some(destination));
        let longest = read("alipay", &format!("{}@example.com", "x".repeat(116)), &"林".repeat(64)).unwrap();
        assert!(longest.to_bytes().len() <= crate::person_key::CLEAR_MAX);
    }
}
