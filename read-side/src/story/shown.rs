//! The event, and who asked for it, as an auditor sees them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use skyriff_domain::{Event, Metadata, points_account, reconciliation::exception, video_job, withdrawal, work};
use skyriff_proof::Hash;
use utoipa::ToSchema;

use super::course::Row;

/// An event as the log has it.
#[derive(Serialize, ToSchema)]
pub(super) struct StoredEvent {
    #[schema(example = "3:1042")]
    position: String,
    #[schema(example = "withdrawal/00000000-0000-0000-0000-000000000001")]
    stream: String,
    /// Which of the stream's events, from 1.
    sequence: i64,
    #[schema(example = "withdrawal.requested")]
    r#type: String,
    version: String,
    /// When it happened in the world.
    occurred_at: DateTime<Utc>,
    /// When the database recorded it.
    recorded_at: DateTime<Utc>,
    /// The event's members. Personal ones are null, and `{"sealed": true}` where a person's key is needed to read them.
    #[schema(value_type = Object)]
    data: Value,
    /// The members that are left out of `data`; a dot leads into a member.
    masked: Vec<&'static str>,
    /// The leaf of the shard's tree: the hash of every column of the row, in base64.
    leaf: String,
}

/// Who asked for the command that recorded it.
#[derive(Serialize, ToSchema)]
pub(super) struct Asker {
    /// The role, and who: a user, a service, a process.
    #[schema(example = "user:959de6e1-d9ef-5a29-a884-f19f971b9c27")]
    actor: String,
    command: String,
    /// The HTTP request, as in its answer's `X-Request-Id`.
    request: String,
    /// The event that made a process ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "3:1041")]
    caused_by: Option<String>,
    /// The trace of the request (W3C trace context).
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    /// The network that the request came from; of events from before this was kept, and of processes, there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "203.0.113.0/24")]
    address: Option<String>,
}

/// It is not as we write them.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotShown {
    #[error("the payload or metadata of a stored event is damaged")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    TooLong(#[from] skyriff_proof::leaf::TooLong),
}

impl StoredEvent {
    pub(super) fn of(row: &Row, event: &Event) -> Result<Self, NotShown> {
        let mut payload: Value = serde_json::from_str(&row.payload)?;
        let mut data = payload.get_mut(&row.event_type).map(Value::take).unwrap_or_default();
        let masked: Vec<_> = event.personal().iter().copied().filter(|member| mask(&mut data, member, event)).collect();
        let leaf: Hash = row.as_stored().leaf()?;
        Ok(Self {
            position: row.at().to_string(),
            stream: format!("{}/{}", row.aggregate_type, row.aggregate_id),
            sequence: row.sequence,
            r#type: row.r#type(),
            version: row.event_version.clone(),
            occurred_at: row.occurred_at,
            recorded_at: row.recorded_at,
            data,
            masked,
            leaf: leaf.to_string(),
        })
    }
}

/// Whether the event has the member.
fn mask(data: &mut Value, member: &str, event: &Event) -> bool {
    let place = format!("/{}", member.replace('.', "/"));
    let Some(value) = data.pointer_mut(&place) else { return false };
    *value = if sealed(event) == Some(member) { json!({ "sealed": true }) } else { Value::Null };
    true
}

/// The member that only a person's key opens.
const fn sealed(event: &Event) -> Option<&'static str> {
    match event {
        Event::Withdrawal(withdrawal::Event::Requested(_)) => Some("destination"),
        Event::VideoJob(video_job::Event::Submitted(_)) => Some("prompt"),
        Event::PointsAccount(points_account::Event::Adjusted { .. })
        | Event::Withdrawal(withdrawal::Event::Rejected { .. } | withdrawal::Event::Failed { .. })
        | Event::VideoJob(video_job::Event::AttemptFailed { .. } | video_job::Event::Failed { .. })
        | Event::Work(work::Event::Published { .. })
        | Event::ReconciliationException(exception::Event::Resolved { .. }) => Some("words"),
        Event::PointsAccount(_)
        | Event::RechargeOrder(_)
        | Event::Like(_)
        | Event::Tip(_)
        | Event::TipReceipt(_)
        | Event::Withdrawal(_)
        | Event::WithdrawalAllowance(_)
        | Event::VideoJob(_)
        | Event::VideoSlots(_)
        | Event::Work(_)
        | Event::Erasure(_)
        | Event::Reconciliation(_)
        | Event::ReconciliationException(_) => None,
    }
}

impl Asker {
    pub(super) fn of(row: &Row) -> Result<Self, NotShown> {
        let Metadata { command_id, actor, request_id, causation, traceparent, address } =
            serde_json::from_str(&row.metadata)?;
        let command = command_id.to_string();
        Ok(Self { actor, command, request: request_id, caused_by: causation, traceparent, address })
    }
}

/// Whether a person decided here what becomes of something that others have made. Who corrects points makes the correction, and
/// nobody else agrees to it.
pub(super) const fn is_decision(event: &Event) -> bool {
    use withdrawal::Event as W;
    match event {
        Event::Withdrawal(W::Approved { .. } | W::Rejected { .. })
        | Event::ReconciliationException(exception::Event::Resolved { .. }) => true,
        Event::Withdrawal(
            W::Requested(_)
            | W::Cancelled {}
            | W::PayoutStarted { .. }
            | W::Paid { .. }
            | W::Failed { .. }
            | W::AttentionNeeded { .. },
        )
        | Event::PointsAccount(_)
        | Event::RechargeOrder(_)
        | Event::Like(_)
        | Event::Tip(_)
        | Event::TipReceipt(_)
        | Event::WithdrawalAllowance(_)
        | Event::VideoJob(_)
        | Event::VideoSlots(_)
        | Event::Work(_)
        | Event::Erasure(_)
        | Event::Reconciliation(_)
        | Event::ReconciliationException(_) => false,
    }
}

/// Whether this says what came of a payout: when an operator says it and not the provider, that is a decision too.
pub(super) const fn is_outcome(event: &Event) -> bool {
    matches!(event, Event::Withdrawal(withdrawal::Event::Paid { .. } | withdrawal::Event::Failed { .. }))
}
