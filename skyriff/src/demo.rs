//! `skyriff demo`: one story through the front door, each step with the request that it is.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use chrono::{TimeDelta, Utc};
use clap::Args;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use skyriff_edge::{Caller, Role, Tokens};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::token;

#[derive(Args)]
pub struct Arguments {
    /// Where the story's own system is kept, with the video that it makes.
    #[arg(long, default_value = ".skyriff/demo")]
    folder: PathBuf,
}

/// How long the system may take to start, a video to be made, and a payout to be paid.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Answers are shown up to here, in characters.
const SHOWN: usize = 400;

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { folder } = arguments;
    say("A system of its own is started, with a private Postgres and a worker that makes videos.");
    let mut system = System::start(&folder).await?;
    let told = tell(&system).await;
    system.stop().await?;
    told?;
    Ok(ExitCode::SUCCESS)
}

/// `skyriff dev`, as a process of its own.
struct System {
    process: Child,
    url: String,
    tokens: Tokens,
    folder: PathBuf,
}

impl System {
    async fn start(folder: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut process = Command::new(program)
            .args(["dev", "--listen", "127.0.0.1:0", "--folder"])
            .arg(folder)
            .args(["--log", "warn"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().context("the system has no output")?;
        let mut lines = BufReader::new(output).lines();
        let url = async {
            while let Some(line) = lines.next_line().await? {
                if let Some(rest) = line.split_once("running at ").map(|(_, rest)| rest) {
                    let url = rest.split(": ").next().unwrap_or(rest);
                    return Ok(url.trim_end_matches(':').to_owned());
                }
            }
            bail!("the system ended before it ran")
        };
        let url = timeout(PATIENCE, url).await.context("the system did not start in time")??;
        // What it says later is of no interest, and it must not wait for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { process, url, tokens: token::secret_of(folder)?, folder: folder.to_owned() })
    }

    async fn stop(&mut self) -> Result<()> {
        let id = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(id) = id {
            kill_process(id, Signal::TERM)?;
        }
        timeout(PATIENCE, self.process.wait()).await.context("the system did not stop in time")??;
        Ok(())
    }
}

/// Somebody who takes part.
struct Person<'a> {
    name: &'static str,
    id: Uuid,
    token: String,
    system: &'a System,
    http: reqwest::Client,
}

impl<'a> Person<'a> {
    fn new(system: &'a System, name: &'static str, role: Role) -> Result<Self> {
        let id = Uuid::new_v4();
        let token = system.tokens.mint(&Caller { role, id }, Utc::now(), TimeDelta::hours(1))?;
        Ok(Self { name, id, token, system, http: reqwest::Client::new() })
    }

    /// Send a request, show it and its answer, which must be a success.
    async fn does(&self, what: &str, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        say(&format!("{} {what}.", self.name));
        println!("    {method} {path}{}", body.as_ref().map(|body| format!("  {body}")).unwrap_or_default());
        let answer = self.asks(method, path, body).await?;
        let text = answer.to_string();
        let cut = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
        println!("    → {}{}", text.get(..cut).unwrap_or(&text), if cut < text.len() { " …" } else { "" });
        Ok(answer)
    }

    async fn asks(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self.http.request(method, format!("{}{path}", self.system.url)).bearer_auth(&self.token);
        request = request.header("Idempotency-Key", Uuid::new_v4().to_string());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap_or_default());
        ensure!(status.is_success(), "{path}: {status} {answer}");
        Ok(answer)
    }

