//! How far tables are behind the log, for a source that does not read it: such a one stands still without knowing when
//! whatever carries the log to it does.
//!
//! The log is asked beside the work: one that is slow or away holds nothing up, and then nothing is known.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use skyriff_domain::{Position, ShardId};
use sqlx::{ConnectOptions, PgConnection};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    log::{self, LogError},
    runner::LogDatabase,
    source::Behind,
};

/// How often the log is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A database that takes longer to answer is asked again on another connection.
const ASK_MAX: Duration = Duration::from_secs(5);
/// What was known so long ago is not known any more.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// Asks the databases of the log.
#[derive(Debug)]
pub struct Lag {
    /// None while they are being asked.
    databases: Option<Vec<Asked>>,
    asking: Option<JoinHandle<Answered>>,
    asked_at: Option<Instant>,
    known: Option<(Instant, BTreeMap<ShardId, Behind>)>,
}

/// The databases, and what they have said together.
type Answered = (Vec<Asked>, BTreeMap<ShardId, Behind>);

/// One database of the log, and a connection to it that is kept.
#[derive(Debug)]
struct Asked {
    log: LogDatabase,
    connection: Option<PgConnection>,
}

impl Lag {
    /// Of tables that follow these.
    pub fn new(logs: &[LogDatabase]) -> Self {
        let databases = logs.iter().map(|log| Asked { log: log.clone(), connection: None }).collect();
        Self { databases: Some(databases), asking: None, asked_at: None, known: None }
    }

    /// How far shards at these positions were behind a moment ago, without waiting for an answer. Those of which that is
    /// not known are left out.
    pub async fn behind(&mut self, after: &BTreeMap<ShardId, Position>) -> BTreeMap<ShardId, Behind> {
        if let Some(asking) = self.asking.take_if(|asking| asking.is_finished()) {
            match asking.await {
                Ok((databases, behind)) => {
                    self.databases = Some(databases);
                    self.known = Some((Instant::now(), behind));
                }
                Err(error) => tracing::error!(%error, "asking the log ended badly"),
            }
        }
        let due = self.asked_at.is_none_or(|at| at.elapsed() >= ASK_EVERY);
        if let Some(databases) = self.databases.take_if(|_| due) {
            self.asked_at = Some(Instant::now());
            self.asking = Some(tokio::spawn(ask(databases, after.clone())));
        }
        let known = self.known.as_ref().filter(|(at, _)| at.elapsed() < KNOWN_FOR);
        known.map(|(_, behind)| behind.clone()).unwrap_or_default()
    }
}

async fn ask(mut databases: Vec<Asked>, after: BTreeMap<ShardId, Position>) -> Answered {
    let answers = join_all(databases.iter_mut().map(|database| database.answer(&after))).await;
    let behind = answers.into_iter().flatten().collect();
    (databases, behind)
}

impl Asked {
    /// Nothing when it does not answer.
    async fn answer(&mut self, after: &BTreeMap<ShardId, Position>) -> BTreeMap<ShardId, Behind> {
        let ours = after.iter().filter(|(shard, _)| self.log.shards.contains(shard));
        let ours: BTreeMap<_, _> = ours.map(|(shard, position)| (*shard, *position)).collect();
        if ours.is_empty() {
            return BTreeMap::new();
        }
        let open = self.connection.take();
        let asked = async {
            let mut connection = match open {
                Some(open) => open,
                None => self.log.options.connect().await?,
            };
            let behind = log::behind(&mut connection, &ours).await?;
            Ok::<_, LogError>((connection, behind))
        };
        match tokio::time::timeout(ASK_MAX, asked).await {
            Ok(Ok((connection, behind))) => {
                self.connection = Some(connection);
                behind
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "how far the tables are behind is not known");
                BTreeMap::new()
            }
            Err(_) => {
                tracing::debug!("how far the tables are behind is not known: the log does not answer");
                BTreeMap::new()
            }
        }
    }
}
