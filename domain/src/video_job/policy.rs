//! The numbers of video jobs. What an order used of them is written into its event.

use std::collections::BTreeMap;

use super::{Kind, Order, Refusal, Resolution};
use crate::Points;

/// The numbers of video jobs, from configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VideoPolicy {
    /// What a second of a video costs, in points, by its resolution. What is not here is not sold.
    pub video_per_second: BTreeMap<Resolution, Points>,
    /// What a second of speech costs, in points.
    pub speech_per_second: Points,
    /// The longest video or speech, in seconds.
    pub seconds_max: u32,
    /// How many jobs one user may have in flight.
    pub in_flight_max: u32,
    /// How often a job is tried.
    pub attempts_max: u32,
    /// The wait before the second attempt, in seconds; it doubles with each further one.
    pub back_off_s: u32,
    /// The longest wait before another attempt, in seconds.
    pub back_off_max_s: u32,
}

impl Default for VideoPolicy {
    fn default() -> Self {
        let points = |points: i64| Points::try_from(points).unwrap_or_default();
        Self {
            video_per_second: BTreeMap::from([
                (Resolution::P480, points(3)),
                (Resolution::P720, points(5)),
                (Resolution::P1080, points(9)),
            ]),
            speech_per_second: points(1),
            seconds_max: 60,
            in_flight_max: 3,
            attempts_max: 3,
            back_off_s: 5,
            back_off_max_s: 300,
        }
    }
}

impl VideoPolicy {
    /// An order as it is recorded: priced.
    pub(super) fn order(&self, order: Order) -> Result<Order, Refusal> {
        if order.seconds == 0 || order.seconds > self.seconds_max {
            return Err(Refusal::SecondsOutOfRange { max: self.seconds_max });
        }
        let per_second = match (order.kind, order.resolution) {
            (Kind::TextToVideo, Some(resolution)) => self.video_per_second.get(&resolution).copied(),
            (Kind::TextToSpeech, None) => Some(self.speech_per_second),
            (Kind::TextToVideo, None) | (Kind::TextToSpeech, Some(_)) => None,
        };
        let per_second = per_second.filter(|points| !points.is_zero()).ok_or(Refusal::NotSold)?;
        Ok(Order { per_second, ..order })
    }

    /// How long to wait after the `attempt`-th attempt.
    pub(super) fn back_off_s(&self, attempt: u32) -> u32 {
        let doublings = attempt.saturating_sub(1).min(20);
        self.back_off_s.saturating_mul(2_u32.saturating_pow(doublings)).min(self.back_off_max_s)
    }
}
