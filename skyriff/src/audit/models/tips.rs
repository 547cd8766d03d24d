//! Every tip of the shard's users, from their side.

use std::collections::HashMap;

use anyhow::Result;
use skyriff_domain::{
    State, StreamId, TipId, UserId,
    tip::{Terms, Tip, receipt::Answer},
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{super::fold::Shard, number};

/// Tip, direction, user, other, points, share, work, state, whether there is a reason.
type Row = (Uuid, String, Uuid, Uuid, i64, i64, Option<Uuid>, String, bool);

pub(super) async fn compare(connection: &mut PgConnection, shard: &mut Shard) -> Result<()> {
    let mut folded = HashMap::new();
    let mut expect = |tip: TipId, direction, user: UserId, other: UserId, terms: &Terms, state: &'static str| {
        let work = terms.work.map(|work| work.0);
        let (points, share) = (terms.points.get(), terms.share.get());
        folded.insert((tip.0, direction), (user.0, other.0, points, share, work, state, state == "returned"));
    };
    for (stream, folded) in &shard.streams {
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
        "SELECT tip_id, direction, user_id, other_id, points, share, work_id, state, reason IS NOT NULL FROM tips
         WHERE shard = $1",
    )
    .bind(number(shard.id)?)
    .fetch_all(connection)
    .await?;
    for (tip, direction, user, other, points, share, work, state, has_reason) in stored {
        let direction = if direction == "sent" { "sent" } else { "received" };
        match folded.remove(&(tip, direction)) {
            None => {
                shard.findings.of(shard.id, format!("tip {tip} is stored as {direction} and has no event that says so"))
            }
            Some(folded) if folded != (user, other, points, share, work, state.as_str(), has_reason) => {
                shard.findings.of(shard.id, format!("tip {tip}, as {direction}, is not the fold of its events"));
            }
            Some(_) => {}
        }
    }
    for (tip, direction) in folded.keys() {
        shard.findings.of(shard.id, format!("tip {tip} is {direction}, and no row says so"));
    }
    Ok(())
}
