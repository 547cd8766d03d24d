//! `skyriff play`: send a trace of actions through the API, as fast as it goes and in each user's order.

mod client;
mod summary;
mod trace;

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use clap::Args;
use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use skyriff_edge::{Caller, Role};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use self::{
    client::Client,
    summary::Summary,
    trace::{Action, Line},
};
use crate::token::SecretArguments;

#[derive(Args)]
pub struct Arguments {
    /// The trace: one JSON object a line, plain or gzipped.
    file: PathBuf,
    /// The API.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A token of a service, which may say when things happened; minted with the secret unless given.
    #[arg(long, env = "SKYRIFF_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    secret: SecretArguments,
    /// Send many actions in one request.
    #[arg(long)]
    bulk: bool,
    /// Order the trace's video jobs of this provider; a worker that has it must be running, as `skyriff worker --providers
    /// noop` is. Without it video jobs are left out.
    #[arg(long)]
    videos: Option<String>,
    /// How many requests may be under way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// For how long an action is tried again while the API cannot take it, in seconds.
    #[arg(long, default_value_t = 120)]
    patience_s: u32,
}

/// Actions that may wait for one lane.
const LANE_MAX: usize = 256;
/// The service that plays traces: the same for every run, so that playing again finds what was played before.
const PLAYER: Uuid = Uuid::from_u128(0x5a1f_0c3e_7b2d_4e19_8f60_91c4_d7e2_3a55);

pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let token = match &arguments.token {
        Some(token) => token.clone(),
        None => arguments.secret.tokens()?.mint(
            &Caller { role: Role::Service, id: PLAYER },
            Utc::now(),
            TimeDelta::days(7),
        )?,
    };
    let patience = Duration::from_secs(u64::from(arguments.patience_s));
    let client = Arc::new(Client::new(&arguments.url, &token, patience)?);
    let file = File::open(&arguments.file).with_context(|| format!("cannot open {}", arguments.file.display()))?;
    let bar = ProgressBar::new(file.metadata()?.len()).with_style(ProgressStyle::with_template(
        "{bar:40} {percent:>3} % of the trace, {elapsed} gone, {eta} left  {msg}",
    )?);

    let started = Instant::now();
    let mut lanes = Vec::new();
    let mut players = Vec::new();
    for _ in 0..arguments.concurrency {
        let (lane, actions) = mpsc::channel(LANE_MAX);
        lanes.push(lane);
        players.push(tokio::spawn(play_lane(Arc::clone(&client), arguments.bulk, actions)));
    }
    let reading = bar.clone();
    let videos = arguments.videos.clone();
    let read = tokio::task::spawn_blocking(move || read(&reading, file, videos.as_deref(), &lanes)).await?;
    let mut summary = Summary::default();
    for player in players {
        summary.add(player.await?);
    }
    bar.finish_and_clear();
    summary.count_read(&read?);
    summary.print(started.elapsed());
    Ok(if summary.is_as_expected() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a lane does next.
enum Turn {
    /// An action of one of the lane's users.
    Play(Action),
    /// An action that a user of another lane is part of too: not before that lane has come to it.
    PlayTogether { action: Action, other_is_there: oneshot::Receiver<()>, played: oneshot::Sender<()> },
    /// The other side of that: nothing more before it is played.
    Wait { here: oneshot::Sender<()>, played: oneshot::Receiver<()> },
}

/// A user's actions are all in one lane, so their order is kept while users run side by side. Where an action is part of
/// two users' orders, their lanes meet. Every lane comes to its meetings in the order of the trace, so one of them can
/// always take place.
///
/// A work that is heard of for the first time is brought in by its maker's lane; who likes it may be faster, since a work
/// that nobody has heard of may be liked.
fn read(bar: &ProgressBar, file: File, videos: Option<&str>, lanes: &[mpsc::Sender<Turn>]) -> Result<trace::Read> {
    let mut seen = trace::Read::default();
    let mut works = HashSet::new();
    let lane_of = |user: Uuid| anyhow::Ok(usize::try_from(user.as_u128() % u128::try_from(lanes.len())?)?);
    let give = |lane: usize, turn| {
        let lane = lanes.get(lane).context("there is a lane for every remainder")?;
        lane.blocking_send(turn).map_err(|_| anyhow::anyhow!("a lane ended early"))
    };
    let mut file = BufReader::new(bar.wrap_read(file));
    let gzipped = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let text: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    for (number, line) in (1_u64..).zip(BufReader::new(text).lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        seen.lines += 1;
        match line.parse().with_context(|| format!("line {number} is not an action: {line}"))? {
            Line::Known { mut action, shown } => {
                if let Some(shown @ Action::Publish { work, .. }) = shown
                    && works.insert(work)
                {
                    give(lane_of(shown.user())?, Turn::Play(shown))?;
                }
                if let Action::VideoJob { provider, .. } = &mut action {
                    let Some(videos) = videos else {
                        seen.videos_left_out += 1;
                        continue;
                    };
                    videos.clone_into(provider);
                }
                let lane = lane_of(action.user())?;
                let other = action.other_user().map(lane_of).transpose()?.filter(|other| *other != lane);
                match other {
                    None => give(lane, Turn::Play(action))?,
                    Some(other) => {
                        let ((here, other_is_there), (played, is_played)) = (oneshot::channel(), oneshot::channel());
                        give(lane, Turn::PlayTogether { action, other_is_there, played })?;
                        give(other, Turn::Wait { here, played: is_played })?;
                    }
                }
            }
            Line::Unsupported { kind } => *seen.unsupported.entry(kind).or_default() += 1,
        }
    }
    Ok(seen)
}

async fn play_lane(client: Arc<Client>, bulk: bool, mut turns: mpsc::Receiver<Turn>) -> Summary {
    let mut summary = Summary::default();
    let together = if bulk { LANE_MAX } else { 1 };
    loop {
        let mut next = Vec::with_capacity(together);
        if turns.recv_many(&mut next, together).await == 0 {
            return summary;
        }
        let mut actions = Vec::with_capacity(next.len());
        for turn in next {
            match turn {
                Turn::Play(action) => {
                    // What follows a tip of this lane's users may need its points, so it ends the request it is in.
                    let ends = action.other_user().is_some() || !action.goes_in_bulk();
                    if !action.goes_in_bulk() {
                        send(&client, bulk, &mut actions, &mut summary).await;
                    }
                    actions.push(action);
                    if ends {
                        send(&client, bulk, &mut actions, &mut summary).await;
                    }
                }
                // Whoever ends early has nothing left to wait for.
                Turn::PlayTogether { action, other_is_there, played } => {
                    send(&client, bulk, &mut actions, &mut summary).await;
                    other_is_there.await.ok();
                    actions.push(action);
                    send(&client, bulk, &mut actions, &mut summary).await;
                    played.send(()).ok();
                }
                Turn::Wait { here, played } => {
                    send(&client, bulk, &mut actions, &mut summary).await;
                    here.send(()).ok();
                    played.await.ok();
                }
            }
        }
        send(&client, bulk, &mut actions, &mut summary).await;
    }
}

/// Send what has been gathered, and count what came of it.
async fn send(client: &Client, bulk: bool, actions: &mut Vec<Action>, summary: &mut Summary) {
    let actions = std::mem::take(actions);
    let sent = match actions.as_slice() {
        [] => return,
        [action] if !bulk || !action.goes_in_bulk() => vec![client.send(action).await],
        actions => client.send_together(actions).await,
    };
    for (action, sent) in actions.iter().zip(sent) {
        summary.count(action, sent);
    }
}
