//! Withdrawals over HTTP: who may do what, what is refused and how, and where a destination never is.

use futures::future::join_all;
use serde_json::{Value, json};
use skyriff_domain::{
    Intent, ShardCount, UserId, WithdrawalId, shard_of,
    withdrawal::{Step, What},
};
use skyriff_edge::Role;
use skyriff_postgres::databases::{COMMAND, OWNER};
use skyriff_vault::{KeyDatabase, MasterKeys, Vault};
use skyriff_write_side::commands::Limits;
use sqlx::{PgConnection, postgres::PgPoolOptions};
use uuid::Uuid;

use crate::{
    http::{Answer, Api, body_of},
    store::{LONG, Store, command, noon, some_user},
};

const ACCOUNT: &str = "mei.lin.of.hangzhou@example.com";
const NAME: &str = "Mei Lin of Hangzhou";

fn wanted(points: i64) -> Value {
    json!({"points": points, "destination": {"kind": "alipay", "account": ACCOUNT, "name": NAME}})
}

fn some_key() -> String {
    Uuid::new_v4().to_string()
}

async fn post(api: &Api, role: Role, id: Uuid, path: &str, key: &str, body: &Value) -> Answer {
    api.send(api.json(role, id, path, key).body(body_of(body)).unwrap()).await
}

async fn request(api: &Api, user: UserId, points: i64) -> Answer {
    post(api, Role::User, user.0, "/v1/withdrawals", &some_key(), &wanted(points)).await
}

/// A user with this much income.
async fn someone_with(api: &Api, income: i64) -> UserId {
    let user = some_user();
    let earned = json!({"bucket": "income", "points": income, "reason": "views"});
    assert_eq!(api.service(&format!("/v1/users/{user}/earnings"), earned).await.status, 201);
    user
}

/// Where a requested withdrawal is.
fn place(requested: &Answer) -> String {
    assert_eq!(requested.status, 201, "{}", requested.body);
    requested.header("location").unwrap().to_owned()
}

/// A step that only the payout process takes.
async fn take(api: &Api, user: UserId, place: &str, what: What) {
    let withdrawal = WithdrawalId(place.rsplit('/').next().unwrap().parse().unwrap());
    let step = command(&some_key(), user, noon(), Intent::Withdrawal(Step { withdrawal, what }));
    api.node.commands.execute(step).await.unwrap();
}

async fn start_payout(api: &Api, user: UserId, place: &str) {
    take(api, user, place, What::StartPayout { provider: "local".parse().unwrap() }).await;
}

async fn need_attention(api: &Api, user: UserId, place: &str) {
    start_payout(api, user, place).await;
    take(api, user, place, What::NeedAttention { reason: "no answer".to_owned().try_into().unwrap() }).await;
}

#[tokio::test]
async fn every_route_is_for_those_who_may_and_for_nobody_else() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let rejected = json!({"reason": "looks odd"});
    let resolved = json!({"outcome": "paid", "reference": "po_1"});
    // What comes before, the route, its body, who may, and whether it must be their own.
    let table = [
        ("cancel", Value::Null, Role::User, true),
        ("approve", Value::Null, Role::Reviewer, false),
        ("reject", rejected, Role::Reviewer, false),
        ("resolve", resolved, Role::Operator, false),
    ];
    for (route, body, may, own) in table {
        let user = someone_with(&api, 1_000).await;
        let place = place(&request(&api, user, 1_000).await);
        if route == "resolve" {
            let approved =
                post(&api, Role::Reviewer, Uuid::new_v4(), &format!("{place}/approve"), "a", &Value::Null).await;
            assert_eq!(approved.status, 201);
            need_attention(&api, user, &place).await;
        }
        let path = format!("{place}/{route}");
        let before = store.commands_recorded().await;
        for role in Role::ALL {
            for id in [user.0, Uuid::new_v4()] {
                if role != may || (own && id != user.0) {
                    let refused = post(&api, role, id, &path, "forbidden", &body).await;
                    assert_eq!(refused.kind(), (403, "forbidden"), "{role:?} {route} {}", id == user.0);
                }
            }
        }
        assert_eq!(store.commands_recorded().await, before, "{route}");
        let id = if own { user.0 } else { Uuid::new_v4() };
        let done = post(&api, may, id, &path, "key", &body).await;
        assert_eq!(done.status, 201, "{route} {}", done.body);
        let again = post(&api, may, id, &path, "key", &body).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (done.status, Some("true")));
        assert_eq!(again.body["recorded"], done.body["recorded"]);
    }
    // A request is its caller's own, so only users have one to make.
    let user = someone_with(&api, 1_000).await;
    for role in Role::ALL.into_iter().filter(|role| *role != Role::User) {
        let refused = post(&api, role, user.0, "/v1/withdrawals", "key", &wanted(100)).await;
        assert_eq!(refused.kind(), (403, "forbidden"), "{role:?}");
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM person_keys WHERE user_id = $1")
        .bind(user.0)
        .fetch_one(&mut store.owner().await)
        .await
        .unwrap();
    assert_eq!(keys, 0, "nothing was sealed for whoever may not");
    store.log().await;
}

