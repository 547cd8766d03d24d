//! Whether a refusal was right: whether there was a moment between question and answer at which the account was so that
//! the rule says no. That is after at least what had been acknowledged before the question, and at most what was recorded
//! before the answer.

use std::{collections::HashMap, ops::RangeInclusive};

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use skyriff_domain::LogPosition;

use crate::{
    accounts::{Account, Part, Step},
    ask::What,
    history::Entry,
};

/// Of so many spends an account forgets some.
const SPENDS_REMEMBERED: usize = 1_000;

pub fn check(
    entry: &Entry,
    kind: &str,
    account: &Account,
    acknowledged_at: &HashMap<LogPosition, DateTime<Utc>>,
) -> Result<()> {
    let moments = moments(entry, &account.steps, acknowledged_at);
    let left = |part: Option<&Part>, is: &dyn Fn(i64) -> bool| {
        moments.clone().any(|moment| is(part.map_or(0, |part| part.left_after(moment))))
    };
    let was_over = |hold: Option<&Part>| {
        moments.clone().any(|moment| hold.is_some_and(|hold| hold.is_over(moment, entry.answered_at)))
    };
    let right = match (kind, entry.ask.what) {
        ("insufficient-points", What::Spend { .. } | What::Hold { .. }) => {
            moments.clone().any(|moment| account.available_after(moment) < entry.needs)
        }
        ("insufficient-points", What::Tip { points, .. }) => {
            moments.clone().any(|moment| account.not_promo_after(moment) < points)
        }
        // Looked at with its whole batch.
        ("refused-together", _) => entry.together.is_some(),
        ("refused", What::Spend { spend, .. }) => left(account.spends.get(&spend), &|left| left > 0),
        ("refused", What::Hold { hold, .. }) => left(account.holds.get(&hold), &|left| left > 0),
        ("refused", What::Capture { hold, points }) => {
            let hold = account.holds.get(&hold);
            left(hold, &|left| left < points.unwrap_or(1)) || was_over(hold)
        }
        ("refused", What::Release { hold }) => {
            let hold = account.holds.get(&hold);
            left(hold, &|left| left < 1) || was_over(hold)
        }
        ("refused", What::Refund { spend, points }) => {
            left(account.spends.get(&spend), &|left| left < points.unwrap_or(1))
                || account.spends.len() >= SPENDS_REMEMBERED
        }
        _ => false,
    };
    ensure!(right, "was refused ({kind}), and at no moment while it was asked was there a reason");
    Ok(())
}

/// As numbers of steps.
fn moments(
    entry: &Entry,
    steps: &[Step],
    acknowledged_at: &HashMap<LogPosition, DateTime<Utc>>,
) -> RangeInclusive<usize> {
    let known = |step: &Step| acknowledged_at.get(&step.at).is_some_and(|at| *at < entry.sent_at);
    let first = steps.iter().rposition(known).map_or(0, |last| last + 1);
    let last = steps.iter().rposition(|step| step.recorded_at <= entry.answered_at).map_or(0, |last| last + 1);
    first..=last.max(first)
}
