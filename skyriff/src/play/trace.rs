//! What a trace holds.

use std::{collections::BTreeMap, str::FromStr};

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// An action that the API knows.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    CheckIn {
        at: DateTime<Utc>,
        user: Uuid,
    },
    Recharge {
        at: DateTime<Utc>,
        user: Uuid,
        order: Uuid,
        points: i64,
    },
    Like {
        at: DateTime<Utc>,
        user: Uuid,
        work: Uuid,
    },
    Unlike {
        at: DateTime<Utc>,
        user: Uuid,
        work: Uuid,
    },
    Tip {
        at: DateTime<Utc>,
        user: Uuid,
        to: Uuid,
        points: i64,
    },
    VideoJob {
        at: DateTime<Utc>,
        user: Uuid,
        job: Uuid,
        seconds: u32,
        #[serde(skip)]
        provider: String,
    },
    /// Not a line of its own: what a like says of its work when the work is first heard of.
    #[serde(skip)]
    Publish {
        at: DateTime<Utc>,
        user: Uuid,
        work: Uuid,
    },
}

/// A line of a trace.
#[derive(Debug)]
pub enum Line {
    Known {
        action: Action,
        /// That the work it is about was shown by then, if it says whose that is.
        shown: Option<Action>,
    },
    /// An action that the API does not know yet.
    Unsupported { kind: String },
}

/// A line that names a work and its maker.
#[derive(Deserialize)]
struct Shown {
    at: DateTime<Utc>,
    work: Uuid,
    creator: Uuid,
}

impl Shown {
    fn publish(self) -> Action {
        Action::Publish { at: self.at, user: self.creator, work: self.work }
    }
}

impl FromStr for Line {
    type Err = serde_json::Error;

