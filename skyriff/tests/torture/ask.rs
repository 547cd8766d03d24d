//! What clients ask for. Holds and spends have few ids for each user, so that clients meet on them.

use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use skyriff_domain::{ShardCount, UserId, shard_of};
use uuid::Uuid;

/// Few, so that nodes and clients meet on them.
const USERS: u32 = 12;
const HOLDS_PER_USER: u128 = 6;
const SPENDS_PER_USER: u128 = 30;
/// More than any user here will ever have.
const IMPOSSIBLE: i64 = 500_000_000;

/// A command and its idempotency key.
#[derive(Clone, Debug)]
pub struct Ask {
    pub key: String,
    pub user: Uuid,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    Earn {
        bucket: &'static str,
        points: i64,
    },
    Recharge {
        order: Uuid,
        points: i64,
    },
    Spend {
        spend: Uuid,
        points: i64,
    },
    Refund {
        spend: Uuid,
        points: Option<i64>,
    },
    Hold {
        hold: Uuid,
        points: i64,
        lifetime_s: Option<u32>,
    },
    Capture {
        hold: Uuid,
        points: Option<i64>,
    },
    Release {
        hold: Uuid,
    },
    /// To another user, who mostly lives in another shard.
    Tip {
        to: Uuid,
        points: i64,
    },
}

impl What {
    pub const NAMES: [&str; 8] = ["earn", "recharge", "spend", "refund", "hold", "capture", "release", "tip"];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Earn { .. } => "earn",
            Self::Recharge { .. } => "recharge",
            Self::Spend { .. } => "spend",
            Self::Refund { .. } => "refund",
            Self::Hold { .. } => "hold",
            Self::Capture { .. } => "capture",
            Self::Release { .. } => "release",
            Self::Tip { .. } => "tip",
        }
    }

    /// How many events it records when it is accepted, apart from holds that were over and are released on the way.
    pub fn events(&self, user: Uuid) -> usize {
        match self {
            Self::Recharge { .. } => 2,
            // Within a shard all of it; otherwise the offer and what is held for it.
            Self::Tip { to, .. } => {
                if is_beside(user, *to) {
                    6
                } else {
                    2
                }
            }
            Self::Earn { .. }
            | Self::Spend { .. }
            | Self::Refund { .. }
            | Self::Hold { .. }
            | Self::Capture { .. }
            | Self::Release { .. } => 1,
        }
    }

    /// How many available points it needs.
    pub fn takes(&self) -> i64 {
        match self {
            Self::Spend { points, .. } | Self::Hold { points, .. } | Self::Tip { points, .. } => *points,
            Self::Earn { .. }
            | Self::Recharge { .. }
            | Self::Refund { .. }
            | Self::Capture { .. }
            | Self::Release { .. } => 0,
        }
    }

    /// How many available points it gives, at least.
    pub fn gives(&self) -> i64 {
        match self {
            Self::Earn { points, .. } | Self::Recharge { points, .. } => *points,
            Self::Spend { .. }
            | Self::Hold { .. }
            | Self::Refund { .. }
            | Self::Capture { .. }
            | Self::Release { .. }
            | Self::Tip { .. } => 0,
        }
    }

    /// The path below the user's, and the body.
    pub fn single(&self) -> (String, Value) {
        match self {
            Self::Earn { bucket, points } => {
                ("earnings".to_owned(), json!({ "bucket": bucket, "points": points, "reason": "torture" }))
            }
            Self::Recharge { order, points } => ("recharges".to_owned(), json!({ "order": order, "points": points })),
            Self::Spend { spend, points } => {
                ("spends".to_owned(), json!({ "spend": spend, "points": points, "product": "torture" }))
            }
            Self::Refund { spend, points } => (format!("spends/{spend}/refund"), json!({ "points": points })),
            Self::Hold { hold, points, lifetime_s } => (
                "holds".to_owned(),
                json!({ "hold": hold, "points": points, "reason": "torture", "lifetime_s": lifetime_s }),
            ),
            Self::Capture { hold, points } => (format!("holds/{hold}/capture"), json!({ "points": points })),
            Self::Release { hold } => (format!("holds/{hold}/release"), json!({})),
            // Not below the user's path: who gives stands in the body.
            Self::Tip { to, points } => ("tips".to_owned(), json!({ "to": to, "points": points })),
        }
    }

    /// Whatever comes to mind.
    pub fn any(random: &mut StdRng, user: Uuid) -> Self {
        let points = random.random_range(1..20);
        let part = random.random_bool(0.5).then_some(points);
        match random.random_range(0..25) {
            20.. => {
                let to = self::user(random);
                let to = if to == user { Uuid::from_u128(user.as_u128() % u128::from(USERS) + 1) } else { to };
                Self::Tip { to, points }
            }
            0..4 => Self::earn(random, points),
            4..7 => Self::Recharge { order: fresh(random), points },
            7..11 => Self::Spend { spend: spend_of(random, user), points: points * 2 },
            11..13 => Self::Refund { spend: spend_of(random, user), points: part },
            13..16 => {
                let lifetime_s = random.random_bool(0.3).then(|| random.random_range(1..6));
                Self::Hold { hold: hold_of(random, user), points, lifetime_s }
            }
            16..18 => Self::Capture { hold: hold_of(random, user), points: part },
            _ => Self::Release { hold: hold_of(random, user) },
        }
    }

    pub fn earn(random: &mut StdRng, points: i64) -> Self {
        Self::Earn { bucket: if random.random_bool(0.3) { "promo" } else { "income" }, points }
    }

    /// Two to ten that are to be recorded together. Two in five batches have one that can never be.
    pub fn together(random: &mut StdRng) -> Vec<Self> {
        let count = random.random_range(2..=10);
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let points = random.random_range(1..20);
            match random.random_range(0..5) {
                0 | 1 => all.push(Self::earn(random, points)),
                2 => all.push(Self::Recharge { order: fresh(random), points }),
                3 => all.push(Self::Spend { spend: fresh(random), points }),
                _ => {
                    let hold = fresh(random);
                    all.push(Self::Hold { hold, points, lifetime_s: None });
                    if all.len() < count {
                        all.push(Self::Capture { hold, points: Some(points) });
                    }
                }
            }
        }
        if random.random_bool(0.4) {
            all[random.random_range(0..count)] = if random.random_bool(0.5) {
                Self::Spend { spend: fresh(random), points: IMPOSSIBLE }
            } else {
                Self::Capture { hold: fresh(random), points: None }
            };
        }
        all
    }
}

pub fn user(random: &mut StdRng) -> Uuid {
    Uuid::from_u128(u128::from(random.random_range(1..=USERS)))
}

fn is_beside(one: Uuid, other: Uuid) -> bool {
    let shard = |user| shard_of(UserId(user), ShardCount::default());
    shard(one) == shard(other)
}

fn fresh(random: &mut StdRng) -> Uuid {
    Uuid::from_u128(random.random())
}

fn hold_of(random: &mut StdRng, user: Uuid) -> Uuid {
    Uuid::from_u128((1 << 96) + (user.as_u128() << 32) + random.random_range(0..HOLDS_PER_USER))
}

/// Every other one is new, so that not all of them exist already.
fn spend_of(random: &mut StdRng, user: Uuid) -> Uuid {
    if random.random_bool(0.3) {
        return fresh(random);
    }
    Uuid::from_u128((2 << 96) + (user.as_u128() << 32) + random.random_range(0..SPENDS_PER_USER))
}
