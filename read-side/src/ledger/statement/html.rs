//! A statement for people: one page without scripts or anything from elsewhere, which prints well.

use std::{collections::BTreeMap, fmt::Write};

use chrono::{DateTime, SecondsFormat, Utc};

use super::Statement;
use crate::ledger::{self, entries::BookEntry};

/// Heads of columns are repeated on every sheet, and no line is cut in two.
const STYLE: &str = "
@page { size: A4 landscape; margin: 15mm }
body { font: 10pt/1.4 system-ui, sans-serif; color: #000; background: #fff; margin: 2em auto; max-width: 70em; padding: 0 1em }
h1 { font-size: 14pt; margin: 0 0 .5em }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1em; margin: 0 0 1em }
dt { color: #555 } dd { margin: 0 }
table { border-collapse: collapse; width: 100% }
thead { display: table-header-group }
tr { break-inside: avoid }
th, td { text-align: left; padding: .2em .6em .2em 0; border-bottom: 1px solid #ccc; vertical-align: top }
th { border-bottom: 1px solid #000 }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.b td { font-weight: 600 }
@media print { body { margin: 0; max-width: none; padding: 0 } }
";

pub(super) fn head(statement: &Statement) -> String {
    let Statement { account, user, shard, from, to, known_at, entries, .. } = statement;
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Statement</title>\n<style>{STYLE}</style>\n<h1>Statement</h1>\n<dl>\n"
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
    };
    if let Some(account) = account {
        line("Account", account.clone());
    }
    if let Some(user) = user {
        line("User", user.to_string());
    }
    if let Some(shard) = shard {
        line("Shard", shard.to_string());
    }
    line("From", from.map_or_else(|| "the beginning".to_owned(), time));
    line("To, exclusive", to.map_or_else(|| "the end".to_owned(), time));
    if let Some(known_at) = known_at {
        line("As known at", time(*known_at));
    }
    line("Entries", entries.to_string());
    line("Log", ledger::told(&statement.positions).join(", "));
    if !statement.completeness.complete {
        let shards: Vec<_> = statement.completeness.incomplete.iter().map(ToString::to_string).collect();
        line("Not complete", format!("the books may lack something of the shards {}", shards.join(", ")));
    }
    text.push_str(
        "</dl>\n<table>\n<thead><tr><th>Time (UTC)</th><th>What</th><th>About</th><th>Event</th><th>Account</th>\
         <th>Unit</th><th class=\"n\">Amount</th><th class=\"n\">Balance</th></tr></thead>\n<tbody>\n",
    );
    balances(&mut text, "Opening balance", &statement.opening);
    text
}

pub(super) fn entry(to: &mut String, entry: &BookEntry, balance: i64) {
    let BookEntry { event, line, account, unit, amount, event_type, .. } = entry;
    let _ = writeln!(
        to,
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{amount:+}</td><td class=\"n\">{balance}</td></tr>",
        time(entry.occurred_at),
        escaped(event_type),
        escaped(entry.reference.as_deref().unwrap_or_default()),
        escaped(&format!("{event} / {line}")),
        escaped(account),
        escaped(unit),
    );
}

pub(super) fn tail(to: &mut String, statement: &Statement) {
    balances(to, "Closing balance", &statement.closing);
    to.push_str("</tbody>\n</table>\n</html>\n");
}

fn balances(to: &mut String, title: &str, of: &BTreeMap<String, i64>) {
    if of.is_empty() {
        let _ = writeln!(to, "<tr class=\"b\"><td></td><td colspan=\"6\">{title}</td><td class=\"n\">0</td></tr>");
    }
    for (account, amount) in of {
        let (account, unit) = (escaped(account), escaped(&ledger::unit(account)));
        let _ = writeln!(
            to,
            "<tr class=\"b\"><td></td><td colspan=\"3\">{title}</td><td>{account}</td><td>{unit}</td><td></td><td class=\"n\">{amount}</td></tr>"
        );
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_are_text() {
        assert_eq!(escaped("<b onclick='x'>&\""), "&lt;b onclick=&#39;x&#39;&gt;&amp;&quot;");
    }
}
