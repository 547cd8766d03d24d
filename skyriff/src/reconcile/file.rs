//! Files of providers: CSV (RFC 4180, UTF-8), strictly. A file that has anything else in it is refused as a whole, naming the
//! line, before anything is recorded: half a file would look as if the other half had never been paid.
//!
//! Of payouts, `withdrawal,reference,amount_minor,currency,status,at`:
//!
//! | column | what it holds |
//! |---|---|
//! | `withdrawal` | the withdrawal's id, which the provider was given as the idempotency key |
//! | `reference` | what the provider calls the payment; may be empty when it has not paid |
//! | `amount_minor` | how much, in the currency's smallest unit |
//! | `currency` | ISO 4217, in small letters |
//! | `status` | `paid`, `pending` or `declined` |
//! | `at` | when that was said, RFC 3339 |
//!
//! Of recharges, `order,points,status,at`:
//!
//! | column | what it holds |
//! |---|---|
//! | `order` | the order's id |
//! | `points` | how many points were bought with it |
//! | `status` | `paid`, `pending`, `failed` or `refunded` |
//! | `at` | when that was said, RFC 3339 |
//!
//! A header first, in these words. Lines end with LF or CRLF; texts may be quoted, and have no line feeds in them.

use std::{collections::HashSet, fs::File as Opened, io::Read, path::Path};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, NaiveDate, Utc};
use sha2::{Digest, Sha256};
use skyriff_domain::{
    Label, Reference,
    reconciliation::{
        Kind,
        exception::{Figures, PAID},
    },
};
use uuid::Uuid;

/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1_024 * 1_024;
/// Lines of a file, the header not counted.
const LINES_MAX: u64 = 1_000_000;
/// The longest line, in bytes.
const LINE_BYTES_MAX: usize = 1_024;
/// The largest amount: whatever is more is a mistake.
const AMOUNT_MAX: i64 = 1_000_000_000_000_000;

/// A file that is in order, in memory.
pub struct Checked {
    kind: Kind,
    bytes: Vec<u8>,
    /// Of the bytes, in hexadecimal digits.
    pub sha256: Label,
    /// How many lines it has, the header not counted.
    pub lines: u64,
    /// What it is about.
    pub subjects: HashSet<Uuid>,
    /// What it has more than once.
    pub repeated: HashSet<Uuid>,
    /// The first and the last day of its lines; none when it has no line.
    pub days: Option<(NaiveDate, NaiveDate)>,
}

/// One payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Of the file, from 1, the header counted.
    pub number: u64,
    /// The withdrawal or the order.
    pub subject: Uuid,
    pub figures: Figures,
    /// When the provider said that.
    pub at: DateTime<Utc>,
}

impl Line {
    /// Whether the provider says that money has moved.
    pub fn is_paid(&self) -> bool {
        self.figures.status.as_str() == PAID
    }
}

const fn header(kind: Kind) -> &'static str {
    match kind {
        Kind::Payouts => "withdrawal,reference,amount_minor,currency,status,at",
        Kind::Recharges => "order,points,status,at",
    }
}

const fn statuses(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Payouts => &[PAID, "pending", "declined"],
        Kind::Recharges => &[PAID, "pending", "failed", "refunded"],
    }
}

/// Read a file and look at every line of it.
pub fn check(kind: Kind, path: &Path) -> Result<Checked> {
    let name = || path.display().to_string();
    let file = Opened::open(path).with_context(name)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(name)?;
    of_bytes(kind, bytes).with_context(name)
}

fn of_bytes(kind: Kind, bytes: Vec<u8>) -> Result<Checked> {
    ensure!(u64::try_from(bytes.len())? <= FILE_BYTES_MAX, "a file has at most {FILE_BYTES_MAX} bytes");
    let digits: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let (mut subjects, mut repeated, mut lines, mut days) = (HashSet::new(), HashSet::new(), 0, None);
    for line in parse(kind, &bytes)? {
        let line = line?;
        lines += 1;
        ensure!(lines <= LINES_MAX, "line {}: a file has at most {LINES_MAX} lines", line.number);
        if !subjects.insert(line.subject) {
            repeated.insert(line.subject);
        }
        let day = line.at.date_naive();
        days = days.map_or(Some((day, day)), |(first, last)| Some((day.min(first), day.max(last))));
    }
    Ok(Checked { kind, bytes, sha256: digits.parse()?, lines, subjects, repeated, days })
}

