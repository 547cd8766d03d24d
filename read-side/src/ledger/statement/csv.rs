//! A statement for spreadsheets (RFC 4180): a line for each opening balance, each entry and each closing balance.

use std::{collections::BTreeMap, fmt::Write};

use chrono::{DateTime, SecondsFormat, Utc};

use super::Statement;
use crate::ledger::{self, entries::BookEntry};

const COLUMNS: &str =
    "kind,occurred_at,recorded_at,event,line,event_type,user,account,unit,amount,balance,reference\r\n";

pub(super) fn head(statement: &Statement) -> String {
    let mut text = COLUMNS.to_owned();
    balances(&mut text, "opening", statement.from, &statement.opening);
    text
}

pub(super) fn entry(to: &mut String, entry: &BookEntry, balance: i64) {
    let user = entry.user.map(|user| user.to_string()).unwrap_or_default();
    let BookEntry { event, line, account, unit, amount, event_type, .. } = entry;
    let (occurred_at, recorded_at) = (time(entry.occurred_at), time(entry.recorded_at));
    let reference = field(entry.reference.as_deref().unwrap_or_default());
    let _ = write!(
        to,
        "entry,{occurred_at},{recorded_at},{event},{line},{event_type},{user},{account},{unit},{amount},{balance},{reference}\r\n"
    );
}

pub(super) fn tail(to: &mut String, statement: &Statement) {
    balances(to, "closing", statement.to, &statement.closing);
}

fn balances(to: &mut String, kind: &str, at: Option<DateTime<Utc>>, of: &BTreeMap<String, i64>) {
    for (account, amount) in of {
        let (at, unit) = (at.map(time).unwrap_or_default(), ledger::unit(account));
        let _ = write!(to, "{kind},{at},,,,,,{account},{unit},,{amount},\r\n");
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// A text from outside. What a spreadsheet would take for a formula gets an apostrophe before it.
fn field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_stay_in_their_field() {
        for (text, expected) in [
            ("", ""),
            ("goodwill", "goodwill"),
            ("a, b", "\"a, b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("=1+1", "'=1+1"),
            ("-2,3", "\"'-2,3\""),
        ] {
            assert_eq!(field(text), expected);
        }
    }
}
