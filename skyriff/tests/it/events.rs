//! Streams of events, as an analyst's client takes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use reqwest::{Client, Method, Response, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use uuid::Uuid;

use crate::{
    nodes::node,
    support::{Api, Folder, LIMIT, eventually},
};

/// A stream that ended by itself.
struct Read {
    events: Vec<Value>,
    cursor: String,
    end: String,
}

/// The whole of a stream.
async fn read(api: &Api, query: &str) -> Read {
    let answer = api.get(&format!("/v1/events{query}")).await.with(StatusCode::OK);
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(answer.bytes).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (cursors, events): (Vec<_>, Vec<_>) = lines.partition(|line| line.get("cursor").is_some());
    let last = cursors.last().unwrap();
    let (cursor, end) = (last["cursor"].as_str().unwrap().to_owned(), last["end"].as_str().unwrap().to_owned());
    Read { events, cursor, end }
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

async fn log(folder: &Folder, role: &str) -> PgConnection {
    let options = PgConnectOptions::new_without_pgpass().socket(folder.join("run/primary")).username(role);
    PgConnection::connect_with(&options.database("skyriff_events")).await.unwrap()
}

#[tokio::test]
async fn analysts_read_events_filtered_masked_and_from_where_they_were() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let operator = dev.api.as_caller(&folder.token("operator", Uuid::from_u128(2)).await);
    let analyst = dev.api.as_caller(&folder.token("analyst", Uuid::from_u128(3)).await);
    let users = [Uuid::from_u128(11), Uuid::from_u128(12), dev.user];
    for user in users {
        for turn in 0..4 {
            service.earn(user, &format!("earn {user} {turn}"), 5).await.unwrap().with(StatusCode::CREATED);
        }
    }
    let order = json!({ "order": Uuid::from_u128(21), "points": 50 });
    let recharges = format!("/v1/users/{}/recharges", users[0]);
    service.post(&recharges, "recharge", Some(order)).await.unwrap().with(StatusCode::CREATED);
    let adjust = json!({ "bucket": "income", "direction": "credit", "points": 1, "reason": "words about a person" });
    let adjustments = format!("/v1/users/{}/adjustments", users[1]);
    operator.post(&adjustments, "adjust", Some(adjust)).await.unwrap().with(StatusCode::CREATED);
    let checked_in = dev.api.check_in(dev.user, "check in").await.with(StatusCode::CREATED);

    // What was just recorded is there when that is asked for, and what is not to be had is refused.
    let at = checked_in.header("skyriff-position").to_owned();
    let at_least =
        async |at: &str| analyst.send(Method::GET, "/v1/events", &[("Skyriff-At-Least", at)], None).await.unwrap();
    let fresh = at_least(&at).await.with(StatusCode::OK);
    assert!(String::from_utf8(fresh.bytes).unwrap().contains(&format!(r#"{{"id":"{at}""#)));
    let shard = at.split(':').next().unwrap();
    at_least(&format!("{shard}:99999")).await.is_problem(StatusCode::SERVICE_UNAVAILABLE, "not-that-fresh-yet");

    // Everything: each shard's events 1, 2, 3 …, and the log's own times decide between shards.
    let in_log: i64 = sqlx::query_scalar("SELECT count(*) FROM events")
        .fetch_one(&mut log(&folder, "skyriff_query").await)
        .await
        .unwrap();
    // Streams come from a replica, which may be behind for a moment.
    let all = eventually("a replica with everything", async || {
        let all = read(&analyst, "").await;
        (all.events.len() == usize::try_from(in_log).unwrap()).then_some(all)
    })
    .await;
    assert_eq!(all.end, "complete");
    let mut positions: BTreeMap<i64, i64> = BTreeMap::new();
    for event in &all.events {
        let position = positions.entry(event["shard"].as_i64().unwrap()).or_default();
        *position += 1;
        assert_eq!(event["position"], *position);
        assert_eq!(event["id"], format!("{}:{position}", event["shard"]));
    }
    let recorded: Vec<_> = all.events.iter().map(|event| event["recorded_at"].as_str().unwrap()).collect();
    assert!(recorded.is_sorted(), "{recorded:?}");
    assert!(analyst.metric("skyriff_event_pages_total", "replica").await > 0.0);

    // One whole line, and what is personal in none.
    let checked_in = all.events.iter().find(|event| event["type"] == "points_account.checked_in").unwrap();
    let members: Vec<_> = checked_in.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "actor",
        "command_id",
        "data",
        "id",
        "occurred_at",
        "position",
        "recorded_at",
        "sequence",
        "shard",
        "stream",
        "type",
        "version",
    ];
    assert_eq!(members, expected);
    assert_eq!((&checked_in["actor"], &checked_in["version"]), (&json!("user"), &json!("1")));
    assert_eq!(checked_in["stream"], format!("points_account/{}", dev.user));
    assert_eq!((&checked_in["data"]["points"], &checked_in["sequence"]), (&json!(10), &json!(5)));
    let adjusted = all.events.iter().find(|event| event["type"] == "points_account.adjusted").unwrap();
    assert_eq!((&adjusted["actor"], &adjusted["data"]["reason"]), (&json!("operator"), &Value::Null));
    assert_eq!(adjusted["data"]["moved"], json!({ "income": 1 }));
    let text = analyst.get("/v1/events").await.bytes;
    let text = String::from_utf8(text).unwrap();
    for personal in ["words about", "request_id", &Uuid::from_u128(2).to_string()] {
        assert!(!text.contains(personal), "{personal}");
    }

    // Filters, alone and together.
    let of = async |query: &str| read(&analyst, query).await.events;
    let types = async |query: &str| {
        let events = of(query).await;
        let types = events.iter().map(|event| event["type"].as_str().unwrap().to_owned());
        types.fold(BTreeMap::<_, u32>::new(), |mut counts, name| {
            *counts.entry(name).or_default() += 1;
            counts
        })
    };
    let counts = |counts: &[(&str, u32)]| counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    assert_eq!(types("?type=points_account.earned").await, counts(&[("points_account.earned", 12)]));
    assert_eq!(types("?aggregate=recharge_order").await, counts(&[("recharge_order.credited", 1)]));
    assert_eq!(
        types("?type=points_account.adjusted,points_account.recharged&aggregate=points_account").await,
        counts(&[("points_account.adjusted", 1), ("points_account.recharged", 1)])
    );
    // The payment's stream is the user's, although its name does not say so.
    assert_eq!(
        types(&format!("?user={}", users[0])).await,
        counts(&[("points_account.earned", 4), ("points_account.recharged", 1), ("recharge_order.credited", 1)])
    );
    assert_eq!(types(&format!("?user={}&aggregate=tip", users[0])).await, counts(&[]));
    let middle = all.events[5]["occurred_at"].as_str().unwrap();
    let before = ids(&of(&format!("?to={middle}")).await);
    let after = ids(&of(&format!("?from={middle}")).await);
    let both: BTreeSet<_> = before.iter().chain(&after).cloned().collect();
    assert_eq!((before.len() + after.len(), both.len()), (all.events.len(), all.events.len()));
    assert!(after.contains(&ids(&all.events)[5]) && !before.is_empty());

    // Of one shard, from a position, and in parts that meet without a gap or an overlap.
    let shard = checked_in["shard"].as_i64().unwrap();
    let whole = ids(&of(&format!("?shard={shard}")).await);
    assert_eq!(ids(&of(&format!("?shard={shard}&after=2")).await), whole[2..]);
    for start in [format!("?shard={shard}&limit=2"), "?limit=3".to_owned()] {
        let mut parts = Vec::new();
        let mut part = read(&analyst, &start).await;
        let limit = start.rsplit_once("limit=").unwrap().1.to_owned();
        loop {
            parts.extend(ids(&part.events));
            if part.end == "complete" {
                break;
            }
            assert_eq!((part.end.as_str(), part.events.len().to_string()), ("limit", limit.clone()));
            part = read(&analyst, &format!("?limit={limit}&cursor={}", part.cursor)).await;
        }
        let expected = if start.contains("shard") { whole.clone() } else { ids(&all.events) };
        assert_eq!(parts, expected, "{start}");
    }
    assert!(read(&analyst, &format!("?cursor={}", all.cursor)).await.events.is_empty());

    for role in ["user", "service", "operator", "reviewer", "auditor", "worker"] {
        let other = dev.api.as_caller(&folder.token(role, dev.user).await);
        other.get("/v1/events").await.is_problem(StatusCode::FORBIDDEN, "forbidden");
        other.get(&format!("/v1/events?user={}", dev.user)).await.is_problem(StatusCode::FORBIDDEN, "forbidden");
    }
    dev.api.as_caller("x").get("/v1/events").await.is_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
    for malformed in [
        "shard=16",
        "shard=x",
        "shard=-1",
        "after=3",
        "shard=3&after=-1",
        "cursor=nonsense",
        "cursor=",
        "shard=3&cursor=AQME",
        "type=spent",
        "type=nothing.spent",
        "type=points_account.Spent%27",
        "type=points_account.nothing",
        "aggregate=points",
        "type=",
        "type=,",
        "aggregate=",
        "user=me",
        "from=yesterday",
        "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "follow=maybe",
        "limit=0",
        "limit=x",
        "heartbeat_s=0",
        "heartbeat_s=61",
        "unknown=1",
    ] {
        let answer = analyst.get(&format!("/v1/events?{malformed}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{malformed}");
        answer.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    }
    // A user's events are on one shard, so there is nothing of them on the others.
    let on_both = async |shard: u16| analyst.get(&format!("/v1/events?user={}&shard={shard}", dev.user)).await.status;
    let of_shards = [on_both(0).await, on_both(1).await, on_both(2).await];
    assert!(of_shards.iter().filter(|status| **status == StatusCode::BAD_REQUEST).count() >= 2, "{of_shards:?}");

    // So many streams and no more; one that is closed makes room.
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(follow(&analyst, &folder, "", None).await);
    }
    let turned_away = analyst.get("/v1/events").await;
    turned_away.is_problem(StatusCode::SERVICE_UNAVAILABLE, "too-many-streams");
    assert_eq!(turned_away.header("retry-after"), "10");
    streams.pop();
    eventually("room for a stream", async || (analyst.get("/v1/events").await.status == StatusCode::OK).then_some(()))
        .await;
    // Told to stop, a node ends its streams and does not wait for them.
    dev.interrupt().await.well();
    for stream in streams {
        assert!(stream.rest().await.contains("event: end"));
    }
}

/// A stream of server-sent events.
struct Follow {
    answer: Response,
    read: String,
}

async fn follow(analyst: &Api, folder: &Folder, query: &str, last: Option<&str>) -> Follow {
    let token = folder.token("analyst", Uuid::from_u128(3)).await;
    let url = format!("{}/v1/events?follow=true&heartbeat_s=1{query}", analyst.url);
    let mut request = Client::new().get(url).bearer_auth(token).header("Accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("Last-Event-ID", last);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    Follow { answer, read: String::new() }
}

impl Follow {
    /// The events that were not taken yet, with their ids, as soon as there are so many.
    async fn events(&mut self, count: usize) -> Vec<(String, Value)> {
        loop {
            let whole = self.read.rfind("\n\n").map_or(0, |end| end + 2);
            let events: Vec<_> = self.read[..whole].split("\n\n").filter_map(sse_event).collect();
            if events.len() >= count {
                self.read.drain(..whole);
                return events;
            }
            let piece = timeout(LIMIT, self.answer.chunk()).await.expect("another piece").unwrap();
            self.read.push_str(std::str::from_utf8(&piece.expect("no end")).unwrap());
        }
    }

    /// A piece without an event.
    async fn heartbeat(&mut self) -> String {
        let piece = timeout(LIMIT, self.answer.chunk()).await.expect("a heartbeat").unwrap().expect("no end");
        String::from_utf8(piece.to_vec()).unwrap()
    }

    /// All until the end, which must be a good one.
    async fn rest(mut self) -> String {
        while let Some(piece) = timeout(LIMIT, self.answer.chunk()).await.expect("an end").unwrap() {
            self.read.push_str(std::str::from_utf8(&piece).unwrap());
        }
        self.read
    }
}

fn sse_event(text: &str) -> Option<(String, Value)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let data = field("data: ").filter(|_| field("event: ").is_none())?;
    Some((field("id: ").unwrap(), serde_json::from_str(&data).unwrap()))
}

#[tokio::test]
async fn a_stream_that_follows_goes_on_after_a_restart_without_losing_or_repeating_an_event() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    let service = dev.api.as_caller(&folder.token("service", Uuid::from_u128(1)).await);
    let users: Vec<_> = (30..36).map(Uuid::from_u128).collect();
    let mut expected = Vec::new();
    let mut turn = 0;
    let mut earn = async || {
        turn += 1;
        let mut positions = Vec::new();
        for user in &users {
            let answer = service.earn(*user, &format!("{user} {turn}"), 1).await.unwrap();
            positions.push(answer.with(StatusCode::CREATED).position());
        }
        positions
    };
    let found = |events: &[(String, Value)]| -> Vec<String> {
        events.iter().map(|(_, event)| event["id"].as_str().unwrap().to_owned()).collect()
    };

    expected.extend(earn().await);
    let (first, url) = node(&folder, "query").await;
    let analyst = dev.api.at(&url);
    let mut stream = follow(&analyst, &folder, "", None).await;
    let mut seen = stream.events(6).await;
    // It waits, says that it is there, and has what is recorded now.
    assert!(stream.heartbeat().await.contains("id: "));
    expected.extend(earn().await);
    seen.extend(stream.events(6).await);
    assert_eq!(found(&seen), expected);

    first.signal(Signal::TERM);
    let rest = stream.rest().await;
    assert!(rest.contains("event: end") && rest.contains(r#""end":"stopping""#), "{rest}");
    first.end().await.well();

    // The client forgot the last two, and more happened while nobody served.
    seen.truncate(10);
    expected.extend(earn().await);
    let (second, url) = node(&folder, "query").await;
    let analyst = dev.api.at(&url);
    let mut stream = follow(&analyst, &folder, "", Some(&seen[9].0)).await;
    seen.extend(stream.events(8).await);
    expected.extend(earn().await);
    seen.extend(stream.events(6).await);
    assert_eq!(found(&seen), expected);

    // Killed, it does not look as if it had ended well.
    second.signal(Signal::KILL);
    let mut cut = false;
    while !cut {
        match timeout(LIMIT, stream.answer.chunk()).await.expect("an end") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream that was cut off ended well"),
            Err(_) => cut = true,
        }
    }
    second.end().await;
    let bad = dev.api.as_caller(&folder.token("analyst", Uuid::from_u128(3)).await);
    let bad = bad.send(reqwest::Method::GET, "/v1/events", &[("Last-Event-ID", "3:7")], None).await.unwrap();
    bad.is_problem(StatusCode::BAD_REQUEST, "malformed-request");
    dev.interrupt().await.well();
}

/// Of shard 0, made by the database itself: a client of the API would take longer.
const MADE: i64 = 300_000;
const MAKE: &str = r#"INSERT INTO events
    SELECT 0, n, 'points_account', '00000000-0000-0000-0000-000000000001', n, 'earned', '1',
           '{"earned":{"credited":{"income":1},"reason":"test"}}',
           '{"command_id":"00000000-0000-0000-0000-000000000002","actor":"service:x","request_id":"r"}', now(), now()
    FROM generate_series(1, $1) AS n"#;

#[tokio::test]
async fn a_client_that_does_not_read_costs_no_memory_and_gets_everything_in_the_end() {
    let folder = Folder::new();
    let dev = folder.dev().await;
    sqlx::query(MAKE).bind(MADE).execute(&mut log(&folder, "skyriff_command").await).await.unwrap();
    let (node, url) = node(&folder, "query").await;
    let analyst = dev.api.at(&url).as_caller(&folder.token("analyst", Uuid::from_u128(3)).await);
    eventually("a replica with everything", async || {
        let last = read(&analyst, &format!("?shard=0&after={}", MADE - 1)).await;
        (last.events.len() == 1).then_some(())
    })
    .await;
    let pages_before = analyst.metric("skyriff_event_pages_total", "").await;
    let memory_before = node.memory_kib();

    let token = folder.token("analyst", Uuid::from_u128(3)).await;
    let mut slow = open_slowly(&url, &token).await;
    let mut start = vec![0; 64];
    slow.read_exact(&mut start).await.unwrap();
    // It reads ahead as far as connections hold, and then no further.
    let mut pages = 0.0;
    let mut looks = 0;
    eventually("a stream that waits", async || {
        let now = analyst.metric("skyriff_event_pages_total", "").await;
        looks = if (now - pages).abs() < 0.5 { looks + 1 } else { 0 };
        pages = now;
        (looks > 50).then_some(())
    })
    .await;
    let (all, read) = (f64::from(i32::try_from(MADE / 8_192).unwrap()), pages - pages_before);
    assert!(read > 0.0 && read < all / 2.0, "{read} of {all} pages");
    let grown = node.memory_kib() - memory_before;
    assert!(grown < 48 * 1_024, "{grown} KiB");
    assert_eq!(analyst.metric("skyriff_event_streams", "").await, 1.0);

    let mut text = start;
    while !text.ends_with(b"\r\n0\r\n\r\n") {
        let count = timeout(LIMIT, slow.read_buf(&mut text)).await.expect("more").unwrap();
        assert!(count > 0, "cut off");
    }
    let text = String::from_utf8(text).unwrap();
    let last = format!(r#""position":{MADE},"#);
    assert!(text.contains(&last) && text.contains(r#""end":"complete""#));
    let lines = i64::try_from(text.lines().filter(|line| line.starts_with(r#"{"id":""#)).count()).unwrap();
    assert_eq!(lines, MADE);

    // One that takes nothing when the node stops can tell whether it is cut off: then there is no end of the body.
    let mut cut = open_slowly(&url, &token).await;
    cut.read_exact(&mut [0; 64]).await.unwrap();
    node.signal(Signal::TERM);
    node.end().await.well();
    let mut text = Vec::new();
    while timeout(LIMIT, cut.read_buf(&mut text)).await.expect("an end").is_ok_and(|count| count > 0) {}
    let looks_whole = text.ends_with(b"\r\n0\r\n\r\n");
    assert!(!looks_whole || String::from_utf8(text).unwrap().contains(r#""end":"stopping""#));
    dev.interrupt().await.well();
}

/// A connection that asked and whose buffer is small.
async fn open_slowly(url: &str, token: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1_024).unwrap();
    let address = url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut connection = timeout(Duration::from_secs(10), socket.connect(address)).await.unwrap().unwrap();
    let request = format!("GET /v1/events?shard=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}
