//! Withdrawals as their owners, reviewers and operators see them, over several read databases.

use std::time::Duration;

use axum::Router;
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use serde_json::{Value, json};
use skyriff_domain::{Sealed, ShardCount, ShardId, UserId, WithdrawalId, shard_of};
use skyriff_edge::Role;
use skyriff_postgres::{
    databases::{COMMAND, OWNER, QUERY},
    testing::TestDatabases,
};
use skyriff_read_side::{ReadDatabase, Replicas, withdrawal_routes};
use skyriff_vault::{Destination, KeyDatabase, MasterKeys, Vault};
use sqlx::{ConnectOptions, PgConnection};
use uuid::Uuid;

use crate::{
    api::{Answer, Api, Dead, primary},
    rows::{connect, place, some_user},
};

const NAME: &str = "Mei Lin of Hangzhou";

/// Two read databases, each with half of the shards, and one event store with the keys.
struct Halves {
    lower: TestDatabases,
    upper: TestDatabases,
    keys: MasterKeys,
}

/// What a row says.
struct Given {
    user: UserId,
    withdrawal: WithdrawalId,
    status: &'static str,
    requested_at: DateTime<Utc>,
    position: i64,
}

impl Halves {
    async fn create() -> Self {
        let (lower, upper) = tokio::join!(TestDatabases::create(), TestDatabases::create());
        Self { lower, upper, keys: MasterKeys::from_base64(&MasterKeys::generate()).unwrap() }
    }

    fn vault(&self, role: &str) -> Vault {
        let shards = ShardCount::default().shards().collect();
        let primary = TestDatabases::pool(self.lower.event_store(role));
        Vault::new(self.keys.clone(), ShardCount::default(), vec![KeyDatabase { shards, primary }])
    }

    fn api(&self) -> Api {
        self.api_with(self.vault(QUERY))
    }

    fn api_with(&self, vault: Vault) -> Api {
        let (lower, upper): (Vec<_>, Vec<_>) = ShardCount::default().shards().partition(|shard| shard.0 < 8);
        let database = |databases: &TestDatabases, shards| ReadDatabase {
            shards,
            primary: primary(databases),
            replicas: Vec::new(),
        };
        let databases = vec![database(&self.lower, lower), database(&self.upper, upper)];
        let replicas = Replicas::new(ShardCount::default(), databases, Duration::from_millis(60));
        let (routes, _): (Router, _) = withdrawal_routes(replicas, vault).split_for_parts();
        Api::of(routes)
    }

    fn home(&self, user: UserId) -> &TestDatabases {
        if shard_of(user, ShardCount::default()).0 < 8 { &self.lower } else { &self.upper }
    }

    async fn checkpoints(&self) {
        for databases in [&self.lower, &self.upper] {
            sqlx::query("INSERT INTO checkpoints (projection, version, shard, position) SELECT 'withdrawals', 1, shard, 9 FROM generate_series(0, 15) shard")
                .execute(&mut connect(databases).await)
                .await
                .unwrap();
        }
    }

    /// A row as the projection writes it, and what is known of the person.
    async fn write(&self, account: &str, given: &Given) -> Sealed {
        let Given { user, withdrawal, status, requested_at, position } = given;
        let destination: Destination =
            serde_json::from_value(json!({"kind": "paypal", "account": account, "name": NAME})).unwrap();
        let sealed = self.vault(COMMAND).seal_destination(*user, *withdrawal, &destination).await.unwrap();
        let shard = i16::try_from(place(*user, 0).shard.0).unwrap();
        let mut rows: PgConnection = connect(self.home(*user)).await;
        sqlx::query(
            "INSERT INTO withdrawals VALUES ($1, $2, $3, $4, 1000, 10, 990, 'cny', $5, 1, '{00000000-0000-0000-0000-000000000007}',
                                             NULL, 'why', 'local', 'po_1', $6, $6, $7, $7)",
        )
        .bind(withdrawal.0)
        .bind(user.0)
        .bind(shard)
        .bind(status)
        .bind(sealed.as_str())
        .bind(requested_at)
        .bind(position)
        .execute(&mut rows)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO risk_facts VALUES ($1, $2, $3, 1, 2, -3, 4, 5, 6, 7, 8, 9, 10, 11) ON CONFLICT DO NOTHING",
        )
        .bind(user.0)
        .bind(shard)
        .bind(start())
        .execute(&mut rows)
        .await
        .unwrap();
        sealed
    }
}

fn start() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap()
}

fn given(user: UserId, status: &'static str, minute: i64, position: i64) -> Given {
    let requested_at = start() + TimeDelta::minutes(minute);
    Given { user, withdrawal: WithdrawalId(Uuid::new_v4()), status, requested_at, position }
}

async fn get(api: &Api, role: Role, id: Uuid, path: &str) -> Answer {
    api.send(api.request(role, id, path)).await
}

