//! Where the keys of persons are, and what is done with them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use skyriff_domain::{JobId, Note, Sealed, ShardCount, ShardId, UserId, WithdrawalId, Words, shard_of, words};
use sqlx::{FromRow, PgPool};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    Destination, MasterKeys, Purpose,
    person_key::{Damaged, PersonKey},
};

/// A database that does not answer within this time is not reached.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// One database of the event store, which has the keys of the persons in its shards.
#[derive(Clone, Debug)]
pub struct KeyDatabase {
    /// Its shards.
    pub shards: Vec<ShardId>,
    /// Where keys are made, read and destroyed. No replica is read: it may not have heard yet that a key was destroyed, and
    /// would open what is forgotten.
    pub primary: PgPool,
}

/// Seals and opens what belongs to persons. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vault(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    master_keys: MasterKeys,
    shard_count: ShardCount,
    databases: Vec<KeyDatabase>,
    of_shards: HashMap<ShardId, usize>,
}

/// What a column of a table says of a person, sealed or not.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    /// Under whose key.
    pub person: UserId,
    /// What it is for.
    pub purpose: Purpose,
    /// Which thing it is about.
    pub thing: Uuid,
    /// As the table has it.
    pub text: &'a str,
}

/// Why something could not be sealed or opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The person's key was destroyed, and stays so: what is theirs is forgotten.
    #[error("the person's key was destroyed")]
    Erased,
    /// There is no key, although something was sealed under it: the database is not the one that it was.
    #[error("the person has no key")]
    NoKey,
    /// The key is wrapped by a master key that this process does not have.
    #[error("the person's key is wrapped by the master key {0}, which is not among those given")]
    UnknownMasterKey(String),
    /// It was not sealed by this person's key for this, or has been changed since; or what is to be sealed is too long.
    #[error("what was sealed does not open")]
    Damaged,
    /// The keys cannot be reached.
    #[error("the keys of persons cannot be reached")]
    Unavailable(#[source] Arc<sqlx::Error>),
}

impl From<Damaged> for Error {
    fn from(Damaged: Damaged) -> Self {
        Self::Damaged
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

#[derive(FromRow)]
struct Row {
    user_id: Uuid,
    master_key_id: Option<String>,
    wrapped_key: Option<Vec<u8>>,
}

impl Vault {
    /// With these master keys, on the keys in these databases.
    pub fn new(master_keys: MasterKeys, shard_count: ShardCount, databases: Vec<KeyDatabase>) -> Self {
        let mut of_shards = HashMap::new();
        for (place, database) in databases.iter().enumerate() {
            of_shards.extend(database.shards.iter().map(|shard| (*shard, place)));
        }
        Self(Arc::new(Inner { master_keys, shard_count, databases, of_shards }))
    }

    /// Where a withdrawal goes, as its event has it. The same bytes for the same destination and withdrawal.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn seal_destination(
        &self,
        owner: UserId,
        withdrawal: WithdrawalId,
        destination: &Destination,
    ) -> Result<Sealed, Error> {
        let clear = destination.to_bytes();
        self.seal(owner, Purpose::WithdrawalDestination, withdrawal.0, &clear).await
    }

    /// Where a withdrawal goes, in the clear: for whoever pays it. Everybody else shows [`Destination::masked`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open_destination(
        &self,
        owner: UserId,
        withdrawal: WithdrawalId,
        sealed: &Sealed,
    ) -> Result<Destination, Error> {
        let mut opened = self.open_destinations(&[(owner, withdrawal, sealed)]).await;
        opened.pop().unwrap_or(Err(Error::NoKey))
    }

