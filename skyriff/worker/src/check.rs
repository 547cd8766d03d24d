//! Looking at what was made before anybody is told that it is done: ffprobe says what is really in the file.

use std::time::Duration;

use serde::Deserialize;
use skyriff_domain::video_job::{Kind, Resolution};
use skyriff_storage::Format;

use crate::{
    JobSpec, Made, Stop, Why,
    process::{self, Bounds, RunError},
    provider::Ended,
};

const TIME_MAX: Duration = Duration::from_secs(30);
/// Players and encoders round to frames of sound and picture; so much more or less is the same length, in seconds.
const TOLERANCE_S: f64 = 0.25;

#[derive(Deserialize)]
struct Probed {
    #[serde(default)]
    streams: Vec<Stream>,
    format: Container,
}

#[derive(Deserialize)]
struct Stream {
    codec_type: String,
    #[serde(default)]
    codec_name: String,
    width: Option<u32>,
    height: Option<u32>,
}

#[derive(Deserialize)]
struct Container {
    duration: Option<String>,
}

/// Why an output is not delivered.
pub(crate) enum Unfit {
    /// It is not what was asked for.
    Wrong(String),
    /// Nobody could look at it.
    Unseen(Ended),
}

/// How long it is, in whole seconds rounded up, if it is what the job asked for.
pub(crate) async fn check(
    job: &JobSpec,
    made: &Made,
    bytes_max: u64,
    niceness: i32,
    stop: &Stop,
) -> Result<u32, Unfit> {
    let size = tokio::fs::metadata(&made.file).await.map(|file| file.len()).unwrap_or(0);
    if size == 0 || size > bytes_max {
        return Err(Unfit::Wrong(format!("the output has {size} bytes, and may have 1 to {bytes_max}")));
    }
    if let Some(seconds) = made.said_seconds {
        return Ok(seconds);
    }
    let demuxer = match made.format {
        Format::Mp4 | Format::M4a => "mov",
        Format::Mp3 => "mp3",
        Format::Noop => return Err(Unfit::Wrong("the output is nothing that can be played".to_owned())),
    };
    let mut command = process::command("ffprobe");
    // What it is said to be and nothing else, and no address that it names: the file may be anybody's.
    command.args(["-v", "error", "-protocol_whitelist", "file", "-f", demuxer]);
    command.args(["-show_entries", "format=duration:stream=codec_type,codec_name,width,height", "-of", "json", "--"]);
    command.arg(&made.file);
    let mut json = String::new();
    let bounds = Bounds { niceness, time_max: TIME_MAX };
    let run = process::run("ffprobe", command, bounds, stop, |line| json.push_str(line)).await;
    match run {
        Ok(()) => {}
        Err(RunError::Failed { .. }) => return Err(Unfit::Wrong("the output cannot be played".to_owned())),
        Err(RunError::Stopped { why: Why::TooLong, .. }) => {
            return Err(Unfit::Wrong("the output takes too long to look at".to_owned()));
        }
        Err(error) => return Err(Unfit::Unseen(error.into())),
    }
    let probed = serde_json::from_str(&json).map_err(|_| Unfit::Wrong("the output cannot be read".to_owned()))?;
    judge(job, &probed).map_err(Unfit::Wrong)
}

fn judge(job: &JobSpec, probed: &Probed) -> Result<u32, String> {
    let of = |kind: &str| probed.streams.iter().find(|stream| stream.codec_type == kind);
    match job.kind {
        Kind::TextToVideo => {
            let video = of("video").ok_or("the output has no picture")?;
            let (width, height) = job.resolution.unwrap_or(Resolution::P480).pixels();
            if (video.width, video.height) != (Some(width), Some(height)) {
                let (w, h) = (video.width.unwrap_or(0), video.height.unwrap_or(0));
                return Err(format!("the output is {w} × {h}, not {width} × {height}"));
            }
            if video.codec_name != "h264" {
                return Err("the picture is not H.264, which every browser plays".to_owned());
            }
        }
        Kind::TextToSpeech => {
            of("audio").ok_or("the output has no sound")?;
        }
    }
    let duration = probed.format.duration.as_deref().and_then(|text| text.parse::<f64>().ok());
    let duration = duration.filter(|seconds| seconds.is_finite() && *seconds > 0.0);
    let duration = duration.ok_or("the output has no length")?;
    let asked = f64::from(job.seconds);
    let long_enough = match job.kind {
        Kind::TextToVideo => duration >= asked - TOLERANCE_S,
        // As long as it takes to say it.
        Kind::TextToSpeech => true,
    };
    if !long_enough || duration > asked + TOLERANCE_S {
        return Err(format!("the output is {duration:.2} s long, and {asked} s were asked for"));
    }
    // Whole seconds, from 1 to what was asked for: the smallest that is not shorter than it.
    Ok((1..job.seconds).find(|seconds| duration <= f64::from(*seconds) + TOLERANCE_S).unwrap_or(job.seconds))
}

#[cfg(test)]
mod tests {
    use skyriff_domain::{JobId, UserId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_judged_as_a_table() {
        let job = |kind, resolution| JobSpec {
            job: JobId(Uuid::nil()),
            user: UserId(Uuid::nil()),
            attempt: 1,
            kind,
            seconds: 5,
            resolution,
            voice: None,
            prompt: String::new(),
        };
        let video = job(Kind::TextToVideo, Some(Resolution::P720));
        let speech = job(Kind::TextToSpeech, None);
        let file = |codec: &str, width: u32, duration: &str| {
            let stream = if width > 0 {
                format!(r#"{{"codec_type":"video","codec_name":"{codec}","width":{width},"height":720}}"#)
            } else {
                format!(r#"{{"codec_type":"audio","codec_name":"{codec}"}}"#)
            };
            let json = format!(r#"{{"streams":[{stream}],"format":{{"duration":"{duration}"}}}}"#);
            serde_json::from_str::<Probed>(&json).unwrap()
        };
        for (job, file, expected) in [
            (&video, file("h264", 1_280, "5.000"), Ok(5)),
            (&video, file("h264", 1_280, "5.04"), Ok(5)),
            (&video, file("h264", 1_280, "4.0"), Err(())),
            (&video, file("h264", 1_280, "6.0"), Err(())),
            (&video, file("h264", 640, "5.0"), Err(())),
            (&video, file("vp9", 1_280, "5.0"), Err(())),
            (&video, file("aac", 0, "5.0"), Err(())),
            (&video, file("h264", 1_280, "NaN"), Err(())),
            (&speech, file("aac", 0, "0.4"), Ok(1)),
            (&speech, file("aac", 0, "1.1"), Ok(1)),
            (&speech, file("aac", 0, "1.3"), Ok(2)),
            (&speech, file("aac", 0, "5.1"), Ok(5)),
            (&speech, file("aac", 0, "5.3"), Err(())),
            (&speech, file("h264", 1_280, "3.0"), Err(())),
            (&speech, file("aac", 0, "-1"), Err(())),
        ] {
            let judged = judge(job, &file).map_err(|_| ());
            assert_eq!(judged, expected, "{:?} {:?}", job.kind, file.format.duration);
        }
    }
}
