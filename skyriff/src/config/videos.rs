//! The numbers of video jobs.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use skyriff_domain::{
    Label, Points,
    video_job::{Resolution, VideoPolicy},
};
use skyriff_write_side::video_queue::{Breaker, Limits};

/// The numbers of the rules of video jobs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The numbers of video jobs")]
pub struct VideoArguments {
    /// What a second costs, in points: of a video by its resolution, and of speech. What is not named is not sold.
    #[arg(long, env = "SKYRIFF_VIDEO_PRICES", default_value = "480p=3,720p=5,1080p=9,speech=1")]
    video_prices: VideoPrices,
    /// The longest video or speech, in seconds.
    #[arg(long, env = "SKYRIFF_VIDEO_SECONDS_MAX", default_value_t = VideoPolicy::default().seconds_max)]
    video_seconds_max: u32,
    /// Jobs that one user may have in flight.
    #[arg(long, env = "SKYRIFF_VIDEO_IN_FLIGHT_MAX", default_value_t = VideoPolicy::default().in_flight_max)]
    video_in_flight_max: u32,
    /// How often a job is tried.
    #[arg(long, env = "SKYRIFF_VIDEO_ATTEMPTS_MAX", default_value_t = VideoPolicy::default().attempts_max, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    video_attempts_max: u32,
    /// The wait before the second attempt, in seconds; it doubles with each further one.
    #[arg(long, env = "SKYRIFF_VIDEO_BACK_OFF_S", default_value_t = VideoPolicy::default().back_off_s)]
    video_back_off_s: u32,
    /// The longest wait before another attempt, in seconds.
    #[arg(long, env = "SKYRIFF_VIDEO_BACK_OFF_MAX_S", default_value_t = VideoPolicy::default().back_off_max_s)]
    video_back_off_max_s: u32,
}

/// How the queue of video jobs works.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The queue of video jobs")]
pub struct VideoQueueArguments {
    /// How long a worker may go without being heard of, in seconds.
    #[arg(long, env = "SKYRIFF_VIDEO_LEASE_S", default_value = "15")]
    video_lease_s: f64,
    /// How long an attempt may take, however often its worker is heard of, in seconds. Workers give one up by themselves
    /// after ten minutes and half a minute for each second that is to be made; this is for those that do not.
    #[arg(long, env = "SKYRIFF_VIDEO_ATTEMPT_MAX_S", default_value = "3600")]
    video_attempt_max_s: f64,
    /// By how many seconds of waiting one more step of priority brings a job forward.
    #[arg(long, env = "SKYRIFF_VIDEO_AGING_S", default_value = "60")]
    video_aging_s: f64,
    /// Jobs that are not made so long after they were submitted expire, in seconds.
    #[arg(long, env = "SKYRIFF_VIDEO_WAITING_MAX_S", default_value = "86400")]
    video_waiting_max_s: f64,
    /// How many jobs a provider may have in flight at once; any number when it is not named. Divided among the databases of
    /// the event store, the first ones having the remainder, and each at least one. Example: openai=8,local=2.
    #[arg(long, env = "SKYRIFF_VIDEO_PROVIDER_CAPS", default_value = "")]
    video_provider_caps: Numbers<u32>,
    /// So many failures within the window, and at least as many as successes, pause a provider. Each database of the event
    /// store counts for itself.
    #[arg(long, env = "SKYRIFF_VIDEO_BREAKER_FAILURES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    video_breaker_failures: u32,
    /// How long an outcome counts, in seconds.
    #[arg(long, env = "SKYRIFF_VIDEO_BREAKER_WINDOW_S", default_value = "60")]
    video_breaker_window_s: f64,
    /// How long a provider is paused at first, in seconds; each further pause in a row is twice as long.
    #[arg(long, env = "SKYRIFF_VIDEO_BREAKER_PAUSE_S", default_value = "30")]
    video_breaker_pause_s: f64,
    /// The longest pause, in seconds.
    #[arg(long, env = "SKYRIFF_VIDEO_BREAKER_PAUSE_MAX_S", default_value = "600")]
    video_breaker_pause_max_s: f64,
    /// What a point is worth in each currency that providers are paid in, in millionths of its unit; margins are told where
    /// it is known.
    #[arg(long, env = "SKYRIFF_POINT_WORTH_MICROS", default_value = "usd=10000")]
    point_worth_micros: Numbers<u64>,
}

