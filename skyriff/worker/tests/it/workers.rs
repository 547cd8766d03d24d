//! A worker from lease to delivery, and every way out in between.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use skyriff_domain::video_job::{Cost, Kind, WorkerFault};
use skyriff_storage::{Format, ObjectName, ObjectStorage};
use skyriff_worker::{
    Ended, Failure, JobSpec, Kept, Limits, Made, VideoProvider, Why, Worker, WorkerApi, Workplace,
    provider::{local::Local, noop::Noop},
    scratch::Scratch,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    LIMIT,
    board::Board,
    eventually, predictions,
    provider::{Hostile, Trouble},
    video,
};

const LIMITS: Limits = Limits {
    concurrency: 2,
    lease_wait: Duration::from_secs(1),
    attempt_max: Duration::from_secs(60),
    attempt_per_second_max: Duration::from_secs(10),
    bytes_max: 50_000_000,
    grace: Duration::from_millis(200),
    niceness: 0,
};

/// A provider that does what its job's prompt says.
struct Fake;

impl VideoProvider for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn kinds(&self) -> &'static [Kind] {
        &[Kind::TextToVideo]
    }

    fn make<'a>(&'a self, job: &'a JobSpec, at: Workplace<'a>) -> BoxFuture<'a, Result<Made, Ended>> {
        Box::pin(async move {
            let file = at.folder.join("output.mp4");
            match job.prompt.as_str() {
                "fail" => return Err(Failure { cost: cost(), ..Failure::retryable("it broke\nat line 2") }.into()),
                "refuse" => return Err(Failure::for_good("it is not allowed").into()),
                "for ever" => {
                    at.progress.percent(40);
                    return Err(Ended::Stopped(at.stop.heard().await));
                }
                "deaf" => return std::future::pending().await,
                "not a video" => fs::write(&file, "#EXTM3U\nfile:///etc/passwd").unwrap(),
                "nothing" => fs::write(&file, "").unwrap(),
                "too large" => fs::File::create(&file).unwrap().set_len(60_000_000).unwrap(),
                other => panic!("{other}"),
            }
            Ok(Made { file, format: Format::Mp4, said_seconds: None, cost: cost(), kept: Kept::Nowhere })
        })
    }
}

fn cost() -> Cost {
    Cost { micros: 7, currency: "usd".parse().unwrap() }
}

struct Running {
    board: Board,
    folder: TempDir,
    storage: ObjectStorage,
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(limits: Limits) -> Self {
        // In the order of preference; the second mention of one counts for nothing.
        let providers: [Arc<dyn VideoProvider>; 4] =
            [Arc::new(Local { niceness: 0 }), Arc::new(Noop), Arc::new(Fake), Arc::new(Noop)];
        Self::with(providers.into(), limits).await
    }

    async fn with(providers: Vec<Arc<dyn VideoProvider>>, limits: Limits) -> Self {
        let (board, folder) = (Board::start().await, tempfile::tempdir().unwrap());
        let address = format!("file://{}", folder.path().join("objects").display());
        let storage = ObjectStorage::open(&address, []).unwrap();
        let api = WorkerApi::new(&format!("http://{}/", board.address).parse().unwrap(), "the-token", "w1").unwrap();
        let scratch = Scratch::new(&folder.path().join("scratch")).unwrap();
        let end = CancellationToken::new();
        let task = tokio::spawn(Worker::new(api, storage.clone(), scratch, providers, limits).until(end.clone()));
        Self { board, folder, storage, end, task }
    }

    async fn ended(&self, count: usize) -> Vec<(String, serde_json::Value)> {
        eventually("the end of every attempt", async || Some(self.board.ended()).filter(|ended| ended.len() >= count))
            .await
    }

