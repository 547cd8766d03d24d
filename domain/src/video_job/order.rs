//! What is ordered, and what is delivered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Label, Points, Reference, Sealed, UserId};

/// What is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(as = VideoKind)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A video.
    TextToVideo,
    /// Speech.
    TextToSpeech,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::TextToVideo, Self::TextToSpeech];

    /// As in prices, columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TextToVideo => "text_to_video",
            Self::TextToSpeech => "text_to_speech",
        }
    }
}

/// The height of a video, in lines, 16:9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub enum Resolution {
    /// 854 × 480.
    #[serde(rename = "480p")]
    P480,
    /// 1280 × 720.
    #[serde(rename = "720p")]
    P720,
    /// 1920 × 1080.
    #[serde(rename = "1080p")]
    P1080,
}

impl Resolution {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::P480, Self::P720, Self::P1080];

    /// As in prices, columns and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::P480 => "480p",
            Self::P720 => "720p",
            Self::P1080 => "1080p",
        }
    }

    /// Width and height, in pixels.
    pub const fn pixels(self) -> (u32, u32) {
        match self {
            Self::P480 => (854, 480),
            Self::P720 => (1_280, 720),
            Self::P1080 => (1_920, 1_080),
        }
    }
}

/// What is asked for; fixed when it is submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Who pays.
    pub user: UserId,
    /// What is to be made.
    pub kind: Kind,
    /// How long it is to be, at most, in seconds.
    pub seconds: u32,
    /// Of a video.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// Of speech.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voice: Option<Label>,
    /// What it is to be made with; any, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Label>,
    /// What it is to show or say, for whoever has the person's key.
    pub prompt: Sealed,
    /// Higher ones come first.
    pub priority: u8,
    /// What a second costs, as it was when it was submitted.
    pub per_second: Points,
}

impl Order {
    /// What is reserved.
    pub fn price(&self) -> Points {
        self.price_of(self.seconds)
    }

    /// What so many seconds of it cost; never more than was reserved.
    pub fn price_of(&self, seconds: u32) -> Points {
        let seconds = seconds.min(self.seconds);
        Points::try_from(self.per_second.get().saturating_mul(i64::from(seconds))).unwrap_or(Points::MAX)
    }
}

/// What was made, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Its name in the object storage.
    pub object: Reference,
    /// How long it is, in whole seconds, rounded up.
    pub seconds: u32,
    /// How large it is.
    pub bytes: u64,
    /// SHA-256 of it, in hexadecimal digits.
    pub sha256: Reference,
    /// Its media type.
    pub content_type: Reference,
}

/// What a provider wants for an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// In millionths of the currency's unit.
    #[schema(minimum = 0)]
    pub micros: u64,
    /// ISO 4217, in small letters.
    #[schema(example = "usd")]
    pub currency: Label,
}

impl Cost {
    /// Nothing at all.
    pub fn none() -> Self {
        Self { micros: 0, currency: Label::of("usd") }
    }
}
