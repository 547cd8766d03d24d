//! From the log to the producer.

use std::collections::BTreeMap;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use skyriff_domain::{Position, ShardId};
use skyriff_follow::LogError;
use tokio::time::Instant;

use super::Session;
use crate::{
    message::StoredEvent,
    relay::{IN_FLIGHT_MAX, RelayError, number, producer, shard_id},
};

/// A shard is read again when so many more would fit, so that reads stay large.
const READ_WHEN_FREE: i64 = IN_FLIGHT_MAX / 2;

impl Session<'_> {
    /// Give the producer what comes next; whether there may be more at once.
    pub(super) async fn send(&mut self) -> Result<bool, RelayError> {
        let now = Instant::now();
        let mut rooms = BTreeMap::new();
        for (shard, lane) in &self.lanes {
            let free = IN_FLIGHT_MAX - (lane.sent.0 - self.deliveries.acked(*shard).0);
            // Up to the event that the brokers have refused.
            let room = self.refusals.of(*shard).map_or(free, |refused| free.min(refused.0 - 1 - lane.sent.0));
            let may_go_on = !lane.parted && lane.stopped.is_none_or(|(until, _)| until <= now);
            if may_go_on && free >= READ_WHEN_FREE && room > 0 {
                rooms.insert(*shard, (lane.sent, room));
            }
        }
        if rooms.is_empty() {
            return Ok(false);
        }
        let events = self.read(&rooms).await?;
        let mut more = false;
        for of_shard in events.chunk_by(|one, next| one.shard == next.shard) {
            let Some(shard) = of_shard.first().map(|event| shard_id(event.shard)) else { continue };
            let room = rooms.get(&shard).map_or(0, |(_, room)| *room);
            more |= i64::try_from(of_shard.len()).is_ok_and(|count| count >= room);
            match self.produce(shard, of_shard) {
                Ok(()) => self.go_on(shard).await?,
                Err(NotSent::QueueFull) => return Ok(false),
                Err(NotSent::StandsStill(why)) => self.stand_still(shard, &why).await?,
                Err(NotSent::CannotGoOn(error)) => return Err(error.into()),
            }
        }
        Ok(more)
    }

    /// So many events of each shard after a position.
    async fn read(&mut self, rooms: &BTreeMap<ShardId, (Position, i64)>) -> Result<Vec<StoredEvent>, RelayError> {
        Ok(sqlx::query_as(
            "SELECT e.* FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS s (shard, after, room)
             CROSS JOIN LATERAL (
                 SELECT shard, position, aggregate_type, aggregate_id, sequence, event_type, event_version,
                        payload::text AS payload, metadata::text AS metadata, occurred_at, recorded_at
                 FROM events e WHERE e.shard = s.shard AND e.position > s.after ORDER BY e.position LIMIT s.room
             ) e ORDER BY e.shard, e.position",
        )
        .bind(rooms.keys().copied().map(number).collect::<Vec<_>>())
        .bind(rooms.values().map(|(after, _)| after.0).collect::<Vec<_>>())
        .bind(rooms.values().map(|(_, room)| *room).collect::<Vec<_>>())
        .fetch_all(&mut self.connection)
        .await?)
    }

    fn produce(&mut self, shard: ShardId, events: &[StoredEvent]) -> Result<(), NotSent> {
        let Some(lane) = self.lanes.get_mut(&shard) else { return Ok(()) };
        for event in events {
            if Position(event.position) != lane.sent.next() {
                let found = event.identity().at;
                return Err(NotSent::StandsStill(LogError::Gap { found, after: lane.sent }.to_string()));
            }
            match producer::give(&self.producer, self.settings, event) {
                Ok(()) => lane.sent = Position(event.position),
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => return Err(NotSent::QueueFull),
                // It has failed before, at another event.
                Err(error @ KafkaError::MessageProduction(RDKafkaErrorCode::Fatal)) => {
                    return Err(NotSent::CannotGoOn(error));
                }
                Err(error) => {
                    let why = format!("the event at {shard}:{} cannot be sent: {error}", event.position);
                    return Err(NotSent::StandsStill(why));
                }
            }
        }
        Ok(())
    }

    /// Have the events that the brokers have refused tried again, each once everything before it was acknowledged.
    pub(super) async fn try_refused(&mut self) -> Result<(), RelayError> {
        for (shard, refused) in self.refusals.all() {
            let Some(lane) = self.lanes.get_mut(&shard) else { continue };
            if let Some(trial) = lane.trial.take_if(|trial| trial.is_finished()) {
                match trial.await.unwrap_or_else(|error| Err(error.to_string())) {
                    Ok(()) => {
                        lane.sent = refused;
                        self.deliveries.start(shard, refused);
                        self.refusals.passed(shard, refused);
                        self.go_on(shard).await?;
                    }
                    Err(why) => {
                        let why = format!("the brokers do not take the event at {shard}:{refused}: {why}");
                        self.stand_still(shard, &why).await?;
                    }
                }
                continue;
            }
            let is_next = lane.sent.next() == refused && self.deliveries.acked(shard) == lane.sent;
            let waits = lane.stopped.is_some_and(|(until, _)| until > Instant::now());
            if lane.parted || lane.trial.is_some() || !is_next || waits {
                continue;
            }
            let after = lane.sent;
            let event = self.read(&BTreeMap::from([(shard, (after, 1))])).await?.pop();
            let (Some(event), Some(lane)) = (event, self.lanes.get_mut(&shard)) else { continue };
            let (settings, deliveries) = (self.settings.clone(), self.deliveries.clone());
            lane.trial = Some(tokio::task::spawn_blocking(move || {
                let delivered = producer::deliver_alone(&settings, &event);
                deliveries.say_more();
                delivered
            }));
        }
        Ok(())
    }
}

/// Why the producer did not take an event.
enum NotSent {
    QueueFull,
    StandsStill(String),
    CannotGoOn(KafkaError),
}
