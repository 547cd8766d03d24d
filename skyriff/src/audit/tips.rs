//! The tips that are stored beside the fold of their events, and what stands on the transit account.

use std::collections::HashMap;

use anyhow::Result;
use skyriff_domain::{
    ShardCount, State, StreamId, TipId, UserId,
    ledger::Account,
    shard_of,
    tip::{Terms, Tip, receipt::Answer},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Fold, Folded, Report};
use crate::config::Place;

/// Tip, direction, user, other, points, share, work, state, whether there is a reason.
type Row = (Uuid, String, Uuid, Uuid, i64, i64, Option<Uuid>, String, bool);

/// What stands on transit is what receivers were credited with less what senders have paid: nothing when no tip is under
/// way. The two ends of a tip must not contradict each other.
pub(super) fn check_transit(fold: &Fold, report: &mut Report) {
    let mut expected = 0_i64;
    for (stream, folded) in &fold.streams {
        match (stream, &folded.state) {
            (StreamId::Tip(id), State::Tip(tip)) => {
                let answer = match fold.streams.get(&StreamId::TipReceipt(*id)).map(|folded| &folded.state) {
                    Some(State::TipReceipt(receipt)) => receipt.answer(),
                    Some(_) | None => None,
                };
                let points = tip.terms().map_or(0, |terms| terms.points.get());
                report.tips_under_way += u64::from(matches!(tip, Tip::Offered(_)));
                if matches!(tip, Tip::Delivered(_)) {
                    expected += points;
                }
                // The other way round is a tip under way. So is one whose receipt is in a database that was read first.
                let contradicts = matches!(
                    (tip, answer),
                    (Tip::Delivered(_), Some((_, Answer::Declined))) | (Tip::Returned(_), Some((_, Answer::Credited)))
                );
                let differs = answer.is_some_and(|(terms, _)| tip.terms() != Some(terms));
                if contradicts || differs {
                    report.wrong(format!("tip {id} and its receipt contradict each other"));
                }
            }
            (StreamId::TipReceipt(_), State::TipReceipt(receipt)) => {
                if let Some((terms, Answer::Credited)) = receipt.answer() {
                    expected -= terms.points.get();
                }
            }
            _ => {}
        }
    }
    let transit = fold.ledger.get(&Account::Transit.to_string()).copied().unwrap_or_default();
    if transit != expected {
        report.wrong(format!("{transit} points stand on transit, and the tips under way come to {expected}"));
    }
}

/// One read database: every tip of its users, from their side.
pub(super) async fn compare(
    connection: &mut PgConnection,
    place: &Place,
    streams: &HashMap<StreamId, Folded>,
    shard_count: ShardCount,
    report: &mut Report,
) -> Result<()> {
    let mut folded = HashMap::new();
    let mut expect = |tip: TipId, direction, user: UserId, other: UserId, terms: &Terms, state: &'static str| {
        if place.shards.contains(&shard_of(user, shard_count)) {
            let work = terms.work.map(|work| work.0);
            let (points, share) = (terms.points.get(), terms.share.get());
            folded.insert((tip.0, direction), (user.0, other.0, points, share, work, state, state == "returned"));
        }
    };
    for (stream, folded) in streams {
        if let (StreamId::Tip(tip), State::Tip(state)) = (stream, &folded.state)
            && let Some(terms) = state.terms()
        {
            let state = match state {
                Tip::Nothing | Tip::Offered(_) => "offered",
                Tip::Delivered(_) => "delivered",
                Tip::Returned(_) => "returned",
            };
            expect(*tip, "sent", terms.from, terms.to, terms, state);
        }
        if let (StreamId::TipReceipt(tip), State::TipReceipt(receipt)) = (stream, &folded.state)
            && let Some((terms, answer)) = receipt.answer()
        {
            let state = match answer {
                Answer::Credited => "delivered",
                Answer::Declined => "returned",
            };
            expect(*tip, "received", terms.to, terms.from, terms, state);
        }
    }
    let stored: Vec<Row> = sqlx::query_as(
        "SELECT tip_id, direction, user_id, other_id, points, share, work_id, state, reason IS NOT NULL FROM tips",
    )
    .fetch_all(connection)
    .await?;
    for (tip, direction, user, other, points, share, work, state, has_reason) in stored {
        let direction = if direction == "sent" { "sent" } else { "received" };
        match folded.remove(&(tip, direction)) {
            None => report.wrong(format!("tip {tip} is stored as {direction} and has no event that says so")),
            Some(folded) if folded != (user, other, points, share, work, state.as_str(), has_reason) => {
                report.wrong(format!("tip {tip}, as {direction}, is not the fold of its events"));
            }
            Some(_) => {}
        }
    }
    for (tip, direction) in folded.keys() {
        report.wrong(format!("tip {tip} is {direction}, and no row says so"));
    }
    Ok(())
}
