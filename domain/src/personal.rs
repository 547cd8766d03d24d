//! What of an event says something about a person that figures do not need: free words, sealed texts, who decided, and
//! what a payment provider calls a payout. Whoever reads events to count and compare them gets them without.
//!
//! One table. Each event names all of its members, so that neither a new event nor a new member compiles until somebody
//! has decided here whether it is personal. The ids of users are not: they are random, and streams are found by them.

use crate::{
    Event, erasure, like, points_account, recharge_order,
    reconciliation::{exception, run},
    tip,
    tip::Terms,
    video_job,
    video_job::{Order, Output},
    withdrawal,
    withdrawal::Request,
    work,
};

/// Members of an event's payload, below the one that is named after the event; a dot leads into a member.
pub type Members = &'static [&'static str];

const NONE: Members = &[];

impl Event {
    /// The members that are personal; the same for every event of its type.
    pub const fn personal(&self) -> Members {
        match self {
            Self::PointsAccount(event) => of_points_account(event),
            Self::RechargeOrder(recharge_order::Event::Credited { user: _, points: _ }) => NONE,
            Self::Like(like::Event::Liked {} | like::Event::Unliked {}) => NONE,
            Self::Tip(event) => match event {
                tip::Event::Offered(terms) => of_terms(terms),
                tip::Event::Delivered {} => NONE,
                tip::Event::Returned { reason: _ } => &["reason"],
            },
            Self::TipReceipt(event) => match event {
                tip::receipt::Event::Credited(terms) => of_terms(terms),
                tip::receipt::Event::Declined { terms: _, reason: _ } => &["reason"],
            },
            Self::Withdrawal(event) => of_withdrawal(event),
            Self::WithdrawalAllowance(event) => match event {
                withdrawal::allowance::Event::Used { withdrawal: _, day: _, points: _ }
                | withdrawal::allowance::Event::GivenBack { withdrawal: _ }
                | withdrawal::allowance::Event::Closed { withdrawal: _ } => NONE,
            },
            Self::VideoJob(event) => of_video_job(event),
            Self::VideoSlots(event) => match event {
                video_job::slots::Event::Taken { job: _ } | video_job::slots::Event::Freed { job: _ } => NONE,
            },
            Self::Work(event) => match event {
                work::Event::Published { creator: _, job: _, title: _, words: _, visibility: _ } => &["title", "words"],
                work::Event::Unpublished {} => NONE,
            },
            Self::Erasure(erasure::Event::Erased { asked_by: _, reference: _ }) => NONE,
            Self::Reconciliation(event) => match event {
                run::Event::Started(run::File { kind: _, provider: _, from: _, to: _, sha256: _, lines: _ }) => NONE,
                run::Event::Finished(run::Counts {
                    matched: _,
                    missing_in_ledger: _,
                    missing_in_file: _,
                    different: _,
                    repeated: _,
                    explained: _,
                }) => NONE,
            },
            Self::ReconciliationException(event) => of_exception(event),
        }
    }
}

const fn of_points_account(event: &points_account::Event) -> Members {
    use points_account::Event::{
        Adjusted, Captured, CheckedIn, Earned, Expired, Held, PaidOut, PayoutReturned, PayoutStarted, Recharged,
        Refunded, Released, Spent, TipPaid, TipReceived,
    };
    match event {
        CheckedIn { day: _, days_in_a_row: _, points: _, expires_at: _ }
        | Earned { credited: _, reason: _ }
        | Recharged { order: _, points: _ }
        | Spent { spend: _, taken: _, product: _, refundable_until: _, revenue: _ }
        | Held { hold: _, taken: _, reason: _, expires_at: _ }
        | Captured { hold: _, taken: _, revenue: _ }
        | Released { hold: _, returned: _, cause: _ }
        | Refunded { spend: _, returned: _, revenue: _ }
        | Expired { lots: _ }
        | TipPaid { tip: _, to: _, taken: _ }
        | TipReceived { tip: _, from: _, income: _, share: _ }
        | PayoutStarted { withdrawal: _, taken: _ }
        | PaidOut { withdrawal: _, points: _, fee: _ }
        | PayoutReturned { withdrawal: _, returned: _ } => NONE,
        Adjusted { direction: _, moved: _, reason: _, words: _ } => &["reason", "words"],
    }
}

const fn of_exception(event: &exception::Event) -> Members {
    use exception::{
        Event::{Explained, Found, Resolved},
        Figures,
    };
    match event {
        Found(exception::Found {
            kind: _,
            provider: _,
            run: _,
            subject: _,
            user: _,
            difference: _,
            ours: Some(Figures { amount: _, currency: _, status: _, reference: _ }) | None,
            theirs: Some(Figures { amount: _, currency: _, status: _, reference: _ }) | None,
            line: _,
            at: _,
        }) => &["ours.reference", "theirs.reference"],
        Explained { run: _ } => NONE,
        Resolved { operator: _, outcome: _, reason: _, words: _ } => &["operator", "reason", "words"],
    }
}

const fn of_terms(Terms { from: _, to: _, points: _, share: _, work: _ }: &Terms) -> Members {
    NONE
}