/// `name=number,…`, each name once.
#[derive(Clone, Debug)]
struct Numbers<T>(BTreeMap<Label, T>);

impl<T: FromStr<Err: std::error::Error + Send + Sync + 'static>> FromStr for Numbers<T> {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut numbers = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, number) = part.split_once('=').with_context(|| format!("{part:?} is not NAME=NUMBER"))?;
            let name: Label = name.trim().parse().with_context(|| format!("{name:?} is not a name"))?;
            let number = number.trim().parse().with_context(|| format!("{number:?} is not a number"))?;
            ensure!(numbers.insert(name, number).is_none(), "{part:?} is there twice");
        }
        Ok(Self(numbers))
    }
}

/// `720p=5,…,speech=1`.
#[derive(Clone, Debug)]
struct VideoPrices {
    video: BTreeMap<Resolution, Points>,
    speech: Points,
}

impl FromStr for VideoPrices {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut prices = Self { video: BTreeMap::new(), speech: Points::ZERO };
        for (name, points) in text.parse::<Numbers<i64>>()?.0 {
            let points = Points::try_from(points).with_context(|| format!("the price of {name}"))?;
            ensure!(!points.is_zero(), "{name} has a price of 0; leave out what is not sold");
            if name.as_str() == "speech" {
                prices.speech = points;
                continue;
            }
            let resolution = Resolution::ALL.into_iter().find(|resolution| resolution.as_str() == name.as_str());
            let known = || Resolution::ALL.map(Resolution::as_str).join(", ");
            prices.video.insert(resolution.with_context(|| format!("{name} is none of speech, {}", known()))?, points);
        }
        Ok(prices)
    }
}

impl VideoArguments {
    pub(super) fn policy(&self) -> VideoPolicy {
        VideoPolicy {
            video_per_second: self.video_prices.video.clone(),
            speech_per_second: self.video_prices.speech,
            seconds_max: self.video_seconds_max,
            in_flight_max: self.video_in_flight_max,
            attempts_max: self.video_attempts_max,
            back_off_s: self.video_back_off_s,
            back_off_max_s: self.video_back_off_max_s,
        }
    }
}

impl VideoQueueArguments {
    /// What a point is worth in each currency, in millionths of its unit.
    pub fn point_worth(&self) -> BTreeMap<Label, u64> {
        self.point_worth_micros.0.clone()
    }

    /// The numbers of the queue, if they are possible.
    pub fn limits(&self) -> Result<Limits> {
        let seconds = |name: &str, seconds: f64| {
            ensure!((0.05..=31_536_000.0).contains(&seconds), "--{name} is 0.05 to 31536000 seconds");
            Ok(Duration::from_secs_f64(seconds))
        };
        let defaults = Limits::default();
        Ok(Limits {
            lease: seconds("video-lease-s", self.video_lease_s)?,
            attempt_max: seconds("video-attempt-max-s", self.video_attempt_max_s)?,
            aging: seconds("video-aging-s", self.video_aging_s)?,
            waiting_max: seconds("video-waiting-max-s", self.video_waiting_max_s)?,
            provider_caps: self.video_provider_caps.0.clone(),
            breaker: Breaker {
                failures_min: self.video_breaker_failures,
                window: seconds("video-breaker-window-s", self.video_breaker_window_s)?,
                pause: seconds("video-breaker-pause-s", self.video_breaker_pause_s)?,
                pause_max: seconds("video-breaker-pause-max-s", self.video_breaker_pause_max_s)?,
                ..defaults.breaker
            },
            ..defaults
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_and_mistakes_are_told() {
        let prices: VideoPrices = "720p=5, speech=1".parse().unwrap();
        assert_eq!(prices.video.keys().copied().collect::<Vec<_>>(), [Resolution::P720]);
        assert_eq!(prices.speech.get(), 1);
        for (bad, why) in [
            ("720p", "NAME=NUMBER"),
            ("720p=x", "not a number"),
            ("8k=5", "none of speech, 480p, 720p, 1080p"),
            ("720p=0", "price of 0"),
            ("720p=5,720p=6", "twice"),
            ("720p=-1", "price of 720p"),
        ] {
            let error = format!("{:#}", bad.parse::<VideoPrices>().unwrap_err());
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