#[tokio::test]
async fn a_request_is_recorded_once_and_answered_the_same_again() {
    let store = Store::create().await;
    let (api, other_node) = (Api::new(&store), Api::new(&store));
    let user = someone_with(&api, 1_000).await;
    let send =
        |api: &Api, body: Value| api.json(Role::User, user.0, "/v1/withdrawals", "mine").body(body_of(&body)).unwrap();
    let first = api.send(send(&api, wanted(500))).await;
    let id = skyriff_domain::CommandId::derive(&format!("user:{user}"), "mine");
    assert_eq!(place(&first), format!("/v1/users/{user}/withdrawals/{id}"));
    let types: Vec<_> = first.body["recorded"].as_array().unwrap().iter().map(|e| e["event"].clone()).collect();
    let requested = &types[0]["requested"];
    assert_eq!((&requested["points"], &requested["fee"]), (&json!(500), &json!(5)));
    assert_eq!((&requested["money"]["minor"], &requested["reviews_needed"]), (&json!(495), &json!(0)));
    for api in [&api, &other_node] {
        let again = api.send(send(api, wanted(500))).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (first.status, Some("true")));
        assert_eq!(
            (again.header("location"), &again.body["recorded"]),
            (first.header("location"), &first.body["recorded"])
        );
    }
    let mut elsewhere = wanted(500);
    elsewhere["destination"]["account"] = "13800138000".into();
    for other in [wanted(501), elsewhere] {
        assert_eq!(api.send(send(&api, other)).await.kind(), (422, "idempotency-key-reused"));
    }
    assert_eq!(store.log().await.len(), 4);
}