    /// Look until it is so.
    async fn sees(&self, path: &str, so: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            // A read model may not know it yet.
            let answer = self.asks(Method::GET, path, None).await.unwrap_or_default();
            if so(&answer) {
                return Ok(answer);
            }
            ensure!(Instant::now() < end, "{path} is still {answer}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn tell(system: &System) -> Result<()> {
    let mei = Person::new(system, "Mei", Role::User)?;
    let ada = Person::new(system, "Ada", Role::User)?;
    let payments = Person::new(system, "The payment system", Role::Service)?;
    let reviewer = Person::new(system, "A reviewer", Role::Reviewer)?;
    let auditor = Person::new(system, "An auditor", Role::Auditor)?;
    let (post, get) = (Method::POST, Method::GET);

    mei.does("checks in", post.clone(), &format!("/v1/users/{}/check-ins", mei.id), None).await?;
    for person in [&mei, &ada] {
        let body = json!({ "order": Uuid::new_v4(), "points": 2_000 });
        let what = format!("says that {} has bought 2,000 points", person.name);
        payments.does(&what, post.clone(), &format!("/v1/users/{}/recharges", person.id), Some(body)).await?;
    }

    let order = json!({ "kind": "text_to_video", "prompt": "a lighthouse at dawn, waves below, gulls above",
                        "seconds": 4, "resolution": "480p" });
    let ordered = mei.does("orders a video", post.clone(), "/v1/video-jobs", Some(order)).await?;
    let job = ordered["job"]["id"].as_str().or(ordered["job"].as_str()).or(ordered["job"]["job"].as_str());
    let job = job.with_context(|| format!("no job in {ordered}"))?.to_owned();
    let of_job = format!("/v1/users/{}/video-jobs/{job}", mei.id);
    let made = mei.sees(&of_job, |job| job["state"] == "succeeded" || job["state"] == "failed").await?;
    ensure!(made["state"] == "succeeded", "the video was not made: {made}");
    mei.does("looks at it", get.clone(), &of_job, None).await?;
    mei.does("asks for the video itself", get.clone(), &format!("{of_job}/output"), None).await?;
    let show = json!({ "title": "Lighthouse at dawn", "visibility": "public" });
    mei.does("shows it", Method::PUT, &format!("/v1/works/{job}"), Some(show)).await?;

    ada.does("likes it", Method::PUT, &format!("/v1/works/{job}/like"), None).await?;
    let tip = json!({ "to": mei.id, "points": 1_600, "work": job });
    let tipped = ada.does("tips its maker", post.clone(), "/v1/tips", Some(tip)).await?;
    if let Some(location) = tipped["location"].as_str() {
        ada.sees(location, |tip| tip["state"] == "delivered").await?;
        ada.does("sees that it has arrived", get.clone(), location, None).await?;
    }

    let destination = json!({ "kind": "alipay", "account": "mei@example.com", "name": "Mei Lin" });
    let ask = json!({ "points": 1_000, "destination": destination });
    mei.does("asks for 1,000 points of her income as money", post.clone(), "/v1/withdrawals", Some(ask)).await?;
    let list = format!("/v1/users/{}/withdrawals", mei.id);
    let listed = mei.sees(&list, |list| list["withdrawals"][0].is_object()).await?;
    let withdrawal = listed["withdrawals"][0]["withdrawal"].as_str().context("a withdrawal has an id")?.to_owned();
    reviewer.does("sees what waits, and what is known of whoever asks", get.clone(), "/v1/withdrawals", None).await?;
    let approve = format!("{list}/{withdrawal}/approve");
    reviewer.does("approves it", post, &approve, None).await?;
    let of_withdrawal = format!("{list}/{withdrawal}");
    mei.sees(&of_withdrawal, |withdrawal| withdrawal["status"] == "paid").await?;
    mei.does("sees that it was paid", get.clone(), &of_withdrawal, None).await?;

    let entries = format!("/v1/users/{}/ledger-entries", mei.id);
    let book = auditor.does("reads Mei's ledger", get, &entries, None).await?;
    println!();
    for entry in book["entries"].as_array().into_iter().flatten() {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        println!(
            "    {:>10}  {:>6}  {:<24} {}",
            text("position"),
            entry["amount"].to_string(),
            text("account"),
            text("event_type")
        );
    }
    println!("\nThe video:        {}", video_of(&job, &system.folder)?.display());
    println!("The payment file: {}", system.folder.join("payouts").display());
    Ok(())
}

/// The job's output, where it is stored.
fn video_of(job: &str, folder: &Path) -> Result<PathBuf> {
    let mut folders = vec![folder.join("objects")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with(job) {
                return Ok(entry.path());
            }
        }
    }
    bail!("there is no video of {job}")
}

fn say(line: &str) {
    println!("\n· {line}");
    std::io::stdout().flush().ok();
}