    /// Folders of attempts that are there now.
    fn attempts(&self) -> Vec<PathBuf> {
        let workers = fs::read_dir(self.folder.path().join("scratch")).unwrap().map(|entry| entry.unwrap().path());
        let folders = workers.filter(|path| path.is_dir()).flat_map(|path| fs::read_dir(path).unwrap());
        folders.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    async fn stop(self) {
        self.end.cancel();
        tokio::time::timeout(LIMIT, self.task).await.expect("it ends").unwrap();
        let left: Vec<_> =
            fs::read_dir(self.folder.path().join("scratch")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.is_file()), "{left:?}");
    }
}

#[tokio::test]
async fn a_video_is_made_checked_stored_and_delivered() {
    let running = Running::start(LIMITS).await;
    let job = video(1, "a lighthouse", 1);
    running.board.post(&job, "local");
    let ended = running.ended(1).await;
    let [(what, body)] = &ended[..] else { panic!("{ended:?}") };
    let name = ObjectName { job: job.job, attempt: 1, format: Format::Mp4 };
    let head = running.storage.head(&name).await.unwrap().unwrap();
    assert_eq!((what.as_str(), body["output"]["object"].as_str()), ("complete", Some(name.to_string().as_str())));
    assert_eq!((&body["output"]["seconds"], &body["output"]["bytes"]), (&1.into(), &head.bytes.into()));
    assert_eq!((&body["output"]["content_type"], &body["cost"]["micros"]), (&"video/mp4".into(), &0.into()));
    assert_eq!(body["output"]["sha256"].as_str().unwrap().len(), 64);
    let ask = running.board.with(|book| book.asks[0].clone());
    assert_eq!((&ask["worker"], &ask["max"], &ask["wait_s"]), (&"w1".into(), &2.into(), &1.into()));
    assert_eq!(ask["providers"], serde_json::json!(["local", "noop", "fake"]));
    eventually("its folder's end", async || running.attempts().is_empty().then_some(())).await;
    running.stop().await;
}

#[tokio::test]
async fn many_jobs_are_made_by_a_few_places_and_each_is_told_once_whatever_answers_are_lost() {
    let running = Running::start(Limits { concurrency: 4, ..LIMITS }).await;
    running.board.with(|book| book.troubles = 5);
    for job in 0..40 {
        running.board.post(&video(job, "x", 3), "noop");
    }
    let ended = running.ended(40).await;
    assert!(ended.iter().all(|(what, body)| what == "complete" && body["output"]["seconds"] == 3));
    assert!(running.board.with(|book| book.asks.iter().all(|ask| ask["max"].as_u64().unwrap() <= 4)));
    running.stop().await;
}