impl Checked {
    /// Its lines; all of them are in order.
    pub fn lines(&self) -> Result<impl Iterator<Item = Result<Line>>> {
        parse(self.kind, &self.bytes)
    }
}

fn parse(kind: Kind, bytes: &[u8]) -> Result<impl Iterator<Item = Result<Line>>> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').map(|line| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    });
    let first = lines.next().unwrap_or_default();
    ensure!(first == header(kind).as_bytes(), "line 1: the header is {:?}", header(kind));
    let numbered = (2_u64..).zip(lines);
    Ok(numbered.map(move |(number, line)| of_line(kind, number, line).with_context(|| format!("line {number}"))))
}

fn of_line(kind: Kind, number: u64, line: &[u8]) -> Result<Line> {
    ensure!(line.len() <= LINE_BYTES_MAX, "it has more than {LINE_BYTES_MAX} bytes");
    let fields = fields(std::str::from_utf8(line).context("it is not UTF-8")?)?;
    let wanted = header(kind).split(',').count();
    ensure!(fields.len() == wanted, "it has {} fields, and {wanted} are asked for", fields.len());
    let mut fields = fields.into_iter();
    let mut next = || fields.next().unwrap_or_default();
    let subject = id(&next())?;
    let figures = match kind {
        Kind::Payouts => {
            let reference = Some(next()).filter(|text| !text.is_empty());
            let reference = reference.map(Reference::try_from).transpose().context("reference")?;
            let amount = amount(&next()).context("amount_minor")?;
            let currency = currency(&next())?;
            let status = status(kind, &next())?;
            ensure!(status.as_str() != PAID || reference.is_some(), "what is paid has a reference");
            Figures { amount, currency: Some(currency), status, reference }
        }
        Kind::Recharges => {
            let amount = amount(&next()).context("points")?;
            Figures { amount, currency: None, status: status(kind, &next())?, reference: None }
        }
    };
    let at = next();
    let at =
        DateTime::parse_from_rfc3339(&at).with_context(|| format!("at: {at:?} is no time as in RFC 3339"))?.to_utc();
    Ok(Line { number, subject, figures, at })
}

/// In the one form that we write ids in, so that nothing is taken for what it only resembles.
fn id(text: &str) -> Result<Uuid> {
    let id: Uuid = text.parse().with_context(|| format!("{text:?} is no UUID"))?;
    ensure!(id.to_string() == text, "{text:?} is not as ids are written: small letters, with hyphens");
    Ok(id)
}

fn amount(text: &str) -> Result<i64> {
    let formed =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let amount = text.parse().ok().filter(|amount| formed && (0..=AMOUNT_MAX).contains(amount));
    amount.with_context(|| format!("{text:?} is no whole number from 0 to {AMOUNT_MAX}"))
}

fn currency(text: &str) -> Result<Label> {
    let formed = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_lowercase());
    ensure!(formed, "currency: {text:?} is not three small letters");
    Ok(text.parse()?)
}

fn status(kind: Kind, text: &str) -> Result<Label> {
    let known = statuses(kind);
    ensure!(known.contains(&text), "status: {text:?} is none of {}", known.join(", "));
    Ok(text.parse()?)
}

/// The fields of one line.
fn fields(line: &str) -> Result<Vec<String>> {
    let (mut fields, mut rest) = (Vec::new(), line);
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, after) = rest.split_at(end);
                ensure!(!field.contains('"'), "a quote stands inside of a text that does not begin with one");
                (field.to_owned(), after)
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() => return Ok(fields),
            None => bail!("something follows the end of a quoted text"),
        }
    }
}

