//! What auditors are shown over HTTP, checked by `verify.py`, which shares no code with whoever makes it.

mod auditor;
mod crashes;
mod rotation;

use std::{
    fs,
    io::{BufRead, BufReader},
};

use flate2::read::GzDecoder;
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

pub use self::auditor::{Auditor, sizes};
use crate::{
    play::PLAY_MAX,
    support::{Api, Folder, Process, TRACE, eventually, skyriff},
};

/// Lines of the trace that are played: enough for full tiles in some shards.
const LINES: usize = 5_000;
/// Events that are asked for while the trace is played, spread over all of them.
const EVENTS: usize = 60;
/// Events of a whole trace that are proven.
const EVENTS_OF_TRACE: usize = 1_000;

/// Some of the events that there are when each shard has so many: shard and position, the same in every run.
fn some_events(sizes: &[u64], count: usize) -> impl Iterator<Item = (u16, u64)> {
    let events = (0..16_u16).zip(sizes).flat_map(|(shard, size)| (1..=*size).map(move |position| (shard, position)));
    let events: Vec<_> = events.collect();
    let mut state = 7_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        events[usize::try_from(state >> 33).unwrap() % events.len()]
    })
    .take(count)
}

/// Events of a log that was played, each with its proof.
pub async fn events_are_proven(folder: &Folder, api: &Api) {
    let auditor = Auditor::of(folder, api).await;
    let sizes = sizes(&auditor.all_sealed(folder).await);
    let (mut answers, mut says) = (Vec::new(), Vec::new());
    for (shard, position) in some_events(&sizes, EVENTS_OF_TRACE) {
        answers.push(auditor.get(&format!("/v1/ledger/proofs/inclusion?event={shard}:{position}")).await);
        says.push(format!("event {shard}:{position} is one of the {} that are sealed", sizes[usize::from(shard)]));
    }
    assert_eq!(auditor.verify_all(&answers).await, says);
}