#[tokio::test]
async fn four_eyes_see_what_is_large() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = someone_with(&api, 30_000).await;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let large = place(&request(&api, user, 20_000).await);
    let approve = async |id: Uuid| {
        let answer = post(&api, Role::Reviewer, id, &format!("{large}/approve"), &some_key(), &Value::Null).await;
        (answer.kind().0, answer.kind().1.to_owned())
    };
    let is = |status: u16, kind: &str| (status, kind.to_owned());
    // Whoever has the role of a reviewer is still the owner of what is theirs.
    assert_eq!(approve(user.0).await, is(403, "four-eyes"));
    let rejects = post(&api, Role::Reviewer, user.0, &format!("{large}/reject"), "r", &json!({"reason": "x"})).await;
    assert_eq!(rejects.kind(), (403, "four-eyes"));
    assert_eq!(approve(one).await, is(201, ""));
    assert_eq!(approve(one).await, is(403, "four-eyes"));
    let still = post(&api, Role::User, user.0, &format!("{large}/cancel"), "c", &Value::Null).await;
    assert_eq!(still.status, 201, "one of two reviews is no approval");
    assert_eq!(approve(two).await, is(409, "withdrawal-status"));

    let middle = place(&request(&api, user, 19_999).await);
    let approve = async |id: Uuid| {
        let answer = post(&api, Role::Reviewer, id, &format!("{middle}/approve"), &some_key(), &Value::Null).await;
        (answer.kind().0, answer.kind().1.to_owned())
    };
    assert_eq!(approve(one).await, is(201, ""));
    assert_eq!(approve(two).await, is(409, "withdrawal-status"));
    let late = post(&api, Role::User, user.0, &format!("{middle}/cancel"), "d", &Value::Null).await;
    assert_eq!(late.kind(), (409, "withdrawal-status"));
    assert!(late.body["remedy"].as_str().unwrap().contains("under review"), "{}", late.body);

    // An operator resolves only what needs attention, and not what is their own.
    let paid = json!({"outcome": "paid", "reference": "po_1"});
    let path = format!("{middle}/resolve");
    start_payout(&api, user, &middle).await;
    assert_eq!(post(&api, Role::Operator, one, &path, "1", &paid).await.kind(), (409, "withdrawal-status"));
    take(&api, user, &middle, What::NeedAttention { reason: "lost".to_owned().try_into().unwrap() }).await;
    assert_eq!(post(&api, Role::Operator, user.0, &path, "2", &paid).await.kind(), (403, "four-eyes"));
    assert_eq!(post(&api, Role::Operator, one, &path, "3", &paid).await.kind(), (201, ""));
    assert_eq!(post(&api, Role::Operator, one, &path, "4", &paid).await.kind(), (200, ""));
    let failed = json!({"outcome": "failed", "reason": "closed account"});
    assert_eq!(post(&api, Role::Operator, one, &path, "5", &failed).await.kind(), (409, "withdrawal-status"));
    store.log().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = someone_with(&api, 400_000).await;
    assert_eq!(request(&api, user, 99).await.kind(), (422, "out-of-range"));
    assert_eq!(request(&api, user, 0).await.kind(), (422, "out-of-range"));
    let above = request(&api, user, 50_001).await;
    assert_eq!(above.kind(), (422, "out-of-range"));
    assert!(above.body["detail"].as_str().unwrap().contains("100 to 50000"), "{}", above.body);
    let poor = someone_with(&api, 99).await;
    let too_few = request(&api, poor, 100).await;
    assert_eq!(too_few.kind(), (409, "insufficient-points"));
    assert!(too_few.body["remedy"].as_str().unwrap().contains("only income"), "{}", too_few.body);

    let first = place(&request(&api, user, 30_000).await);
    let second = request(&api, user, 100).await;
    assert_eq!(second.kind(), (409, "withdrawal-open"));
    assert!(second.body["detail"].as_str().unwrap().contains(first.rsplit('/').next().unwrap()));
    // What was cancelled or rejected counts for no limit, what was paid does.
    assert_eq!(post(&api, Role::User, user.0, &format!("{first}/cancel"), "c", &Value::Null).await.status, 201);
    let third = place(&request(&api, user, 30_000).await);
    for reviewer in ["a", "b"] {
        let id = Uuid::new_v4();
        assert_eq!(
            post(&api, Role::Reviewer, id, &format!("{third}/approve"), reviewer, &Value::Null).await.status,
            201
        );
    }
    start_payout(&api, user, &third).await;
    take(&api, user, &third, What::Settle { reference: "po_1".to_owned().try_into().unwrap() }).await;
    let beyond = request(&api, user, 20_001).await;
    assert_eq!(beyond.kind(), (409, "withdrawal-limit"));
    assert!(beyond.body["detail"].as_str().unwrap().contains("20000 of 50000"), "{}", beyond.body);
    assert_eq!(request(&api, user, 20_000).await.status, 201);

    // In another's name, and where there is none, there is nothing to be found.
    let nothing = [
        third.replace(&user.to_string(), &poor.to_string()),
        format!("/v1/users/{user}/withdrawals/{}", Uuid::new_v4()),
    ];
    for place in nothing {
        for route in ["approve", "reject"] {
            let body = if route == "reject" { json!({"reason": "odd"}) } else { Value::Null };
            let answer =
                post(&api, Role::Reviewer, Uuid::new_v4(), &format!("{place}/{route}"), &some_key(), &body).await;
            assert_eq!(answer.kind(), (404, "not-found"), "{place}/{route}");
        }
    }
    store.log().await;
}