fn ids(answer: &Answer) -> Vec<String> {
    let all = answer.body["withdrawals"].as_array().unwrap_or_else(|| panic!("{}", answer.body));
    all.iter().map(|one| one["withdrawal"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn each_sees_what_is_theirs_to_see() {
    let halves = Halves::create().await;
    halves.checkpoints().await;
    let api = halves.api();
    let user = some_user();
    let one = given(user, "under_review", 0, 5);
    let sealed = halves.write("mei@example.com", &one).await;
    let path = format!("/v1/users/{user}/withdrawals/{}", one.withdrawal);
    let base = json!({
        "withdrawal": one.withdrawal, "user": user, "status": "under_review", "points": 1000, "fee": 10,
        "money": {"minor": 990, "currency": "cny"}, "reviews_needed": 1, "approvals": 1, "reason": "why",
        "reference": "po_1", "requested_at": start(), "updated_at": start(),
    });
    let destination = json!({"state": "masked", "kind": "paypal", "account": "***@***.com"});
    let decided = json!({"approved_by": [Uuid::from_u128(7)], "provider": "local"});
    let risk = json!({
        "account_since": start(), "income": {"earned": 1, "tips": 2, "adjusted": -3},
        "withdrawals": {"paid": {"count": 4, "points": 5}, "failed": {"count": 6, "points": 7},
                        "rejected": {"count": 8, "points": 9}, "cancelled": {"count": 10, "points": 11}},
    });
    let with = |members: &[(&str, &Value)]| {
        let mut body = base.clone();
        members.iter().for_each(|(name, value)| body[*name] = (*value).clone());
        body
    };
    let elsewhere = with(&[("decided", &decided)]);
    let table = [
        (Role::User, user.0, with(&[("destination", &destination)])),
        (Role::Reviewer, Uuid::nil(), with(&[("destination", &destination), ("decided", &decided), ("risk", &risk)])),
        (Role::Operator, Uuid::nil(), elsewhere.clone()),
        (Role::Service, Uuid::nil(), elsewhere.clone()),
        (Role::Auditor, Uuid::nil(), elsewhere),
    ];
    for (role, id, expected) in table {
        let answer = get(&api, role, id, &path).await;
        assert_eq!((answer.kind(), &answer.body), ((200, ""), &expected), "{role:?}");
        assert_eq!(answer.header("skyriff-position"), Some(place(user, 9).to_string().as_str()));
        let list = get(&api, role, id, &format!("/v1/users/{user}/withdrawals")).await;
        assert_eq!(list.body, json!({"withdrawals": [expected], "position": place(user, 9).to_string()}));
        let said = list.body.to_string();
        assert!(!said.contains("mei") && !said.contains(NAME) && !said.contains(sealed.as_str()), "{said}");
    }
    let other = some_user();
    for (role, id) in [(Role::User, other.0), (Role::Analyst, user.0), (Role::Worker, user.0)] {
        for path in [path.clone(), format!("/v1/users/{user}/withdrawals")] {
            assert_eq!(get(&api, role, id, &path).await.kind(), (403, "forbidden"), "{role:?}");
        }
    }
    // In another's name, and where there is none, there is nothing.
    for path in
        [path.replace(&user.to_string(), &other.to_string()), format!("/v1/users/{user}/withdrawals/{}", Uuid::nil())]
    {
        assert_eq!(get(&api, Role::Reviewer, Uuid::nil(), &path).await.kind(), (404, "not-found"));
    }
    let later = api.request(Role::User, user.0, &path).header("skyriff-at-least", place(user, 10).to_string());
    assert_eq!(api.send(later).await.kind(), (503, "not-that-fresh-yet"));
}

#[tokio::test]
async fn a_users_list_comes_newest_first_in_pages() {
    let halves = Halves::create().await;
    halves.checkpoints().await;
    let api = halves.api();
    let user = some_user();
    let mut newest_first = Vec::new();
    for position in 1..=7 {
        let one = given(user, "paid", 0, position);
        halves.write("mei@example.com", &one).await;
        newest_first.insert(0, one.withdrawal.to_string());
    }
    let list = format!("/v1/users/{user}/withdrawals");
    let mut seen = Vec::new();
    let mut path = format!("{list}?limit=3");
    for page in 0..3 {
        let answer = get(&api, Role::User, user.0, &path).await;
        let found = ids(&answer);
        assert_eq!(found.len(), [3, 3, 1][page]);
        seen.extend(found);
        match answer.body["next"].as_str() {
            Some(next) => path = format!("{list}?limit=3&cursor={next}"),
            None => assert_eq!(page, 2),
        }
    }
    assert_eq!(seen, newest_first);
    for bad in ["limit=0", "limit=101", "limit=x", "cursor=x", "cursor=eA", "since=1"] {
        let answer = get(&api, Role::User, user.0, &format!("{list}?{bad}")).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{bad}");
    }
    assert_eq!(get(&api, Role::User, some_user().0, &list).await.kind(), (403, "forbidden"));
}

#[tokio::test]
async fn the_queue_is_oldest_first_over_all_read_databases() {
    let halves = Halves::create().await;
    halves.checkpoints().await;
    let api = halves.api();
    let mut expected = Vec::new();
    for minute in 0..12 {
        let shard = ShardId(u16::try_from(minute * 5 % 16).unwrap());
        let user =
            std::iter::repeat_with(some_user).find(|user| shard_of(*user, ShardCount::default()) == shard).unwrap();
        // Pairs of the same moment.
        let one = given(user, "under_review", minute / 2, 5);
        halves.write("mei@example.com", &one).await;
        expected.push((one.requested_at, one.withdrawal.0));
        halves.write("mei@example.com", &given(user, "paid", 0, 6)).await;
    }
    let stuck = given(some_user(), "needs_attention", 3, 5);
    halves.write("mei@example.com", &stuck).await;
    expected.sort_unstable();
    let expected: Vec<_> = expected.into_iter().map(|(_, id)| id.to_string()).collect();

    let reviewer = Uuid::new_v4();
    let mut seen = Vec::new();
    let mut path = "/v1/withdrawals?limit=5".to_owned();
    loop {
        let answer = get(&api, Role::Reviewer, reviewer, &path).await;
        seen.extend(ids(&answer));
        for one in answer.body["withdrawals"].as_array().unwrap() {
            assert_eq!(one["destination"], json!({"state": "masked", "kind": "paypal", "account": "***@***.com"}));
            assert_eq!(one["risk"]["withdrawals"]["failed"], json!({"count": 6, "points": 7}));
        }
        // How fresh every shard is.
        let position = answer.header("skyriff-position").unwrap();
        assert_eq!(position.split(',').count(), 16);
        assert!(position.starts_with("0:9,1:9,") && position.ends_with(",15:9"), "{position}");
        match answer.body["next"].as_str() {
            Some(next) => path = format!("/v1/withdrawals?status=under_review&limit=5&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, expected);
    let attention = get(&api, Role::Operator, reviewer, "/v1/withdrawals?status=needs_attention").await;
    assert_eq!(ids(&attention), [stuck.withdrawal.to_string()]);
    assert!(attention.body["withdrawals"][0].get("destination").is_none());

    let which = |role| match role {
        Role::Reviewer => [200, 403],
        Role::Operator => [403, 200],
        Role::User | Role::Service | Role::Auditor | Role::Analyst | Role::Worker => [403, 403],
    };
    for role in Role::ALL {
        for (status, expected) in ["under_review", "needs_attention"].into_iter().zip(which(role)) {
            let answer = get(&api, role, reviewer, &format!("/v1/withdrawals?status={status}")).await;
            assert_eq!(answer.kind().0, expected, "{role:?} {status}");
        }
    }
    for bad in ["limit=0", "limit=101", "cursor=x", "status=paid", "more=1"] {
        let answer = get(&api, Role::Reviewer, reviewer, &format!("/v1/withdrawals?{bad}")).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{bad}");
    }
    let fresher = api.request(Role::Reviewer, reviewer, "/v1/withdrawals").header("skyriff-at-least", "3:9,12:10");
    let answer = api.send(fresher).await;
    assert_eq!((answer.kind(), &answer.body["newest"]), ((503, "not-that-fresh-yet"), &json!("12:9")));
}

#[tokio::test]
async fn what_was_erased_or_cannot_be_opened_is_said_and_everything_else_is_shown() {
    let halves = Halves::create().await;
    halves.checkpoints().await;
    let (erased, other) = (some_user(), some_user());
    let (one, two) = (given(erased, "under_review", 0, 5), given(other, "under_review", 1, 5));
    for one in [&one, &two] {
        halves.write("mei@example.com", one).await;
    }
    sqlx::query("SELECT destroy_person_key($1, $2)")
        .bind(erased.0)
        .bind(i16::try_from(place(erased, 0).shard.0).unwrap())
        .execute(&mut halves.lower.event_store(OWNER).connect().await.unwrap())
        .await
        .unwrap();
    let states = async |api: &Api| {
        let answer = get(api, Role::Reviewer, Uuid::nil(), "/v1/withdrawals").await;
        assert_eq!(ids(&answer), [one.withdrawal.to_string(), two.withdrawal.to_string()]);
        [0, 1].map(|place| answer.body["withdrawals"][place]["destination"]["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(states(&halves.api()).await, ["erased", "masked"]);
    let dead = Dead::new();
    let shards = ShardCount::default().shards().collect();
    let database = KeyDatabase { shards, primary: dead.pool() };
    let without = Vault::new(halves.keys.clone(), ShardCount::default(), vec![database]);
    assert_eq!(states(&halves.api_with(without)).await, ["unavailable", "unavailable"]);
}
