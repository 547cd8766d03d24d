//! The first answer to a command, read back from the log.

use std::collections::HashMap;

use skyriff_domain::{CommandId, LogPosition, Position, ShardId, StreamId};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::StoreError;
use crate::{Fingerprint, Receipt, Recorded, Refused};

/// What a command came to when it was first done.
#[derive(Debug)]
pub struct FirstAnswer {
    /// What it asked for.
    pub fingerprint: Fingerprint,
    /// What it was answered.
    pub answer: Result<Receipt, Refused>,
}

/// The first answers to commands that were recorded before.
///
/// # Errors
/// [`StoreError`].
pub async fn first_answers(
    connection: &mut PgConnection,
    commands: &[CommandId],
) -> Result<HashMap<CommandId, FirstAnswer>, StoreError> {
    let rows = sqlx::query(
        "SELECT c.command_id, c.fingerprint, c.shard, c.position AS last, c.refusal,
                e.position, e.aggregate_type, e.aggregate_id, e.sequence, e.payload::text AS payload,
                e.occurred_at, e.recorded_at
         FROM commands c
         LEFT JOIN events e ON e.shard = c.shard AND e.position > c.position - c.events AND e.position <= c.position
         WHERE c.command_id = ANY ($1)
         ORDER BY c.command_id, e.position",
    )
    .bind(commands.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut answers = HashMap::new();
    for row in &rows {
        let shard = ShardId(u16::try_from(row.try_get::<i16, _>("shard")?).unwrap_or_default());
        let at = |position| LogPosition { shard, position: Position(position) };
        let last: i64 = row.try_get("last")?;
        let refused = row.try_get::<Option<&str>, _>("refusal")?.map(Refused::decode).transpose();
        let answer = answers.entry(CommandId(row.try_get::<Uuid, _>("command_id")?)).or_insert(FirstAnswer {
            fingerprint: Fingerprint(row.try_get("fingerprint")?),
            answer: match refused.map_err(|error| sqlx::Error::Decode(error.into()))? {
                Some(refused) => Err(refused),
                None => Ok(Receipt { position: at(last), recorded: Vec::new(), replayed: true }),
            },
        });
        if let (Ok(receipt), Some(position)) = (&mut answer.answer, row.try_get::<Option<i64>, _>("position")?) {
            receipt.recorded.push(Recorded {
                position: at(position),
                stream: StreamId::decode(row.try_get("aggregate_type")?, row.try_get("aggregate_id")?)?,
                sequence: row.try_get("sequence")?,
                payload: row.try_get("payload")?,
                occurred_at: row.try_get("occurred_at")?,
                recorded_at: row.try_get("recorded_at")?,
            });
        }
    }
    Ok(answers)
}