#[tokio::test]
async fn bodies_that_are_none_are_refused_and_never_repeated() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = someone_with(&api, 1_000).await;
    let to = |kind: &str, account: &str, name: &str| json!({"points": 100, "destination": {"kind": kind, "account": account, "name": name}});
    let mut more = wanted(100);
    more["destination"]["iban"] = "DE89".into();
    let mut also = wanted(100);
    also["occurred_at"] = "2026-01-01T00:00:00Z".into();
    let bodies = [
        Value::Null,
        json!({"points": 100}),
        json!({"destination": wanted(1)["destination"]}),
        json!({"points": -100, "destination": wanted(1)["destination"]}),
        json!({"points": "100", "destination": wanted(1)["destination"]}),
        to("cash", ACCOUNT, NAME),
        to("bank_account", ACCOUNT, NAME),
        to("alipay", &format!("{ACCOUNT} "), NAME),
        to("alipay", ACCOUNT, ""),
        to("alipay", ACCOUNT, &format!("{NAME}\u{0}")),
        more,
        also,
    ];
    for body in bodies {
        let answer = post(&api, Role::User, user.0, "/v1/withdrawals", &some_key(), &body).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{body}");
        let said = answer.body.to_string();
        assert!(!said.contains(ACCOUNT) && !said.contains(NAME), "{said}");
    }
    let place = place(&request(&api, user, 1_000).await);
    let reviewer = Uuid::new_v4();
    for (route, body) in [
        ("reject", Value::Null),
        ("reject", json!({})),
        ("reject", json!({"reason": ""})),
        ("reject", json!({"reason": "a\nb"})),
        ("reject", json!({"reason": "odd", "reviewer": Uuid::nil()})),
        ("resolve", json!({"outcome": "paid"})),
        ("resolve", json!({"outcome": "paid", "reference": "has space"})),
        ("resolve", json!({"outcome": "paid", "reference": "x", "reason": "y"})),
        ("resolve", json!({"outcome": "failed", "reference": "x"})),
        ("resolve", json!({"outcome": "maybe"})),
    ] {
        let role = if route == "reject" { Role::Reviewer } else { Role::Operator };
        let answer = post(&api, role, reviewer, &format!("{place}/{route}"), &some_key(), &body).await;
        assert_eq!(answer.kind(), (400, "malformed-request"), "{route} {body}");
    }
    assert_eq!(store.log().await.len(), 4, "an earning and one request");
}