/// What is between the quotes, and what comes after the second.
fn quoted_field(quoted: &str) -> Result<(String, &str)> {
    let (mut field, mut rest) = (String::new(), quoted);
    loop {
        let (before, after) = rest.split_once('"').context("a quoted text does not end")?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Ok((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "959de6e1-d9ef-5a29-a884-f19f971b9c27";

    fn read(kind: Kind, text: &str) -> Result<Vec<Line>, String> {
        let checked = of_bytes(kind, text.as_bytes().to_vec()).map_err(|error| format!("{error:#}"))?;
        Ok(checked.lines().unwrap().map(Result::unwrap).collect())
    }

    #[test]
    fn lines_are_read_as_they_are_meant() {
        let text = format!(
            "withdrawal,reference,amount_minor,currency,status,at\r\n{ID},po_1,9900,cny,paid,2026-01-01T00:00:00Z\r\n\
             \"{ID}\",\"a\"\"b\",0,usd,pending,2026-01-01T00:00:00.5+08:00\n{ID},,1,cny,declined,2026-01-01T00:00:00Z"
        );
        let lines = read(Kind::Payouts, &text).unwrap();
        let told: Vec<_> = lines
            .iter()
            .map(|line| {
                let Figures { amount, status, reference, .. } = &line.figures;
                (line.number, *amount, status.as_str(), reference.as_ref().map(Reference::as_str), line.is_paid())
            })
            .collect();
        let expected = [
            (2, 9_900, "paid", Some("po_1"), true),
            (3, 0, "pending", Some("a\"b"), false),
            (4, 1, "declined", None, false),
        ];
        assert_eq!(told, expected);
        let lines = read(Kind::Recharges, &format!("order,points,status,at\n{ID},60,refunded,2026-01-01T00:00:00Z\n"));
        assert_eq!(lines.unwrap()[0].figures.amount, 60);
        assert_eq!(read(Kind::Recharges, "order,points,status,at\n"), Ok(vec![]));
        let checked = of_bytes(Kind::Payouts, text.into_bytes()).unwrap();
        assert_eq!((checked.lines, checked.subjects.len(), checked.repeated.len()), (3, 1, 1));
        assert_eq!(checked.sha256.as_str().len(), 64);
    }

    #[test]
    fn what_is_not_in_order_is_refused_with_its_line() {
        let at = "2026-01-01T00:00:00Z";
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let table = [
            (String::new(), "line 1: the header is"),
            ("order,points,status\n".to_owned(), "line 1: the header is"),
            ("\u{feff}order,points,status,at\n".to_owned(), "line 1: the header is"),
            (format!("{ID},60,paid"), "line 2: it has 3 fields"),
            (format!("{ID},60,paid,{at},x"), "line 2: it has 5 fields"),
            (format!("{ID},60,paid,{at}\n\n"), "line 3: it has 1 fields"),
            (format!("mine,60,paid,{at}"), "\"mine\" is no UUID"),
            (format!("{},60,paid,{at}", ID.to_uppercase()), "small letters"),
            (format!("{ID},6O,paid,{at}"), "points: \"6O\" is no whole number"),
            (format!("{ID},-1,paid,{at}"), "is no whole number"),
            (format!("{ID},+1,paid,{at}"), "is no whole number"),
            (format!("{ID},01,paid,{at}"), "is no whole number"),
            (format!("{ID},1.00,paid,{at}"), "is no whole number"),
            (format!("{ID},99999999999999999999,paid,{at}"), "is no whole number"),
            (format!("{ID},1,Paid,{at}"), "status: \"Paid\" is none of paid, pending, failed, refunded"),
            (format!("{ID},1,paid,yesterday"), "at: \"yesterday\" is no time"),
            (format!("\"{ID},1,paid,{at}"), "a quoted text does not end"),
            (format!("\"{ID}\"x,1,paid,{at}"), "something follows"),
            (format!("{ID},1,paid,{at}\n{ID},1\"1,paid,{at}"), "line 3: a quote"),
            (long, "more than 1024 bytes"),
        ];
        for (text, because) in table {
            let text = if text.contains("points") || text.is_empty() {
                text
            } else {
                format!("order,points,status,at\n{text}")
            };
            let error = read(Kind::Recharges, &text).unwrap_err();
            assert!(error.contains(because), "{text:?}: {error}");
        }
        let mut bytes = format!("order,points,status,at\n{ID},1,paid,").into_bytes();
        bytes.push(0xff);
        assert!(format!("{:#}", of_bytes(Kind::Recharges, bytes).err().unwrap()).contains("line 2: it is not UTF-8"));
        let header = "withdrawal,reference,amount_minor,currency,status,at";
        for (line, because) in [
            (format!("{ID},,1,cny,paid,{at}"), "what is paid has a reference"),
            (format!("{ID},a b,1,cny,paid,{at}"), "reference: a reference is"),
            (format!("{ID},a,1,CNY,paid,{at}"), "currency: \"CNY\""),
            (format!("{ID},a,1,cny,refunded,{at}"), "status: \"refunded\""),
        ] {
            let error = read(Kind::Payouts, &format!("{header}\n{line}\n")).unwrap_err();
            assert!(error.contains(because), "{line:?}: {error}");
        }
    }
}