#[tokio::test]
async fn events_of_a_real_trace_are_shown_and_what_was_kept_is_their_beginning() {
    let folder = Folder::new();
    let dev = folder.dev_with(&["--no-worker"]).await;
    let auditor = Auditor::of(&folder, &dev.api).await;
    let kept = auditor.sealed_something().await;
    auditor.accepts("checkpoint", &kept, None, "sealed: 0:0 1:0").await;

    let here = tempfile::tempdir().unwrap();
    let trace = here.path().join("part.ndjson");
    let lines = BufReader::new(GzDecoder::new(fs::File::open(TRACE).unwrap())).lines().take(LINES);
    fs::write(&trace, lines.map(Result::unwrap).collect::<Vec<_>>().join("\n")).unwrap();
    let arguments = ["play", trace.to_str().unwrap(), "--bulk", "--url", &dev.api.url, "--folder", &folder.as_str()];
    let playing = Process::spawn(skyriff(&arguments));
    let between = auditor.sealed_events(500).await;
    playing.end_within(PLAY_MAX).await.well();
    let newest = auditor.all_sealed(&folder).await;
    let (old, new) = (sizes(&between), sizes(&newest));
    assert!(new.iter().sum::<u64>() > 3_000 && new.iter().any(|size| *size > 256), "{new:?}");
    assert!(old.iter().sum::<u64>() < new.iter().sum(), "{old:?} {new:?}");

    // Any event, by the newest checkpoint and by the one from between.
    for (shard, position) in some_events(&new, EVENTS) {
        let answer = auditor.get(&format!("/v1/ledger/proofs/inclusion?event={shard}:{position}")).await;
        let says = format!("event {shard}:{position} is one of the {}", new[usize::from(shard)]);
        auditor.accepts("inclusion", &answer, None, &says).await;
        let then =
            format!("/v1/ledger/proofs/inclusion?event={shard}:{position}&sealed={}", auditor::sealed_at(&between));
        let then = auditor.api.get(&then).await;
        if position <= old[usize::from(shard)] {
            assert_eq!(then.status, StatusCode::OK, "{}", then.json);
            assert_eq!(then.json["checkpoint"], between["checkpoint"]);
            auditor.accepts("inclusion", &then.json, None, "is one of the").await;
        } else {
            then.is_problem(StatusCode::UNPROCESSABLE_ENTITY, "out-of-range");
        }
    }

    // What was kept is the beginning, of all shards and of one.
    for kept in [&kept, &between, &newest] {
        let answer = auditor.continues(kept).await;
        auditor.accepts("consistency", &answer, Some(kept), "what was kept is the beginning").await;
    }
    let shard = new.iter().position(|size| *size > 256).unwrap();
    let of_shard = format!("/v1/ledger/shards/{shard}/checkpoint?sealed={}", auditor::sealed_at(&between));
    let of_shard = auditor.get(&of_shard).await;
    auditor.accepts("checkpoint", &of_shard, None, &format!("sealed: {shard}:{}", old[shard])).await;
    let path = format!("/v1/ledger/proofs/consistency?shard={shard}&sizes={}", old[shard]);
    auditor.accepts("consistency", &auditor.get(&path).await, Some(&of_shard), "what was kept is").await;

    // And nothing else is.
    let answer = auditor.get(&format!("/v1/ledger/proofs/inclusion?event={shard}:100")).await;
    for (member, with) in [
        ("/event/payload", json!("{}")),
        ("/event/position", json!(101)),
        ("/event/recorded_at_us", json!(1)),
        ("/hashes/0", answer["hashes"][1].clone()),
    ] {
        let mut tampered = answer.clone();
        *tampered.pointer_mut(member).unwrap() = with;
        auditor.refuses("inclusion", &tampered, None).await;
    }
    let mut other = auditor.continues(&between).await;
    let grown = (0..16).find(|shard| 0 < old[*shard] && old[*shard] < new[*shard]).unwrap();
    other["proofs"][grown.to_string()][0] = json!("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    auditor.refuses("consistency", &other, Some(&between)).await;
    let later = auditor.continues(&between).await;
    auditor
        .refuses(
            "consistency",
            &later,
            Some(&json!({"checkpoint": between["checkpoint"].as_str().unwrap().replace("\n0 ", "\n0 1")})),
        )
        .await;

    tiles_are_those_of_the_specification(&auditor, shard, new[shard]).await;
    dev.interrupt().await.well();
}

/// Somebody else's tool: it knows tlog-tiles alone.
async fn tiles_are_those_of_the_specification(auditor: &Auditor, shard: usize, size: u64) {
    let at = format!("/v1/ledger/tlog/{shard}");
    let note = auditor.api.get(&format!("{at}/checkpoint")).await.with(StatusCode::OK);
    assert!(note.header("content-type").starts_with("text/plain"));
    let note = String::from_utf8(note.bytes).unwrap();
    assert!(note.starts_with(&format!("localhost/v1/ledger/tlog/{shard}\n{size}\n")), "{note}");
    let full = auditor.api.get(&format!("{at}/tile/0/000")).await.with(StatusCode::OK);
    assert_eq!((full.bytes.len(), full.header("content-type")), (8_192, "application/octet-stream"));
    let (last, width) = (size / 256, size % 256);
    let partial = auditor.api.get(&format!("{at}/tile/0/{last:03}.p/{width}")).await.with(StatusCode::OK);
    assert_eq!(partial.bytes.len(), usize::try_from(width * 32).unwrap());
    // What a tile was before it was full is its beginning.
    let before = auditor.api.get(&format!("{at}/tile/0/000.p/7")).await.with(StatusCode::OK);
    assert_eq!(before.bytes, full.bytes[..7 * 32]);
    for nothing in ["0/999", "0/000.p/256", "0/00", "9/000", "0/..%2f..%2f0", "x", &format!("0/{last:03}")] {
        let answer = auditor.api.get(&format!("{at}/tile/{nothing}")).await;
        answer.is_problem(StatusCode::NOT_FOUND, "not-found");
    }
}

#[tokio::test]
async fn what_is_asked_of_the_ledger_wrongly_is_refused_and_only_auditors_ask() {
    let folder = Folder::new();
    let dev = folder.dev_with(&["--no-worker"]).await;
    let auditor = Auditor::of(&folder, &dev.api).await;
    auditor.sealed_something().await;
    let routes = [
        "/v1/ledger/checkpoint",
        "/v1/ledger/shards/0/checkpoint",
        "/v1/ledger/proofs/inclusion?event=0:1",
        "/v1/ledger/proofs/consistency?shard=0&sizes=0",
        "/v1/ledger/keys",
        "/v1/ledger/tlog/0/checkpoint",
        "/v1/ledger/tlog/0/tile/0/000",
    ];
    for role in ["user", "service", "operator", "reviewer", "analyst", "worker"] {
        let other = dev.api.as_caller(&folder.token(role, Uuid::from_u128(9)).await);
        for route in routes {
            other.get(route).await.is_problem(StatusCode::FORBIDDEN, "forbidden");
        }
    }
    let (malformed, not_found, out_of_range) = (
        (StatusCode::BAD_REQUEST, "malformed-request"),
        (StatusCode::NOT_FOUND, "not-found"),
        (StatusCode::UNPROCESSABLE_ENTITY, "out-of-range"),
    );
    for (path, (status, name)) in [
        ("/v1/ledger/checkpoint?sealed=x", malformed),
        ("/v1/ledger/checkpoint?seald=1", malformed),
        ("/v1/ledger/checkpoint?sealed=1", not_found),
        ("/v1/ledger/checkpoint?sealed=-9223372036854775808", not_found),
        ("/v1/ledger/shards/16/checkpoint", not_found),
        ("/v1/ledger/shards/x/checkpoint", malformed),
        ("/v1/ledger/shards/65536/checkpoint", malformed),
        ("/v1/ledger/tlog/16/checkpoint", not_found),
        ("/v1/ledger/proofs/inclusion", malformed),
        ("/v1/ledger/proofs/inclusion?event=0", malformed),
        ("/v1/ledger/proofs/inclusion?event=0:0", malformed),
        ("/v1/ledger/proofs/inclusion?event=0:%00", malformed),
        ("/v1/ledger/proofs/inclusion?event=16:1", not_found),
        ("/v1/ledger/proofs/inclusion?event=0:9223372036854775807", not_found),
        ("/v1/ledger/proofs/consistency", malformed),
        ("/v1/ledger/proofs/consistency?sizes=", malformed),
        ("/v1/ledger/proofs/consistency?sizes=1,2", malformed),
        ("/v1/ledger/proofs/consistency?sizes=-1&shard=1", malformed),
        ("/v1/ledger/proofs/consistency?sizes=0&shard=16", not_found),
        ("/v1/ledger/proofs/consistency?sizes=18446744073709551615&shard=1", out_of_range),
    ] {
        auditor.api.get(path).await.is_problem(status, name);
    }
    // Far away is the newest.
    let newest = auditor.get("/v1/ledger/checkpoint").await;
    assert_eq!(auditor.get("/v1/ledger/checkpoint?sealed=9223372036854775807").await, newest);
    dev.interrupt().await.well();
}

#[tokio::test]
async fn what_is_recorded_and_not_sealed_is_said_to_come() {
    let folder = Folder::new();
    // Nobody seals here.
    let dev = folder.dev_with(&["--no-worker", "--roles", "command,query,project,process"]).await;
    let auditor = Auditor::of(&folder, &dev.api).await;
    let not_sealed = |answer: crate::support::Answer| {
        answer.is_problem(StatusCode::SERVICE_UNAVAILABLE, "not-sealed-yet");
        assert_eq!(answer.header("retry-after"), "1");
    };
    not_sealed(auditor.api.get("/v1/ledger/checkpoint").await);
    let sealer = crashes::sealer(&folder).await;
    auditor.sealed_something().await;
    sealer.signal(rustix::process::Signal::TERM);
    sealer.end().await.well();
    let position = dev.api.check_in(dev.user, "first").await.with(StatusCode::CREATED).position();
    let path = format!("/v1/ledger/proofs/inclusion?event={position}");
    not_sealed(auditor.api.get(&path).await);
    let sealer = crashes::sealer(&folder).await;
    let answer = eventually("it is sealed", async || {
        let answer = auditor.api.get(&path).await;
        (answer.status == StatusCode::OK).then_some(answer.json)
    });
    let answer: Value = answer.await;
    auditor.accepts("inclusion", &answer, None, &format!("event {position} is one of the 1")).await;
    assert!(answer["event"]["metadata"].as_str().unwrap().contains("user"), "{answer}");
    sealer.signal(rustix::process::Signal::TERM);
    sealer.end().await.well();
    dev.interrupt().await.well();
}