#[tokio::test]
async fn however_many_ask_at_once_one_is_open() {
    let store = Store::create().await;
    let nodes = [Api::new(&store), Api::new(&store)];
    let user = someone_with(&nodes[0], 40_000).await;
    for round in 0..5 {
        let answers = join_all((0..24).map(|turn| request(&nodes[turn % 2], user, 500))).await;
        let (open, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
        assert_eq!(open.len(), 1, "round {round}");
        assert!(refused.iter().all(|answer| answer.kind() == (409, "withdrawal-open")));
        start_payout(&nodes[0], user, &place(open[0])).await;
        // The provider's answer comes in twice, through both nodes.
        let ends = nodes.iter().map(async |node| {
            let reference = format!("po_{round}").try_into().unwrap();
            take(node, user, &place(open[0]), What::Settle { reference }).await;
        });
        join_all(ends).await;
    }
    let log = store.log().await;
    let count = |name: &str| log.iter().filter(|logged| logged.event_type == name).count();
    assert_eq!([count("requested"), count("used"), count("closed"), count("paid_out")], [5; 4]);
    let account = crate::store::account(&log, user);
    assert_eq!((account.available().total().get(), account.held().total().get()), (40_000 - 5 * 500, 0));
}

/// Every table of a database, as its rows read, for what must not be there.
async fn assert_nowhere(connection: &mut PgConnection, texts: &[&str]) {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_all(&mut *connection)
            .await
            .unwrap();
    assert!(tables.iter().any(|table| table == "events" || table == "balances"));
    for table in tables {
        for text in texts {
            let found: i64 =
                sqlx::query_scalar(&format!("SELECT count(*) FROM {table} t WHERE t::text ILIKE '%' || $1 || '%'"))
                    .bind(text)
                    .fetch_one(&mut *connection)
                    .await
                    .unwrap();
            assert_eq!(found, 0, "{text} is in {table}");
        }
    }
}

#[tokio::test]
async fn a_destination_is_in_no_table_in_the_clear() {
    let store = Store::create().await;
    let node = store.node_with(&Limits { snapshot_every: 1, ..Limits::default() });
    let api = Api::with(node, store.vault());
    let user = someone_with(&api, 10_000).await;
    let asked = place(&request(&api, user, 5_000).await);
    // Refused ones are remembered too.
    request(&api, user, 5_000).await;
    request(&api, user, 1).await;
    let cancelled = post(&api, Role::User, user.0, &format!("{asked}/cancel"), "c", &Value::Null).await;
    assert_eq!(cancelled.status, 201);
    let mut owner = store.owner().await;
    let end = tokio::time::Instant::now() + LONG;
    loop {
        let snapshots: i64 = sqlx::query_scalar("SELECT count(*) FROM snapshots WHERE aggregate_type = 'withdrawal'")
            .fetch_one(&mut owner)
            .await
            .unwrap();
        if snapshots > 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "a snapshot comes");
        tokio::task::yield_now().await;
    }
    let base64 = base64_of(ACCOUNT);
    assert_nowhere(&mut owner, &[ACCOUNT, "mei.lin", NAME, "Hangzhou", &base64]).await;
    // The search finds what is there.
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM events t WHERE t::text ILIKE '%' || $1 || '%'")
        .bind(user.to_string())
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert!(found > 0);
}

/// The first characters of a text, encoded without having been sealed.
fn base64_of(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits: String = text.bytes().take(12).map(|byte| format!("{byte:08b}")).collect();
    bits.as_bytes()
        .chunks(6)
        .map(|six| char::from(DIGITS[usize::from_str_radix(std::str::from_utf8(six).unwrap(), 2).unwrap()]))
        .collect()
}

#[tokio::test]
async fn nothing_is_sealed_for_whoever_was_erased_or_without_keys() {
    let store = Store::create().await;
    let api = Api::new(&store);
    let user = someone_with(&api, 1_000).await;
    let unreachable = PgPoolOptions::new().connect_lazy_with(store.options(COMMAND));
    unreachable.close().await;
    let shards = ShardCount::default().shards().collect();
    let database = KeyDatabase { shards, primary: unreachable };
    let keys = MasterKeys::from_base64(&MasterKeys::generate()).unwrap();
    let without = Api::with(store.node(), Vault::new(keys, ShardCount::default(), vec![database]));
    let sent = post(&without, Role::User, user.0, "/v1/withdrawals", "key", &wanted(100)).await;
    assert_eq!((sent.kind(), sent.header("retry-after")), ((503, "unavailable"), Some("2")));
    let sent_again = post(&api, Role::User, user.0, "/v1/withdrawals", "key", &wanted(100)).await;
    assert_eq!((sent_again.status.as_u16(), sent_again.header("idempotent-replayed")), (201, None));

    let erased = someone_with(&api, 1_000).await;
    let mut owner = store.connect(OWNER).await;
    sqlx::query("SELECT destroy_person_key($1, $2)")
        .bind(erased.0)
        .bind(i16::try_from(shard_of(erased, ShardCount::default()).0).unwrap())
        .execute(&mut owner)
        .await
        .unwrap();
    assert_eq!(request(&api, erased, 100).await.kind(), (410, "erased"));
    assert_eq!(store.log().await.len(), 5, "two earnings and one request");
}
