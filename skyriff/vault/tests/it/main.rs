//! The vault on a real Postgres: who may make, read and destroy keys, and what stays closed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use futures::future::join_all;
use serde_json::json;
use skyriff_domain::{Sealed, ShardCount, UserId, WithdrawalId, shard_of};
use skyriff_postgres::{
    databases::{COMMAND, OWNER, PROJECT, QUERY},
    testing::TestDatabases,
};
use skyriff_vault::{Column, Destination, Error, KeyDatabase, MasterKeys, Purpose, Vault, rewrap::rewrap};
use sqlx::{ConnectOptions, Executor, PgConnection};
use uuid::Uuid;

fn vault_as(databases: &TestDatabases, role: &str, keys: &MasterKeys) -> Vault {
    let shards = ShardCount::default().shards().collect();
    let primary = TestDatabases::pool(databases.event_store(role));
    Vault::new(keys.clone(), ShardCount::default(), vec![KeyDatabase { shards, primary }])
}

fn some_keys() -> MasterKeys {
    MasterKeys::from_base64(&MasterKeys::generate()).unwrap()
}

fn someone() -> UserId {
    UserId(Uuid::new_v4())
}

fn destination(account: &str) -> Destination {
    serde_json::from_value(json!({"kind": "paypal", "account": account, "name": "Mei Lin"})).unwrap()
}

async fn owner(databases: &TestDatabases) -> PgConnection {
    databases.event_store(OWNER).connect().await.unwrap()
}

async fn destroy(databases: &TestDatabases, person: UserId) {
    let shard = i16::try_from(shard_of(person, ShardCount::default()).0).unwrap();
    let destroy = sqlx::query("SELECT destroy_person_key($1, $2)").bind(person.0).bind(shard);
    destroy.execute(&mut owner(databases).await).await.unwrap();
}

