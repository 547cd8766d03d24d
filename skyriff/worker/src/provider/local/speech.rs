//! Speech: espeak-ng reads the prompt out, ffmpeg makes a file of it that every player knows.

use std::{path::PathBuf, time::Duration};

use skyriff_domain::Label;
use skyriff_storage::Format;
use tokio::sync::OnceCell;

use super::{JobSpec, Workplace, cannot_write};
use crate::{
    process::{self, Bounds},
    provider::{Ended, Failure},
};

const VOICE: &str = "en-us";
const TEXT: &str = "text.txt";
const SPOKEN: &str = "spoken.wav";
const OUTPUT: &str = "output.m4a";
const LISTING_MAX: Duration = Duration::from_secs(20);

/// What espeak-ng calls its voices: the language, as in `--voices`.
static VOICES: OnceCell<Vec<String>> = OnceCell::const_new();

pub(super) async fn make(job: &JobSpec, at: Workplace<'_>, bounds: Bounds) -> Result<(PathBuf, Format), Ended> {
    let voice = job.voice.as_ref().map_or(VOICE, Label::as_str);
    let voices = VOICES.get_or_try_init(|| voices(at, bounds)).await?;
    if !voices.iter().any(|known| known == voice) {
        return Err(Failure::for_good(format!("there is no voice {voice}; there are {}, …", some(voices))).into());
    }
    if !job.prompt.chars().any(char::is_alphanumeric) {
        return Err(Failure::for_good("there is nothing to say in this text").into());
    }
    // Control characters are commands to the synthesizer.
    let text: String = job.prompt.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    tokio::fs::write(at.folder.join(TEXT), text).await.map_err(|error| cannot_write(&error))?;
    at.progress.percent(5);
    let mut command = process::command("espeak-ng");
    command.current_dir(at.folder).args(["-v", voice, "-b", "1", "-s", "160", "-f", TEXT, "-w", SPOKEN]);
    process::run("espeak-ng", command, bounds, at.stop, |_| {}).await?;
    at.progress.percent(50);
    let mut command = process::command("ffmpeg");
    command.current_dir(at.folder);
    command.args(["-hide_banner", "-nostdin", "-loglevel", "error", "-nostats", "-progress", "pipe:1", "-y"]);
    command.args(["-timelimit", &bounds.time_max.as_secs().to_string(), "-i", SPOKEN]);
    // No longer than was paid for; loud enough, without clipping.
    command.args(["-t", &job.seconds.to_string(), "-af", "alimiter=limit=0.9,apad=pad_dur=0.2"]);
    command.args(["-c:a", "aac", "-b:a", "96k", "-ac", "1", "-ar", "44100"]);
    command.args(["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact"]);
    command.args(["-movflags", "+faststart", "-fs", &at.bytes_max.to_string(), "-f", "ipod", OUTPUT]);
    process::run("ffmpeg", command, bounds, at.stop, |_| at.progress.percent(80)).await?;
    Ok((at.folder.join(OUTPUT), Format::M4a))
}

async fn voices(at: Workplace<'_>, bounds: Bounds) -> Result<Vec<String>, Ended> {
    let mut command = process::command("espeak-ng");
    command.arg("--voices");
    let mut voices = Vec::new();
    let bounds = Bounds { time_max: LISTING_MAX, ..bounds };
    process::run("espeak-ng", command, bounds, at.stop, |line| {
        // ` 5  en-us           --/M      English_(America)  gmw/en-US …`
        voices.extend(line.split_whitespace().nth(1).map(str::to_owned));
    })
    .await?;
    // The first line names the columns.
    Ok(voices.into_iter().skip(1).collect())
}

fn some(voices: &[String]) -> String {
    voices.iter().filter(|voice| voice.len() == 2).take(12).map(String::as_str).collect::<Vec<_>>().join(", ")
}