#[tokio::test]
async fn what_does_not_work_is_told_with_its_reason_and_its_cost() {
    for (prompt, reason, retryable, micros) in [
        ("fail", "it broke at line 2", true, 7),
        ("refuse", "it is not allowed", false, 0),
        ("not a video", "the output cannot be played", true, 7),
        ("nothing", "the output has 0 bytes", true, 7),
        ("too large", "the output has 60000000 bytes", true, 7),
    ] {
        let running = Running::start(LIMITS).await;
        running.board.post(&video(1, prompt, 3), "fake");
        let ended = running.ended(1).await;
        let (what, body) = &ended[0];
        assert_eq!((what.as_str(), &body["retryable"]), ("fail", &retryable.into()), "{prompt}");
        assert_eq!(body["cost"]["micros"], micros, "{prompt}");
        assert!(body["reason"].as_str().unwrap().contains(reason), "{prompt}: {body}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_prediction_that_is_wrong_is_made_anew_and_each_cost_is_told_once() {
    let hostile = Hostile::start().await;
    let running = Running::with(vec![Arc::new(predictions::provider(&hostile))], LIMITS).await;
    let job = video(1, "a lighthouse", 1);
    let attempt = async |attempt: u32| {
        running.board.post(&JobSpec { attempt, ..job.clone() }, "predictions");
        let ended = running.ended(usize::try_from(attempt).unwrap()).await;
        let (what, body) = ended.last().unwrap().clone();
        (what, body["cost"]["micros"].as_u64().unwrap())
    };
    // Nothing that can be played; whoever looks at it again sees the same.
    assert_eq!(attempt(1).await, ("fail".to_owned(), 42_000));
    assert_eq!(attempt(2).await, ("fail".to_owned(), 42_000));
    let good = fs::read(crate::Attempt::new().make(&Local { niceness: 0 }, &job).await.unwrap().file).unwrap();
    hostile.with(|book| {
        let wrong = std::mem::replace(&mut book.output, good);
        book.outputs_of = book.predictions.iter().map(|made| (made["id"].to_string(), wrong.clone())).collect();
    });
    assert_eq!(attempt(3).await, ("complete".to_owned(), 42_000));
    // Three were paid for, and three costs were told.
    assert_eq!(hostile.with(|book| book.predictions.len()), 3);
    running.stop().await;
}

#[tokio::test]
async fn an_output_that_cannot_be_stored_is_taken_over_with_its_cost() {
    let hostile = Hostile::start().await;
    let job = video(1, "a lighthouse", 1);
    let good = fs::read(crate::Attempt::new().make(&Local { niceness: 0 }, &job).await.unwrap().file).unwrap();
    hostile.with(|book| book.output = good);
    let running = Running::with(vec![Arc::new(predictions::provider(&hostile))], LIMITS).await;
    // A file where the storage's folder was to be.
    let objects = running.folder.path().join("objects");
    fs::remove_dir_all(&objects).ok();
    fs::write(&objects, "").unwrap();
    running.board.post(&job, "predictions");
    let ended = running.ended(1).await;
    assert_eq!((ended[0].0.as_str(), &ended[0].1["cost"]["micros"]), ("fail", &0.into()), "{ended:?}");
    assert_eq!(ended[0].1["reason"], WorkerFault::NotStored.as_str());
    fs::remove_file(&objects).unwrap();
    running.board.post(&JobSpec { attempt: 2, ..job }, "predictions");
    let ended = running.ended(2).await;
    assert_eq!((ended[1].0.as_str(), &ended[1].1["cost"]["micros"]), ("complete", &42_000.into()), "{ended:?}");
    assert_eq!(hostile.with(|book| book.predictions.len()), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_attempt_that_is_over_stops_and_leaves_nothing() {
    for (provider, state) in [("local", "cancelled"), ("fake", "queued")] {
        let running = Running::start(LIMITS).await;
        running.board.post(&video(1, "for ever", 60), provider);
        eventually("a heartbeat", async || running.board.with(|book| (!book.heartbeats.is_empty()).then_some(())))
            .await;
        assert_eq!(running.attempts().len(), 1);
        running.board.with(|book| book.over = Some(state));
        eventually("its folder's end", async || running.attempts().is_empty().then_some(())).await;
        assert_eq!(running.board.ended(), []);
        // And the next job is taken.
        running.board.with(|book| book.over = None);
        running.board.post(&video(2, "x", 1), "noop");
        running.ended(1).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn progress_comes_with_heartbeats() {
    let running = Running::start(LIMITS).await;
    running.board.post(&video(1, "for ever", 60), "fake");
    eventually("progress", async || running.board.with(|book| book.heartbeats.contains(&40).then_some(()))).await;
    running.stop().await;
}

#[tokio::test]
async fn a_lease_is_kept_until_what_came_of_it_is_heard() {
    for (prompt, provider, what) in [("x", "noop", "complete"), ("fail", "fake", "fail")] {
        let running = Running::start(LIMITS).await;
        // Whatever is said is answered with 503.
        running.board.with(|book| book.troubles = usize::MAX);
        running.board.post(&video(1, prompt, 3), provider);
        running.ended(1).await;
        let beats = async |more: usize| {
            let count = running.board.with(|book| book.heartbeats.len()) + more;
            let heard = async || running.board.with(|book| (book.heartbeats.len() >= count).then_some(()));
            eventually("heartbeats", heard).await;
        };
        beats(3).await;
        // What heartbeats are told does not keep it from being said, and nothing else is said.
        running.board.with(|book| book.stale = true);
        beats(3).await;
        running.board.with(|book| book.troubles = 0);
        eventually("its folder's end", async || running.attempts().is_empty().then_some(())).await;
        let ended = running.board.ended();
        assert!(matches!(&ended[..], [(only, _)] if only == what), "{ended:?}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_worker_that_is_to_end_gives_back_what_it_cannot_finish() {
    for prompt in ["for ever", "deaf"] {
        let running = Running::start(LIMITS).await;
        let board = running.board.clone();
        board.post(&video(1, prompt, 60), "fake");
        eventually("a heartbeat", async || board.with(|book| (!book.heartbeats.is_empty()).then_some(()))).await;
        running.stop().await;
        let ended = board.ended();
        let [(what, body)] = &ended[..] else { panic!("{ended:?}") };
        assert_eq!(
            (what.as_str(), &body["retryable"], &body["reason"]),
            ("fail", &true.into(), &WorkerFault::Stopped.as_str().into())
        );
    }
}

#[tokio::test]
async fn an_attempt_ends_after_its_time_whatever_its_provider_does() {
    let limits = Limits { attempt_max: Duration::from_millis(300), attempt_per_second_max: Duration::ZERO, ..LIMITS };
    let running = Running::start(limits).await;
    running.board.post(&video(1, "for ever", 1), "fake");
    let ended = running.ended(1).await;
    assert_eq!((ended[0].0.as_str(), &ended[0].1["reason"]), ("fail", &"the attempt took too long".into()));
    running.stop().await;
}

#[tokio::test]
async fn what_is_said_first_counts() {
    let attempt = crate::Attempt::new();
    attempt.stopper.say(Why::Lost);
    attempt.stopper.say(Why::Over);
    assert_eq!(attempt.at().stop.heard().await, Why::Lost);
}

/// What is logged, as text.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_provider_says_is_told_and_never_logged() {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE);
    let subscriber = subscriber.with_ansi(false).with_writer(move || writer.clone()).finish();
    // All of the test is on this thread.
    let _logging = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    let hostile = Hostile::start().await;
    let running = Running::with(vec![Arc::new(predictions::provider(&hostile))], LIMITS).await;

    // Refused, in words that quote the prompt.
    hostile.with(|book| book.creates = [Trouble::Conflict, Trouble::Refuse].into());
    running.board.post(&video(1, "a lighthouse", 1), "predictions");
    let ended = running.ended(1).await;
    assert!(ended[0].1["reason"].as_str().unwrap().contains("not allowed: a lighthouse"), "{ended:?}");
    // Failed, likewise, and with a cost that is none.
    hostile.with(|book| book.looks_needed = usize::MAX);
    running.board.post(&video(2, "a lighthouse", 1), "predictions");
    eventually("a prediction", async || {
        hostile.with(|book| {
            let prediction = book.predictions.first_mut()?;
            prediction["error"] = "a lighthouse is too bright".into();
            prediction["cost"] = serde_json::json!({ "micros": "a lighthouse", "currency": "usd" });
            prediction["status"] = "failed".into();
            Some(())
        })
    })
    .await;
    let ended = running.ended(2).await;
    assert!(ended[1].1["reason"].as_str().unwrap().contains("a lighthouse is too bright"), "{ended:?}");
    running.stop().await;
    let logged = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = logged.lines().filter(|line| line.contains("skyriff_worker")).collect();
    for class in
        ["class=\"refused\" status=409", "class=\"refused\"", "class=\"prediction failed\"", "cost is not understood"]
    {
        assert!(lines.iter().any(|line| line.contains(class)), "no {class} in {lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.contains("lighthouse")), "{lines:#?}");
}
