//! A video: titles over colours that move, with a quiet chord.

use std::path::PathBuf;

use skyriff_domain::video_job::Resolution;
use skyriff_storage::Format;

use super::{JobSpec, Workplace, cannot_write, look::Look, titles::titles};
use crate::{
    process::{self, Bounds},
    provider::Ended,
};

const FRAMES_PER_SECOND: u32 = 25;
/// The background is made small and enlarged: it is soft, and this is several times faster.
const BACKGROUND: (u32, u32) = (320, 180);
const TITLES: &str = "titles.ass";
const OUTPUT: &str = "output.mp4";
/// Encoding threads: more would take the machine from everybody else.
const THREADS: u32 = 2;

pub(super) async fn make(job: &JobSpec, at: Workplace<'_>, bounds: Bounds) -> Result<(PathBuf, Format), Ended> {
    let resolution = job.resolution.unwrap_or(Resolution::P480);
    let look = Look::of(job.job);
    let text = titles(&job.prompt, job.seconds);
    tokio::fs::write(at.folder.join(TITLES), text).await.map_err(|error| cannot_write(&error))?;
    let mut command = process::command("ffmpeg");
    // In the attempt's folder, so that filters name files without a path in them.
    command.current_dir(at.folder);
    command.args(["-hide_banner", "-nostdin", "-loglevel", "error", "-nostats", "-progress", "pipe:1", "-y"]);
    command.args(["-timelimit", &bounds.time_max.as_secs().to_string()]);
    command.args(["-filter_complex_threads", &THREADS.to_string()]);
    command.args([
        "-filter_complex",
        &format!("{};{}", picture(&look, resolution, job.seconds), sound(&look, job.seconds)),
    ]);
    command.args(["-map", "[v]", "-map", "[a]", "-t", &job.seconds.to_string()]);
    command.args(["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p", "-profile:v", "high"]);
    // A key frame every two seconds, so that seeking is quick.
    command.args(["-g", &(2 * FRAMES_PER_SECOND).to_string(), "-threads", &THREADS.to_string()]);
    command.args(["-c:a", "aac", "-b:a", "96k", "-ac", "2", "-ar", "44100"]);
    // The same job gives the same bytes.
    command.args(["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"]);
    command.args(["-movflags", "+faststart", "-fs", &at.bytes_max.to_string(), "-f", "mp4", OUTPUT]);
    let total_us = u64::from(job.seconds) * 1_000_000;
    process::run("ffmpeg", command, bounds, at.stop, |line| {
        let made_us = line.strip_prefix("out_time_us=").and_then(|us| us.trim().parse::<u64>().ok());
        if let Some(made_us) = made_us {
            at.progress.percent(made_us.saturating_mul(100) / total_us.max(1));
        }
    })
    .await?;
    Ok((at.folder.join(OUTPUT), Format::Mp4))
}

/// Two layers of moving colours and one of drifting lights, soft and a little grainy, and the titles on them.
fn picture(look: &Look, resolution: Resolution, seconds: u32) -> String {
    let [dark, middle, light, accent] = look.palette;
    let [first, second, third] = look.seeds;
    let (small_w, small_h) = BACKGROUND;
    let (w, h) = resolution.pixels();
    let (rate, speed) = (FRAMES_PER_SECOND, look.speed);
    let faster = speed * 1.7;
    format!(
        "gradients=s={small_w}x{small_h}:r={rate}:n=4:c0={dark}:c1={middle}:c2={light}:c3={middle}:seed={first}:\
         speed={speed:.4}:d={seconds},format=gbrp[base];\
         gradients=s={small_w}x{small_h}:r={rate}:n=3:c0=0x101018:c1={accent}:c2=0x303048:seed={second}:type=radial:\
         speed={faster:.4}:d={seconds},format=gbrp[glow];\
         [base][glow]blend=all_mode=screen:all_opacity=0.55,gblur=sigma=14[colours];\
         life=s=48x27:r=6:seed={third}:ratio=0.1:rule=S23/B3:mold=12:life_color=0xffffff:death_color=0x404040:\
         mold_color=0x000000,format=gbrp,gblur=sigma=0.8,framerate=fps={rate},\
         scale={small_w}:{small_h}:flags=bicubic,gblur=sigma=3,trim=duration={seconds},setpts=PTS-STARTPTS[lights];\
         [colours][lights]blend=all_mode=softlight:all_opacity=0.5:shortest=1,scale={w}:{h}:flags=bicubic,\
         vignette=PI/4.5,noise=alls=4:allf=t:all_seed={third},format=yuv420p,ass={TITLES},\
         fade=t=in:d=0.3[v]"
    )
}

/// A chord that swells and ebbs, quietly.
fn sound(look: &Look, seconds: u32) -> String {
    let [low, middle, high] = look.chord;
    let tone = |hertz: f64, volume: f64, swell: f64, side: f64| {
        format!("{volume}*sin(2*PI*{:.3}*t)*(0.6+0.4*sin(2*PI*{swell}*t))", hertz + side)
    };
    let side = |side: f64| {
        [tone(low, 0.10, 0.11, side), tone(middle, 0.07, 0.17, -side), tone(high, 0.04, 0.23, side)].join("+")
    };
    // A little apart from each other, which sounds wide.
    let (left, right) = (side(0.15), side(-0.15));
    let fade = f64::from(seconds).min(2.0) / 2.0;
    let end = f64::from(seconds) - fade;
    format!(
        "aevalsrc=exprs='{left}|{right}':s=44100:c=stereo:d={seconds},afade=t=in:d={fade:.2},\
         afade=t=out:st={end:.2}:d={fade:.2}[a]"
    )
}