    /// Several at once, in order: one look at each database, however many there are.
    pub async fn open_destinations(
        &self,
        sealed: &[(UserId, WithdrawalId, &Sealed)],
    ) -> Vec<Result<Destination, Error>> {
        let keys = self.keys(sealed.iter().map(|(owner, ..)| *owner)).await;
        let opened = sealed.iter().map(|(owner, withdrawal, sealed)| match keys.get(owner) {
            Some(Ok(key)) => {
                let clear = key.open(Purpose::WithdrawalDestination, withdrawal.0, sealed)?;
                Destination::from_bytes(&clear).ok_or(Error::Damaged)
            }
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::NoKey),
        });
        opened.collect()
    }

    /// What a video or speech is to be of, as its event has it. The same bytes for the same prompt and job.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn seal_prompt(&self, owner: UserId, job: JobId, prompt: &str) -> Result<Sealed, Error> {
        self.seal(owner, Purpose::VideoPrompt, job.0, prompt.as_bytes()).await
    }

    /// What videos or speeches are to be of, in the clear and in order: for whoever makes them.
    pub async fn open_prompts(&self, sealed: &[(UserId, JobId, &Sealed)]) -> Vec<Result<String, Error>> {
        let keys = self.keys(sealed.iter().map(|(owner, ..)| *owner)).await;
        let opened = sealed.iter().map(|(owner, job, sealed)| match keys.get(owner) {
            Some(Ok(key)) => {
                let clear = key.open(Purpose::VideoPrompt, job.0, sealed)?;
                std::str::from_utf8(&clear).map(str::to_owned).map_err(|_| Error::Damaged)
            }
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::NoKey),
        });
        opened.collect()
    }

    /// What somebody said in words, as an event has it. The same bytes for the same words and thing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn seal_words(
        &self,
        person: UserId,
        purpose: Purpose,
        thing: Uuid,
        words: &Note,
    ) -> Result<Words, Error> {
        Ok(Words::sealed(self.seal(person, purpose, thing, words.as_str().as_bytes()).await?))
    }

    /// What columns of tables say, in the clear and in order: what is sealed is opened, and what was never sealed is as it
    /// is. None when the person is forgotten, or when the keys cannot be reached now: everything else is shown then.
    pub async fn open_columns(&self, columns: &[Column<'_>]) -> Vec<Option<String>> {
        let sealed: Vec<_> = columns.iter().map(|column| words::sealed_in_column(column.text)).collect();
        let persons = columns.iter().zip(&sealed).filter(|(_, sealed)| sealed.is_some());
        let keys = self.keys(persons.map(|(column, _)| column.person)).await;
        let open = |(column, sealed): (&Column<'_>, Option<Sealed>)| {
            let Some(sealed) = sealed else { return Some(column.text.to_owned()) };
            let opened = match keys.get(&column.person) {
                Some(Ok(key)) => key.open(column.purpose, column.thing, &sealed).map_err(Error::from),
                Some(Err(error)) => Err(error.clone()),
                None => Err(Error::NoKey),
            };
            match opened {
                Ok(clear) => std::str::from_utf8(&clear).ok().map(str::to_owned),
                Err(Error::Erased) => None,
                Err(error @ (Error::NoKey | Error::UnknownMasterKey(_) | Error::Damaged | Error::Unavailable(_))) => {
                    tracing::warn!(%error, purpose = ?column.purpose, "sealed words cannot be opened, and are not shown");
                    None
                }
            }
        };
        columns.iter().zip(sealed).map(open).collect()
    }

    /// Seal a text of a person's for one purpose and thing, making the person's key if it is the first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn seal(&self, person: UserId, purpose: Purpose, thing: Uuid, clear: &[u8]) -> Result<Sealed, Error> {
        Ok(self.key_to_seal(person).await?.seal(purpose, thing, clear)?)
    }

    /// Open what was sealed for the same person, purpose and thing.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(
        &self,
        person: UserId,
        purpose: Purpose,
        thing: Uuid,
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let key = self.keys([person]).await.remove(&person).unwrap_or(Err(Error::NoKey))?;
        Ok(key.open(purpose, thing, sealed)?)
    }

    /// The person's key, made if it is the first.
    async fn key_to_seal(&self, person: UserId) -> Result<PersonKey, Error> {
        let shard = shard_of(person, self.0.shard_count);
        let primary = &self.database_of(shard).ok_or(Error::NoKey)?.primary;
        if let Some(row) = rows(primary, &[person.0]).await?.pop() {
            return self.unwrap(&row);
        }
        let master = self.0.master_keys.current().ok_or(Error::NoKey)?;
        let wrapped = PersonKey::generate(person).wrap(master)?;
        sqlx::query(
            "INSERT INTO person_keys (user_id, shard, master_key_id, wrapped_key) VALUES ($1, $2, $3, $4)
             ON CONFLICT (user_id) DO NOTHING",
        )
        .bind(person.0)
        .bind(i16::try_from(shard.0).unwrap_or(i16::MAX))
        .bind(&master.id)
        .bind(wrapped)
        .execute(primary)
        .await?;
        // Another node may have been first, and then its key is the one.
        self.unwrap(&rows(primary, &[person.0]).await?.pop().ok_or(Error::NoKey)?)
    }

    /// The keys of persons who have one; nothing for the others.
    async fn keys(&self, persons: impl IntoIterator<Item = UserId>) -> HashMap<UserId, Result<PersonKey, Error>> {
        let mut by_database = BTreeMap::<_, Vec<_>>::new();
        for person in persons {
            if let Some(place) = self.0.of_shards.get(&shard_of(person, self.0.shard_count)) {
                by_database.entry(*place).or_default().push(person.0);
            }
        }
        let looks = by_database.into_iter().filter_map(|(place, mut persons)| {
            persons.sort_unstable();
            persons.dedup();
            self.0.databases.get(place).map(|database| self.keys_in(database, persons))
        });
        join_all(looks).await.into_iter().flatten().collect()
    }

    async fn keys_in(&self, database: &KeyDatabase, persons: Vec<Uuid>) -> Vec<(UserId, Result<PersonKey, Error>)> {
        match rows(&database.primary, &persons).await {
            Ok(rows) => rows.iter().map(|row| (UserId(row.user_id), self.unwrap(row))).collect(),
            Err(error) => {
                let error = Error::from(error);
                persons.into_iter().map(|person| (UserId(person), Err(error.clone()))).collect()
            }
        }
    }

    fn database_of(&self, shard: ShardId) -> Option<&KeyDatabase> {
        self.0.databases.get(*self.0.of_shards.get(&shard)?)
    }

    fn unwrap(&self, row: &Row) -> Result<PersonKey, Error> {
        let Row { user_id, master_key_id: Some(id), wrapped_key: Some(wrapped) } = row else {
            return Err(Error::Erased);
        };
        let master = self.0.master_keys.get(id).ok_or_else(|| Error::UnknownMasterKey(id.clone()))?;
        Ok(PersonKey::unwrap(UserId(*user_id), wrapped, master)?)
    }
}

async fn rows(pool: &PgPool, persons: &[Uuid]) -> sqlx::Result<Vec<Row>> {
    let look = sqlx::query_as("SELECT user_id, master_key_id, wrapped_key FROM person_keys WHERE user_id = ANY ($1)")
        .bind(persons)
        .fetch_all(pool);
    tokio::time::timeout(ANSWER_MAX, look).await.map_err(|_| sqlx::Error::PoolTimedOut)?
}