    fn from_str(line: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind {
            r#do: String,
        }
        let Kind { r#do: kind } = serde_json::from_str(line)?;
        match kind.as_str() {
            "check_in" | "recharge" | "like" | "unlike" | "tip" | "video_job" => {
                let shown = serde_json::from_str::<Shown>(line).ok().map(Shown::publish);
                serde_json::from_str(line).map(|action| Self::Known { action, shown })
            }
            _ => Ok(Self::Unsupported { kind }),
        }
    }
}

/// What was read.
#[derive(Debug, Default)]
pub struct Read {
    pub lines: u64,
    pub unsupported: BTreeMap<String, u64>,
    /// Video jobs that were not sent, for want of a provider to order them of.
    pub videos_left_out: u64,
}

impl Action {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CheckIn { .. } => "check_in",
            Self::Recharge { .. } => "recharge",
            Self::Like { .. } => "like",
            Self::Unlike { .. } => "unlike",
            Self::Tip { .. } => "tip",
            Self::VideoJob { .. } => "video_job",
            Self::Publish { .. } => "publish",
        }
    }

    pub fn user(&self) -> Uuid {
        match self {
            Self::CheckIn { user, .. }
            | Self::Recharge { user, .. }
            | Self::Like { user, .. }
            | Self::Unlike { user, .. }
            | Self::Tip { user, .. }
            | Self::VideoJob { user, .. }
            | Self::Publish { user, .. } => *user,
        }
    }

    /// The other user whose order it is part of.
    pub fn other_user(&self) -> Option<Uuid> {
        match self {
            Self::CheckIn { .. }
            | Self::Recharge { .. }
            | Self::Like { .. }
            | Self::Unlike { .. }
            | Self::VideoJob { .. }
            | Self::Publish { .. } => None,
            Self::Tip { to, .. } => Some(*to),
        }
    }

    /// The same for the same action in every run, so that playing again applies nothing twice.
    pub fn idempotency_key(&self) -> String {
        match self {
            Self::CheckIn { at, user } => format!("check-in {user} {}", at.timestamp_micros()),
            Self::Recharge { order, .. } => format!("recharge {order}"),
            Self::Like { at, user, work } => format!("like {user} {work} {}", at.timestamp_micros()),
            Self::Unlike { at, user, work } => format!("unlike {user} {work} {}", at.timestamp_micros()),
            Self::Tip { at, user, to, .. } => format!("tip {user} {to} {}", at.timestamp_micros()),
            Self::VideoJob { job, .. } => format!("video-job {job}"),
            Self::Publish { work, .. } => format!("publish {work}"),
        }
    }

    pub fn method(&self) -> Method {
        match self {
            Self::CheckIn { .. } | Self::Recharge { .. } | Self::Tip { .. } | Self::VideoJob { .. } => Method::POST,
            Self::Like { .. } | Self::Publish { .. } => Method::PUT,
            Self::Unlike { .. } => Method::DELETE,
        }
    }

    pub fn path(&self) -> String {
        match self {
            Self::CheckIn { user, .. } => format!("/v1/users/{user}/check-ins"),
            Self::Recharge { user, .. } => format!("/v1/users/{user}/recharges"),
            Self::Like { work, .. } | Self::Unlike { work, .. } => format!("/v1/works/{work}/like"),
            Self::Tip { .. } => "/v1/tips".to_owned(),
            Self::VideoJob { .. } => "/v1/video-jobs".to_owned(),
            Self::Publish { work, .. } => format!("/v1/works/{work}"),
        }
    }

    pub fn body(&self) -> Value {
        match self {
            Self::CheckIn { at, .. } => json!({ "occurred_at": at }),
            Self::Recharge { at, order, points, .. } => json!({ "order": order, "points": points, "occurred_at": at }),
            Self::Like { at, user, .. } | Self::Unlike { at, user, .. } => json!({ "user": user, "occurred_at": at }),
            Self::Tip { at, user, to, points } => {
                json!({ "from": user, "to": to, "points": points, "occurred_at": at })
            }
            Self::VideoJob { at, user, job, seconds, provider } => json!({
                "kind": "text_to_video", "prompt": format!("{seconds} seconds of a clear day"), "seconds": seconds,
                "resolution": "720p", "provider": provider, "job": job, "user": user, "occurred_at": at,
            }),
            Self::Publish { at, user, work } => json!({
                "title": format!("work {work}"), "visibility": "public", "imported": true, "user": user,
                "occurred_at": at,
            }),
        }
    }

    /// Whether it can be one of many commands in a bulk request.
    pub fn goes_in_bulk(&self) -> bool {
        match self {
            Self::CheckIn { .. }
            | Self::Recharge { .. }
            | Self::Like { .. }
            | Self::Unlike { .. }
            | Self::Tip { .. } => true,
            Self::VideoJob { .. } | Self::Publish { .. } => false,
        }
    }

    /// As one of many commands in a bulk request.
    pub fn in_bulk(&self) -> Value {
        let mut command = self.body();
        command["do"] = self.kind().into();
        command["user"] = self.user().to_string().into();
        if let Self::Like { work, .. } | Self::Unlike { work, .. } = self {
            command["work"] = work.to_string().into();
        }
        if let (Self::Tip { .. }, Some(members)) = (self, command.as_object_mut()) {
            members.remove("from");
        }
        command["idempotency_key"] = self.idempotency_key().into();
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_actions_are_read_and_others_are_named() {
        let user = "959de6e1-d9ef-5a29-a884-f19f971b9c27";
        let check_in = format!(r#"{{"at":"2015-11-17T20:58:34Z","do":"check_in","user":"{user}"}}"#);
        let Line::Known { action, shown: None } = check_in.parse().unwrap() else { panic!("{check_in} is known") };
        assert_eq!(action.path(), format!("/v1/users/{user}/check-ins"));
        assert_eq!(action.idempotency_key(), format!("check-in {user} 1447793914000000"));
        let unlike = format!(r#"{{"at":"2015-11-17T20:58:34Z","do":"unlike","user":"{user}","work":"{user}"}}"#);
        let Line::Known { action, shown: None } = unlike.parse().unwrap() else { panic!("{unlike} is known") };
        assert_eq!((action.method(), action.path()), (Method::DELETE, format!("/v1/works/{user}/like")));
        assert_eq!((&action.body()["user"], &action.in_bulk()["work"]), (&json!(user), &json!(user)));
        let tip = format!(r#"{{"at":"2015-11-17T20:58:34Z","do":"tip","user":"{user}","to":"{user}","points":2}}"#);
        let Line::Known { action, .. } = tip.parse().unwrap() else { panic!("{tip} is known") };
        assert_eq!((action.path().as_str(), action.other_user()), ("/v1/tips", Some(action.user())));
        assert_eq!((&action.body()["from"], &action.in_bulk()["from"]), (&json!(user), &Value::Null));
        let like = format!(
            r#"{{"at":"2015-11-17T20:58:34Z","do":"like","user":"{user}","work":"{user}","creator":"{user}"}}"#
        );
        let Line::Known { shown: Some(shown), .. } = like.parse().unwrap() else { panic!("{like} shows a work") };
        assert_eq!((shown.path(), &shown.body()["imported"]), (format!("/v1/works/{user}"), &json!(true)));
        let other = format!(r#"{{"at":"2015-11-17T20:58:34Z","do":"dance","user":"{user}"}}"#);
        assert!(matches!(other.parse().unwrap(), Line::Unsupported { kind } if kind == "dance"));
    }

    #[test]
    fn a_known_action_with_a_part_missing_is_not_taken_for_an_unknown_one() {
        let broken = r#"{"at":"2015-11-17T20:58:34Z","do":"check_in"}"#;
        assert!(broken.parse::<Line>().is_err());
    }
}
