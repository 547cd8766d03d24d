//! Compares the log with what the clients were told.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use skyriff_domain::LogPosition;
use uuid::Uuid;

use crate::{
    accounts::Account,
    ask::What,
    history::{Entry, Outcome},
    log::{Log, Recorded},
    refusals,
};

/// So many violations are told; that there are more is counted.
const TOLD_MAX: usize = 3;

pub fn check(log: &Log, history: &[Entry]) -> Result<()> {
    let mut violations = Vec::new();
    let mut note = |checked: Result<()>| violations.extend(checked.err().map(|error| format!("{error:#}")));

    let acknowledged_at: HashMap<_, _> = history.iter().flat_map(acknowledged).collect();
    let nothing = Recorded::default();
    let mut found = 0;
    let mut together: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in history {
        let recorded = log.by_command.get(&entry.command_id).unwrap_or(&nothing);
        found += usize::from(!recorded.positions.is_empty());
        let account = log.accounts.get(&entry.ask.user);
        note(one(entry, recorded, account, &acknowledged_at).with_context(|| format!("{entry:?}")));
        if let Some(batch) = &entry.together {
            together.entry(batch).or_default().push(entry);
        }
    }
    for (batch, entries) in together {
        let recorded: Vec<_> = entries.iter().filter_map(|entry| log.by_command.get(&entry.command_id)).collect();
        note(all_or_nothing(&entries, &recorded).with_context(|| format!("atomic batch {batch}: {entries:?}")));
    }
    ensure!(
        violations.is_empty(),
        "{} violations: {:#?}",
        violations.len(),
        violations.iter().take(TOLD_MAX).collect::<Vec<_>>()
    );
    ensure!(found == log.by_command.len(), "the log has commands that nobody sent");
    ensure!(log.transit == 0, "{} points stand on transit, and nothing is under way", log.transit);
    let ended = |tip: &&Uuid| log.tips.get(*tip).is_some_and(|steps| steps == &["offered", "delivered"]);
    let stuck: Vec<_> = log.tips.keys().filter(|tip| !ended(tip)).collect();
    // Nobody's account is ever full here, so none goes back.
    ensure!(stuck.is_empty(), "{} tips did not arrive, such as {:?}", stuck.len(), stuck.first());
    Ok(())
}

fn acknowledged(entry: &Entry) -> Vec<(LogPosition, DateTime<Utc>)> {
    match &entry.outcome {
        Outcome::Ok(positions) => positions.iter().map(|at| (*at, entry.answered_at)).collect(),
        Outcome::Refused(_) | Outcome::Fault(_) | Outcome::Unknown => Vec::new(),
    }
}

fn one(
    entry: &Entry,
    recorded: &Recorded,
    account: Option<&Account>,
    acknowledged_at: &HashMap<LogPosition, DateTime<Utc>>,
) -> Result<()> {
    let at = &recorded.positions;
    if let Some(contradiction) = &entry.contradiction {
        bail!("was answered in two ways: {contradiction}; the log has {at:?}");
    }
    ensure!(
        at.is_empty() || recorded.own == entry.ask.what.events(entry.ask.user),
        "records {} events, and the log has {recorded:?}",
        entry.ask.what.events(entry.ask.user)
    );
    match &entry.outcome {
        // What happens on the receiver's account is not told.
        Outcome::Ok(told) if matches!(entry.ask.what, What::Tip { .. }) => {
            let all_there = told.iter().all(|told| at.contains(told));
            ensure!(all_there && !told.is_empty(), "was told {told:?}, and the log has {at:?}");
        }
        Outcome::Ok(told) => ensure!(told == at && !at.is_empty(), "was told {told:?}, and the log has {at:?}"),
        Outcome::Refused(kind) => {
            ensure!(at.is_empty(), "was refused, and the log has {at:?}");
            refusals::check(entry, kind, account.unwrap_or(&Account::default()), acknowledged_at)?;
        }
        Outcome::Fault(what) => bail!("was answered with a fault: {what}"),
        Outcome::Unknown => ensure!(
            at.is_empty() || entry.maybe_recorded,
            "was told each time that nothing was recorded, and the log has {at:?}"
        ),
    }
    Ok(())
}

fn all_or_nothing(entries: &[&Entry], recorded: &[&Recorded]) -> Result<()> {
    ensure!(
        recorded.is_empty() || recorded.len() == entries.len(),
        "{} of {} commands are in the log",
        recorded.len(),
        entries.len()
    );
    let positions: Vec<_> = recorded.iter().flat_map(|recorded| &recorded.positions).collect();
    for pair in positions.windows(2) {
        let follows = pair[0].shard == pair[1].shard && pair[0].position.0 + 1 == pair[1].position.0;
        ensure!(follows, "{} comes after {}", pair[1], pair[0]);
    }
    let refused = |entry: &&&Entry| entry.is_refused();
    let because = |entry: &&Entry| matches!(&entry.outcome, Outcome::Refused(kind) if kind != "refused-together");
    ensure!(
        entries.iter().filter(refused).count() == 0 || entries.iter().any(because),
        "all were refused because of the others"
    );
    Ok(())
}