#[tokio::test]
async fn what_one_node_seals_another_opens_and_sealing_again_gives_the_same() {
    let databases = TestDatabases::create().await;
    let keys = some_keys();
    let nodes = [vault_as(&databases, COMMAND, &keys), vault_as(&databases, COMMAND, &keys)];
    let reader = vault_as(&databases, QUERY, &keys);
    let (person, withdrawal, to) = (someone(), WithdrawalId(Uuid::new_v4()), destination("mei@example.com"));
    // All of them meet a person without a key; one key is made.
    let sealing = (0..20).map(|turn| nodes[turn % 2].seal_destination(person, withdrawal, &to));
    let sealed: Vec<_> = join_all(sealing).await.into_iter().map(Result::unwrap).collect();
    assert!(sealed.iter().all(|other| *other == sealed[0]));
    assert_eq!(reader.open_destination(person, withdrawal, &sealed[0]).await.unwrap(), to);
    // Bound to the person and to the withdrawal; and nobody else's key opens it.
    let other = nodes[0].seal_destination(person, WithdrawalId(Uuid::new_v4()), &to).await.unwrap();
    assert_ne!(other, sealed[0]);
    assert!(matches!(reader.open_destination(person, withdrawal, &other).await, Err(Error::Damaged)));
    assert!(matches!(reader.open_destination(someone(), withdrawal, &sealed[0]).await, Err(Error::NoKey)));

    let elsewhere = someone();
    let of_elsewhere = nodes[1].seal_destination(elsewhere, withdrawal, &to).await.unwrap();
    let several =
        [(person, withdrawal, &sealed[0]), (elsewhere, withdrawal, &sealed[0]), (elsewhere, withdrawal, &of_elsewhere)];
    let opened = reader.open_destinations(&several).await;
    assert!(matches!(opened.as_slice(), [Ok(_), Err(Error::Damaged), Ok(_)]), "{opened:?}");
    // A reader makes no keys.
    let refused = reader.seal(someone(), Purpose::WithdrawalDestination, Uuid::nil(), b"x").await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

#[tokio::test]
async fn a_destroyed_key_stays_destroyed_and_none_is_made_in_its_place() {
    let databases = TestDatabases::create().await;
    let keys = some_keys();
    let vault = vault_as(&databases, COMMAND, &keys);
    let (person, withdrawal, to) = (someone(), WithdrawalId(Uuid::new_v4()), destination("mei@example.com"));
    let sealed = vault.seal_destination(person, withdrawal, &to).await.unwrap();
    let never_sealed = someone();
    for person in [person, never_sealed, person] {
        destroy(&databases, person).await;
        assert!(matches!(vault.seal_destination(person, withdrawal, &to).await, Err(Error::Erased)));
        assert!(matches!(vault.open_destination(person, withdrawal, &sealed).await, Err(Error::Erased)));
    }
    // Not even the owner of the table brings it back.
    for statement in [
        "UPDATE person_keys SET destroyed_at = NULL, master_key_id = 'x', wrapped_key = decode(repeat('00', 48), 'hex')",
        "UPDATE person_keys SET destroyed_at = now() + interval '1 day'",
        "DELETE FROM person_keys",
        "TRUNCATE person_keys",
    ] {
        owner(&databases).await.execute(statement).await.expect_err(statement);
    }
}

#[tokio::test]
async fn the_database_lets_nobody_who_serves_change_or_destroy_a_key() {
    /// SQLSTATE `insufficient_privilege`.
    const DENIED: &str = "42501";
    let databases = TestDatabases::create().await;
    vault_as(&databases, COMMAND, &some_keys())
        .seal(someone(), Purpose::WithdrawalDestination, Uuid::nil(), b"x")
        .await
        .unwrap();
    let by_nobody = [
        "UPDATE person_keys SET wrapped_key = wrapped_key",
        "DELETE FROM person_keys",
        "TRUNCATE person_keys",
        "DROP TABLE person_keys",
        "INSERT INTO person_keys (user_id, shard, destroyed_at) VALUES (gen_random_uuid(), 0, now())",
        "INSERT INTO person_keys (user_id, shard, made_at) VALUES (gen_random_uuid(), 0, now())",
        "SELECT destroy_person_key(user_id, shard) FROM person_keys",
    ];
    let by_command = "INSERT INTO person_keys (user_id, shard, master_key_id, wrapped_key)
                      SELECT gen_random_uuid(), 0, master_key_id, wrapped_key FROM person_keys";
    let cases = [
        (COMMAND, by_nobody.to_vec()),
        (QUERY, [&by_nobody[..], &[by_command]].concat()),
        (PROJECT, [&by_nobody[..], &[by_command, "SELECT * FROM person_keys"]].concat()),
    ];
    for (role, statements) in cases {
        let mut connection = databases.event_store(role).connect().await.unwrap();
        for statement in statements {
            let error = connection.execute(statement).await.expect_err(statement);
            let code = error.as_database_error().and_then(|error| error.code().map(String::from));
            assert_eq!(code.as_deref(), Some(DENIED), "{role}: {statement}: {error}");
        }
    }
}

#[tokio::test]
async fn the_master_key_is_changed_step_by_step_and_none_opens_without_it() {
    let databases = TestDatabases::create().await;
    let (old, new) = (MasterKeys::generate(), MasterKeys::generate());
    let ring = |keys: &[&str]| MasterKeys::from_base64(&keys.join(",")).unwrap();
    let (person, withdrawal, to) = (someone(), WithdrawalId(Uuid::new_v4()), destination("mei@example.com"));
    let vault = |keys| vault_as(&databases, COMMAND, &keys);
    let sealed = vault(ring(&[&old])).seal_destination(person, withdrawal, &to).await.unwrap();
    let both = vault(ring(&[&new, &old]));
    assert_eq!(both.seal_destination(person, withdrawal, &to).await.unwrap(), sealed);
    assert_eq!(both.open_destination(person, withdrawal, &sealed).await.unwrap(), to);
    // Who comes now has a key that the new one wraps.
    let later = someone();
    both.seal_destination(later, withdrawal, &to).await.unwrap();
    let new_only = vault(ring(&[&new]));
    assert!(new_only.seal_destination(later, withdrawal, &to).await.is_ok());
    let without = new_only.open_destination(person, withdrawal, &sealed).await;
    assert!(matches!(without, Err(Error::UnknownMasterKey(_))), "{without:?}");
    assert!(matches!(new_only.seal_destination(person, withdrawal, &to).await, Err(Error::UnknownMasterKey(_))));
}

#[tokio::test]
async fn without_the_database_of_keys_nothing_opens_and_nobody_is_told_to_be_forgotten() {
    let databases = TestDatabases::create().await;
    let keys = some_keys();
    let (person, withdrawal, to) = (someone(), WithdrawalId(Uuid::new_v4()), destination("mei@example.com"));
    let sealed = vault_as(&databases, COMMAND, &keys).seal_destination(person, withdrawal, &to).await.unwrap();
    let gone = TestDatabases::pool(databases.event_store(QUERY));
    gone.close().await;
    let shards = ShardCount::default().shards().collect();
    let without = Vault::new(keys, ShardCount::default(), vec![KeyDatabase { shards, primary: gone }]);
    let nowhere = without.open_destination(person, withdrawal, &sealed).await;
    assert!(matches!(nowhere, Err(Error::Unavailable(_))), "{nowhere:?}");
    // The rest of a list is shown.
    let text = format!("sealed:{}", sealed.as_str());
    let column = |text| Column { person, purpose: Purpose::WithdrawalDestination, thing: withdrawal.0, text };
    let opened = without.open_columns(&[column(&text), column("in the clear")]).await;
    assert_eq!(opened, [None, Some("in the clear".to_owned())]);
}

#[tokio::test]
async fn the_master_key_changes_while_people_come_and_go_and_all_that_is_sealed_opens_as_before() {
    let databases = TestDatabases::create().await;
    let (old, new) = (MasterKeys::generate(), MasterKeys::generate());
    let of = |text: &str| MasterKeys::from_base64(text).unwrap();
    let both = of(&format!("{},{}", new.as_str(), old.as_str()));
    let before = vault_as(&databases, COMMAND, &of(&old));
    let (people, thing): (Vec<_>, _) = ((0..2_100).map(|_| someone()).collect(), Uuid::new_v4());
    let seal = |vault: Vault, person| async move { vault.seal(person, Purpose::WorkTitle, thing, b"a title").await };
    let mut sealed = Vec::new();
    for some in people.chunks(100) {
        let all = join_all(some.iter().map(|person| seal(before.clone(), *person))).await;
        sealed.extend(all.into_iter().map(Result::unwrap));
    }
    destroy(&databases, people[0]).await;
    // Without the old key nothing can be done, and nothing is done.
    let error = rewrap(&mut owner(&databases).await, &of(&new)).await.unwrap_err();
    assert!(matches!(error, Error::UnknownMasterKey(_)), "{error:?}");
    // Somebody new comes, and somebody goes, while keys are wrapped anew.
    let during = vault_as(&databases, COMMAND, &both);
    let late = someone();
    let (first, second) = (&mut owner(&databases).await, &mut owner(&databases).await);
    let (one, other, made, ()) = tokio::join!(
        rewrap(first, &both),
        rewrap(second, &both),
        seal(during.clone(), late),
        destroy(&databases, people[1]),
    );
    let (one, other) = (one.unwrap(), other.unwrap());
    assert!(one.rewrapped + other.rewrapped <= 2_099 && one.rewrapped + other.rewrapped >= 2_098, "{one:?} {other:?}");
    let again = rewrap(&mut owner(&databases).await, &both).await.unwrap();
    assert_eq!((again.rewrapped, again.current, again.destroyed), (0, 2_099, 2));

    // The new key alone opens everything, and makes the same of the same; the old one opens nothing any more.
    let after = vault_as(&databases, COMMAND, &of(&new));
    assert_eq!(after.open(late, Purpose::WorkTitle, thing, &made.unwrap()).await.unwrap().as_slice(), b"a title");
    for (person, sealed) in people.iter().zip(&sealed).skip(2).step_by(97) {
        assert_eq!(after.open(*person, Purpose::WorkTitle, thing, sealed).await.unwrap().as_slice(), b"a title");
        assert_eq!(seal(after.clone(), *person).await.unwrap(), *sealed);
        let closed = before.open(*person, Purpose::WorkTitle, thing, sealed).await;
        assert!(matches!(closed, Err(Error::UnknownMasterKey(_))), "{closed:?}");
    }
    for (person, sealed) in people.iter().zip(&sealed).take(2) {
        assert!(matches!(after.open(*person, Purpose::WorkTitle, thing, sealed).await, Err(Error::Erased)));
    }
}

/// Some process still has the old master key alone, and makes a key with each change, of persons who come before everybody
/// else: whoever has passed them does not see them any more.
async fn with_keys_that_come_late(databases: &TestDatabases, vault: &Vault, keys: u128) {
    let late = (1..=keys).map(|person| UserId(Uuid::from_u128(person)));
    for person in late.chain([someone()]) {
        vault.seal(person, Purpose::WorkTitle, Uuid::nil(), b"a title").await.unwrap();
    }
    let come = "
        ALTER TABLE person_keys DISABLE TRIGGER USER;
        CREATE TABLE late AS SELECT * FROM person_keys WHERE user_id < '00000000-0000-0000-0000-000000000100';
        DELETE FROM person_keys WHERE user_id IN (SELECT user_id FROM late);
        ALTER TABLE person_keys ENABLE TRIGGER USER;
        CREATE FUNCTION come() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            WITH next AS (
                DELETE FROM late WHERE user_id = (SELECT user_id FROM late ORDER BY user_id DESC LIMIT 1) RETURNING *
            )
            INSERT INTO person_keys SELECT * FROM next;
            RETURN NULL;
        END
        $$;
        CREATE TRIGGER come AFTER UPDATE ON person_keys FOR EACH STATEMENT EXECUTE FUNCTION come();";
    owner(databases).await.execute(come).await.unwrap();
}

#[tokio::test]
async fn keys_that_an_old_process_makes_meanwhile_are_wrapped_anew_or_counted() {
    // How many come; how many are wrapped at the end, and how many are not: they come faster than they are looked for.
    for (late, rewrapped, left) in [(0, 1, 0), (3, 4, 0), (12, 5, 1)] {
        let databases = TestDatabases::create().await;
        let (old, new) = (MasterKeys::generate(), MasterKeys::generate());
        let of = |text: &str| MasterKeys::from_base64(text).unwrap();
        with_keys_that_come_late(&databases, &vault_as(&databases, COMMAND, &of(&old)), late).await;
        let both = of(&format!("{},{}", new.as_str(), old.as_str()));
        let done = rewrap(&mut owner(&databases).await, &both).await.unwrap();
        assert_eq!((done.rewrapped, done.current, done.left), (rewrapped, 0, left), "{late} come");
        // Nobody says that the old one is needed no more while it is: with the new one alone it is an error.
        let alone = rewrap(&mut owner(&databases).await, &of(&new)).await;
        assert_eq!(alone.is_ok_and(|done| done.left == 0), left == 0);
    }
}

#[tokio::test]
async fn the_event_of_an_erasure_takes_the_key_with_it_or_neither_is_there() {
    let databases = TestDatabases::create().await;
    let vault = vault_as(&databases, COMMAND, &some_keys());
    let (person, thing, neighbour) = (someone(), Uuid::new_v4(), someone());
    let mut sealed = Vec::new();
    for person in [person, neighbour] {
        sealed.push(vault.seal(person, Purpose::WorkTitle, thing, b"a title").await.unwrap());
    }
    let mut command = databases.event_store(COMMAND).connect().await.unwrap();
    let shard = i16::try_from(shard_of(person, ShardCount::default()).0).unwrap();
    let record = async |connection: &mut PgConnection, event_type: &str, position: i64| {
        sqlx::query("INSERT INTO events VALUES ($1, $2, 'erasure', $3, $2, $4, '1', '{}', '{}', now(), now())")
            .bind(shard)
            .bind(position)
            .bind(person.to_string())
            .bind(event_type)
            .execute(connection)
            .await
    };
    let open = async |person, sealed| vault.open(person, Purpose::WorkTitle, thing, sealed).await;
    // Not while it may still be rolled back, and not by another event.
    command.execute("BEGIN").await.unwrap();
    record(&mut command, "erased", 1).await.unwrap();
    assert!(open(person, &sealed[0]).await.is_ok());
    command.execute("ROLLBACK").await.unwrap();
    record(&mut command, "noted", 1).await.unwrap();
    assert!(open(person, &sealed[0]).await.is_ok());
    record(&mut command, "erased", 2).await.unwrap();
    assert!(matches!(open(person, &sealed[0]).await, Err(Error::Erased)));
    assert!(open(neighbour, &sealed[1]).await.is_ok());
    // What a table says of them.
    let column = |person, sealed: &Sealed| (person, format!("sealed:{}", sealed.as_str()));
    let texts = [column(person, &sealed[0]), column(neighbour, &sealed[1]), (person, "in the clear".to_owned())];
    let columns =
        texts.each_ref().map(|(person, text)| Column { person: *person, purpose: Purpose::WorkTitle, thing, text });
    let opened = vault.open_columns(&columns).await;
    assert_eq!(opened, [None, Some("a title".to_owned()), Some("in the clear".to_owned())]);
}