const fn of_withdrawal(event: &withdrawal::Event) -> Members {
    use withdrawal::Event::{Approved, AttentionNeeded, Cancelled, Failed, Paid, PayoutStarted, Rejected, Requested};
    match event {
        Requested(Request { user: _, points: _, fee: _, money: _, destination: _, reviews_needed: _ }) => {
            &["destination"]
        }
        Approved { reviewer: _ } => &["reviewer"],
        Rejected { reviewer: _, reason: _, words: _ } => &["reviewer", "reason", "words"],
        Cancelled {} | PayoutStarted { provider: _ } => NONE,
        Paid { reference: _ } => &["reference"],
        Failed { reason: _, words: _ } => &["reason", "words"],
        AttentionNeeded { reason: _ } => &["reason"],
    }
}

const fn of_video_job(event: &video_job::Event) -> Members {
    use video_job::Event::{AttemptFailed, Cancelled, Expired, Failed, Leased, Submitted, Succeeded};
    match event {
        Submitted(Order {
            user: _,
            kind: _,
            seconds: _,
            resolution: _,
            voice: _,
            provider: _,
            prompt: _,
            priority: _,
            per_second: _,
        }) => &["prompt"],
        Leased { attempt: _, worker: _, provider: _ } | Cancelled {} | Expired {} => NONE,
        // Where it lies, and what it can be recognised by.
        Succeeded {
            attempt: _,
            output: Output { object: _, seconds: _, bytes: _, sha256: _, content_type: _ },
            used: _,
            cost: _,
        } => &["output.object", "output.sha256"],
        // A provider's words, which may quote the prompt.
        AttemptFailed { attempt: _, reason: _, words: _, retry_at: _, cost: _ }
        | Failed { attempt: _, reason: _, words: _, retryable: _, cost: _ } => &["reason", "words"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StreamId;

    const ID: &str = "00000000-0000-0000-0000-000000000001";

    fn personal(stream: &str, event_type: &str, payload: &str) -> Members {
        let stream = StreamId::decode(stream, ID).unwrap();
        Event::decode(&stream, event_type, "1", payload).unwrap().personal()
    }

    #[test]
    fn the_members_are_ones_that_the_stored_event_has() {
        let order = format!(
            r#""user":"{ID}","kind":"text_to_video","seconds":5,"prompt":"c2VjcmV0","priority":1,"per_second":2"#
        );
        let table = [
            ("points_account", "adjusted", r#"{"adjusted":{"direction":"credit","moved":{"paid":5},"reason":"why","words":"c2VjcmV0"}}"#.to_owned()),
            ("tip", "returned", r#"{"returned":{"reason":"why"}}"#.to_owned()),
            ("withdrawal", "rejected", format!(r#"{{"rejected":{{"reviewer":"{ID}","reason":"why","words":"c2VjcmV0"}}}}"#)),
            ("withdrawal", "approved", format!(r#"{{"approved":{{"reviewer":"{ID}"}}}}"#)),
            ("withdrawal", "paid", r#"{"paid":{"reference":"po_1"}}"#.to_owned()),
            ("withdrawal", "failed", r#"{"failed":{"reason":"why","words":"c2VjcmV0"}}"#.to_owned()),
            (
                "withdrawal",
                "requested",
                format!(
                    r#"{{"requested":{{"user":"{ID}","points":5,"fee":1,"money":{{"minor":4,"currency":"cny"}},"destination":"c2VjcmV0","reviews_needed":0}}}}"#
                ),
            ),
            ("reconciliation_exception", "resolved", format!(r#"{{"resolved":{{"operator":"{ID}","outcome":"accepted","reason":"why","words":"c2VjcmV0"}}}}"#)),
            (
                "reconciliation_exception",
                "found",
                format!(
                    r#"{{"found":{{"kind":"payouts","provider":"acme","run":"{ID}","subject":"{ID}","difference":"reference","ours":{{"amount":1,"status":"paid","reference":"a"}},"theirs":{{"amount":1,"status":"paid","reference":"b"}}}}}}"#
                ),
            ),
            ("video_job", "submitted", format!(r#"{{"submitted":{{{order}}}}}"#)),
            (
                "video_job",
                "succeeded",
                r#"{"succeeded":{"attempt":1,"output":{"object":"a/b","seconds":1,"bytes":2,"sha256":"c","content_type":"video/mp4"},"used":5,"cost":{"micros":1,"currency":"usd"}}}"#.to_owned(),
            ),
            ("work", "published", format!(r#"{{"published":{{"creator":"{ID}","title":"mine","words":"c2VjcmV0","visibility":"public"}}}}"#)),
        ];
        for (stream, event_type, payload) in table {
            let members = personal(stream, event_type, &payload);
            assert!(!members.is_empty(), "{stream}.{event_type}");
            let stored: serde_json::Value = serde_json::from_str(&payload).unwrap();
            for member in members {
                let place = format!("/{event_type}/{}", member.replace('.', "/"));
                assert!(stored.pointer(&place).is_some(), "{stream}.{event_type} has no {member}");
            }
        }
    }
}
