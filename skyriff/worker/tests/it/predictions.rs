//! The predictions provider against a hostile server: nothing is made twice, nothing is forgotten, nobody waits for ever.

use std::{fs, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::Utc;
use hmac::{Hmac, Mac};
use serde_json::json;
use sha2::Sha256;
use skyriff_domain::video_job::Cost;
use skyriff_worker::{
    Ended, Failure, JobSpec, Made, VideoProvider, Why,
    provider::predictions::{Limits, Predictions, webhooks::Webhooks},
};
use tokio::net::TcpListener;

use crate::{
    Attempt, LIMIT, eventually,
    provider::{Hostile, Trouble},
    video,
};

const LIMITS: Limits = Limits {
    request_max: Duration::from_secs(2),
    create_max: Duration::from_secs(20),
    silence_max: Duration::from_secs(3),
    poll: Duration::from_millis(20),
    poll_max: Duration::from_millis(50),
    download_max: Duration::from_secs(10),
    download_attempts: 3,
    back_off: Duration::from_millis(20),
    back_off_max: Duration::from_secs(2),
};

pub fn provider(hostile: &Hostile) -> Predictions {
    Predictions::new(&hostile.url(), "the-token", None, LIMITS).unwrap()
}

fn job() -> JobSpec {
    video(1, "a lighthouse", 2)
}

fn cost() -> Cost {
    Cost { micros: 42_000, currency: "usd".parse().unwrap() }
}

fn failed(ended: Result<Made, Ended>) -> Failure {
    match ended {
        Err(Ended::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn whatever_happens_to_a_create_there_is_one_prediction() {
    use Trouble::{Busy, Error, ErrorAfter, LostAfter, Nonsense, SlowAfter};
    for (creates, searches) in [
        (vec![], vec![]),
        (vec![Busy, Busy], vec![]),
        (vec![Error], vec![]),
        (vec![ErrorAfter], vec![]),
        (vec![LostAfter], vec![]),
        (vec![SlowAfter], vec![]),
        (vec![Nonsense], vec![]),
        (vec![LostAfter], vec![Error, LostAfter, Busy]),
        (vec![Error, Busy, ErrorAfter], vec![Error]),
    ] {
        let hostile = Hostile::start().await;
        hostile.with(|book| {
            (book.creates, book.searches) = (creates.clone().into(), searches.clone().into());
        });
        let attempt = Attempt::new();
        let made = attempt.make(&provider(&hostile), &job()).await.unwrap();
        assert_eq!((fs::read(&made.file).unwrap(), made.cost), (b"an output".to_vec(), cost()));
        hostile.with(|book| {
            assert_eq!(book.predictions.len(), 1, "{creates:?}");
            // A create of unknown outcome is looked up; one that was carried out is not sent again.
            let carried_out =
                creates.iter().position(|trouble| matches!(trouble, ErrorAfter | LostAfter | SlowAfter | Nonsense));
            let expected = carried_out.map_or(creates.len(), |at| at) + 1;
            assert_eq!(book.asked, expected, "{creates:?}");
        });
    }
}

#[tokio::test]
async fn while_nobody_can_say_what_came_of_a_create_it_is_not_repeated() {
    let hostile = Hostile::start().await;
    hostile.with(|book| {
        book.creates = [Trouble::LostAfter].into();
        book.searches = [Trouble::Error; 1_000].into();
    });
    let limits = Limits { create_max: Duration::from_millis(500), ..LIMITS };
    let provider = Predictions::new(&hostile.url(), "the-token", None, limits).unwrap();
    let failure = failed(Attempt::new().make(&provider, &job()).await);
    assert!(failure.retryable);
    assert_eq!(hostile.with(|book| (book.asked, book.predictions.len())), (1, 1));
    // The next attempt finds what that one has made.
    hostile.with(|book| book.searches.clear());
    Attempt::new().make(&self::provider(&hostile), &JobSpec { attempt: 2, ..job() }).await.unwrap();
    assert_eq!(hostile.with(|book| (book.asked, book.predictions.len())), (1, 1));
}

#[tokio::test]
async fn a_refused_job_is_not_tried_again_and_others_may_be() {
    let hostile = Hostile::start().await;
    hostile.with(|book| book.creates = [Trouble::Refuse].into());
    let failure = failed(Attempt::new().make(&provider(&hostile), &job()).await);
    assert!(!failure.retryable && failure.reason.contains("this prompt is not allowed"), "{failure:?}");
    let nobody = Predictions::new(
        &"http://127.0.0.1:1/v2".parse().unwrap(),
        "x",
        None,
        Limits { create_max: Duration::from_millis(300), ..LIMITS },
    );
    assert!(failed(Attempt::new().make(&nobody.unwrap(), &job()).await).retryable);
}

#[tokio::test]
async fn trouble_while_it_runs_is_waited_out_and_silence_is_not() {
    use Trouble::{Busy, Error, LostAfter, Nonsense};
    let hostile = Hostile::start().await;
    hostile.with(|book| {
        book.looks_needed = 8;
        book.looks = [Error, LostAfter, Busy, Nonsense, Error].into();
    });
    Attempt::new().make(&provider(&hostile), &job()).await.unwrap();
    hostile.with(|book| book.looks = [Error; 10_000].into());
    let failure = failed(Attempt::new().make(&provider(&hostile), &video(2, "x", 2)).await);
    assert!(failure.retryable && failure.reason.contains("not answered"), "{failure:?}");
    hostile.with(|book| book.looks = [Trouble::Gone].into());
    let failure = failed(Attempt::new().make(&provider(&hostile), &video(3, "x", 2)).await);
    assert!(failure.retryable && failure.reason.contains("no longer knows"), "{failure:?}");
}

#[tokio::test]
async fn each_prediction_s_cost_is_told_once_whatever_becomes_of_its_output() {
    use Trouble::{Error, Gone, LostAfter};
    // Outputs of the first attempt, those of the second, how large each may be, what each tells, and how many predictions
    // there then are.
    for (first, second, bytes_max, told, count) in [
        // It breaks off, and comes in the end.
        (vec![LostAfter, Error], vec![], [100, 100], [42_000, 0], 1),
        // It cannot be had for now: the second attempt takes it over.
        (vec![Error; 3], vec![], [100, 100], [0, 42_000], 1),
        // It has vanished, or is too large, and that does not pass: another one is made.
        (vec![Gone], vec![Gone], [100, 100], [42_000, 42_000], 2),
        (vec![], vec![], [5, 5], [42_000, 42_000], 2),
        // It could not be had, and then it was too late: nobody knows any more who was to tell its cost.
        (vec![Error; 3], vec![Gone], [100, 100], [0, 42_000], 2),
    ] {
        let (hostile, case) = (Hostile::start().await, format!("{first:?} {second:?} {bytes_max:?}"));
        let attempt = async |number: u32, outputs: Vec<Trouble>, bytes_max| {
            hostile.with(|book| book.outputs = outputs.into());
            let attempt = Attempt { bytes_max, ..Attempt::new() };
            match attempt.make(&provider(&hostile), &JobSpec { attempt: number, ..job() }).await {
                Ok(made) => (true, made.cost.micros),
                Err(Ended::Failed(failure)) => {
                    assert!(failure.retryable, "{}", failure.reason);
                    (false, failure.cost.micros)
                }
                Err(stopped) => panic!("{stopped:?}"),
            }
        };
        let (is_made, micros) = attempt(1, first, bytes_max[0]).await;
        assert_eq!(micros, told[0], "{case}");
        if !is_made {
            assert_eq!(attempt(2, second, bytes_max[1]).await, (bytes_max[1] > 5, told[1]), "{case}");
        }
        assert_eq!(hostile.with(|book| book.predictions.len()), count, "{case}");
    }
}

#[tokio::test]
async fn a_prediction_that_the_provider_forgets_is_made_anew() {
    let hostile = Hostile::start().await;
    hostile.with(|book| {
        (book.looks_needed, book.looks) = (3, [Trouble::Gone].into());
    });
    assert!(failed(Attempt::new().make(&provider(&hostile), &job()).await).retryable);
    // It is still listed, and nothing more is known of it.
    hostile.with(|book| book.looks = [Trouble::Gone].into());
    let made = Attempt::new().make(&provider(&hostile), &JobSpec { attempt: 2, ..job() }).await.unwrap();
    assert_eq!((made.cost, hostile.with(|book| book.predictions.len())), (cost(), 2));
}

#[tokio::test]
async fn a_stop_ends_it_there_only_when_nobody_wants_it() {
    for (why, cancelled) in [(Why::Over, 1), (Why::Lost, 0), (Why::Leaving, 0)] {
        let hostile = Hostile::start().await;
        hostile.with(|book| book.looks_needed = 1_000_000);
        let (attempt, provider, job) = (Attempt::new(), provider(&hostile), job());
        let making = attempt.make(&provider, &job);
        let stop = async {
            eventually("a look", async || hostile.with(|book| (book.looked > 1).then_some(()))).await;
            attempt.stopper.say(why);
        };
        let (ended, ()) = tokio::join!(making, stop);
        assert_eq!(ended, Err(Ended::Stopped(why)));
        provider.settled().await;
        assert_eq!(hostile.with(|book| book.cancelled.len()), cancelled, "{why:?}");
        hostile.with(|book| book.looks_needed = 0);
        // What is left running is taken over; what was cancelled is made anew.
        Attempt::new().make(&provider, &JobSpec { attempt: 2, ..job }).await.unwrap();
        assert_eq!(hostile.with(|book| book.predictions.len()), 1 + cancelled, "{why:?}");
    }
}

#[tokio::test]
async fn a_create_that_is_under_way_when_nobody_wants_the_job_any_more_is_seen_through_and_cancelled() {
    let hostile = Hostile::start().await;
    hostile.with(|book| book.creates = [Trouble::HeldAfter].into());
    let limits = Limits { request_max: Duration::from_secs(600), create_max: Duration::from_secs(600), ..LIMITS };
    let provider = Predictions::new(&hostile.url(), "the-token", None, limits).unwrap();
    let (attempt, job) = (Attempt::new(), job());
    let stop = async {
        eventually("a create", async || hostile.with(|book| (book.asked > 0).then_some(()))).await;
        attempt.stopper.say(Why::Over);
    };
    // The attempt is over at once, and its answer is still to come.
    let (ended, ()) = tokio::join!(attempt.make(&provider, &job), stop);
    assert_eq!(ended, Err(Ended::Stopped(Why::Over)));
    assert_eq!(hostile.with(|book| book.cancelled.len()), 0);
    hostile.let_go.notify_one();
    tokio::time::timeout(LIMIT, provider.settled()).await.expect("it settles");
    hostile.with(|book| assert_eq!((book.predictions.len(), book.cancelled.len()), (1, 1)));
}

#[tokio::test]
async fn what_took_too_long_is_cancelled_with_its_cost() {
    let hostile = Hostile::start().await;
    hostile.with(|book| book.looks_needed = 1_000_000);
    let (attempt, provider, job) = (Attempt::new(), provider(&hostile), job());
    let stop = async {
        eventually("a look", async || hostile.with(|book| (book.looked > 1).then_some(()))).await;
        attempt.stopper.say(Why::TooLong);
    };
    let (ended, ()) = tokio::join!(attempt.make(&provider, &job), stop);
    let failure = failed(ended);
    assert_eq!((failure.reason.as_str(), failure.retryable), ("the attempt took too long", true));
    assert_eq!((failure.cost.micros, hostile.with(|book| book.cancelled.len())), (21_000, 1));
}

#[tokio::test]
async fn webhooks_hurry_it_and_forged_or_repeated_ones_change_nothing() {
    let secret = b"a secret of webhooks";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: url::Url = format!("http://{}/webhooks/predictions", listener.local_addr().unwrap()).parse().unwrap();
    let webhooks = Webhooks::new(url.clone(), secret);
    let routes = webhooks.routes();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let send = async |id: &str, key: &[u8]| {
        let body = json!({ "id": id, "status": "succeeded", "output": "http://127.0.0.1:1/evil" }).to_string();
        let timestamp = Utc::now().timestamp();
        let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(format!("msg_1.{timestamp}.{body}"));
        let signature = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
        let request = reqwest::Client::new().post(url.clone()).body(body).header("webhook-id", "msg_1");
        let request = request.header("webhook-timestamp", timestamp).header("webhook-signature", signature);
        request.send().await.unwrap().status().as_u16()
    };

    let hostile = Hostile::start().await;
    hostile.with(|book| book.looks_needed = 2);
    // Without webhooks it would look once an hour.
    let limits = Limits { poll: Duration::from_secs(3_600), poll_max: Duration::from_secs(3_600), ..LIMITS };
    let provider = Predictions::new(&hostile.url(), "the-token", Some(webhooks), limits).unwrap();
    let (attempt, job) = (Attempt::new(), job());
    let making = attempt.make(&provider, &job);
    let tell = async {
        let id = eventually("a prediction", async || {
            hostile
                .with(|book| book.predictions.first().map(|prediction| prediction["id"].as_str().unwrap().to_owned()))
        });
        let id = id.await;
        assert_eq!(hostile.with(|book| book.predictions[0]["webhook"].clone()), url.as_str());
        assert_eq!(send(&id, b"another secret").await, 401);
        assert_eq!(hostile.with(|book| book.looked), 0);
        assert_eq!(send("somebody-elses", secret).await, 204);
        // Each one is worth a look; only what the provider then says counts.
        for looks in 1..=3 {
            eventually("a look", async || {
                send(&id, secret).await;
                hostile.with(|book| (book.looked >= looks).then_some(()))
            })
            .await;
        }
    };
    let (made, ()) = tokio::join!(making, tell);
    assert_eq!(fs::read(made.unwrap().file).unwrap(), b"an output");
    assert_eq!(hostile.with(|book| book.predictions.len()), 1);
}
