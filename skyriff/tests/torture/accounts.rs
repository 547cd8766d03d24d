//! Accounts folded from the log with a few lines of their own, so that an error of the code under test is not repeated
//! here. Of each it keeps what it was after each of its events.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use serde_json::Value;
use skyriff_domain::LogPosition;
use uuid::Uuid;

/// Points by bucket: promo, paid, income.
pub type Buckets = [i64; 3];

/// An account after one of its events.
pub struct Step {
    pub at: LogPosition,
    pub recorded_at: DateTime<Utc>,
    pub available: i64,
    /// Of that, what may be given away: all but promo points.
    pub not_promo: i64,
}

/// A hold or a spend: what is left of it, since which step of its account.
#[derive(Default)]
pub struct Part {
    left: Buckets,
    /// Of a hold. Another one may have the same id later.
    expires_at: Option<DateTime<Utc>>,
    history: Vec<(usize, i64, Option<DateTime<Utc>>)>,
}

impl Part {
    /// What was left of it after so many steps of the account.
    pub fn left_after(&self, steps: usize) -> i64 {
        self.history.iter().rev().find(|(since, ..)| *since <= steps).map_or(0, |(_, left, _)| *left)
    }

    /// Whether the hold that there was after so many steps is over at a time, though the log says so only later.
    pub fn is_over(&self, steps: usize, at: DateTime<Utc>) -> bool {
        let expires_at = self.history.iter().rev().find(|(since, ..)| *since <= steps).and_then(|(.., end)| *end);
        expires_at.is_some_and(|end| end <= at)
    }

    fn change(&mut self, by: Buckets, sign: i64, step: usize) -> Result<()> {
        move_points(&mut self.left, by, sign)?;
        self.history.push((step, self.left.iter().sum(), self.expires_at));
        Ok(())
    }
}

#[derive(Default)]
pub struct Account {
    pub available: Buckets,
    pub held: Buckets,
    pub steps: Vec<Step>,
    pub holds: HashMap<Uuid, Part>,
    pub spends: HashMap<Uuid, Part>,
}

impl Account {
    pub fn available_after(&self, steps: usize) -> i64 {
        steps.checked_sub(1).and_then(|last| self.steps.get(last)).map_or(0, |step| step.available)
    }

    pub fn not_promo_after(&self, steps: usize) -> i64 {
        steps.checked_sub(1).and_then(|last| self.steps.get(last)).map_or(0, |step| step.not_promo)
    }

    /// Fails where a bucket, a hold or a spend falls below zero, which only a decision on stale state can do.
    pub fn apply(&mut self, payload: &Value, at: LogPosition, recorded_at: DateTime<Utc>) -> Result<()> {
        let (name, event) = payload.as_object().and_then(|event| event.iter().next()).context("no event")?;
        let id = |member: &str| -> Result<Uuid> { Ok(serde_json::from_value(event[member].clone())?) };
        let step = self.steps.len() + 1;
        match name.as_str() {
            "earned" => move_points(&mut self.available, buckets(&event["credited"]), 1)?,
            "recharged" => move_points(&mut self.available, [0, number(&event["points"]), 0], 1)?,
            "spent" => {
                let taken = buckets(&event["taken"]);
                move_points(&mut self.available, taken, -1)?;
                self.spends.entry(id("spend")?).or_default().change(taken, 1, step)?;
            }
            "refunded" => {
                let returned = buckets(&event["returned"]);
                self.spends.get_mut(&id("spend")?).context("no such spend")?.change(returned, -1, step)?;
                move_points(&mut self.available, returned, 1)?;
            }
            "held" => {
                let taken = buckets(&event["taken"]);
                move_points(&mut self.available, taken, -1)?;
                move_points(&mut self.held, taken, 1)?;
                let hold = self.holds.entry(id("hold")?).or_default();
                ensure!(hold.left == [0; 3], "it is held already");
                hold.expires_at = serde_json::from_value(event["expires_at"].clone())?;
                hold.change(taken, 1, step)?;
            }
            "captured" | "released" => {
                let part = buckets(&event[if name == "captured" { "taken" } else { "returned" }]);
                let hold = self.holds.get_mut(&id("hold")?).context("no such hold")?;
                hold.change(part, -1, step)?;
                move_points(&mut self.held, part, -1)?;
                if name == "released" {
                    ensure!(hold.left == [0; 3], "something stays held after a release");
                    move_points(&mut self.available, part, 1)?;
                }
            }
            "tip_paid" => {
                let taken = buckets(&event["taken"]);
                let hold = self.holds.get_mut(&id("tip")?).context("nothing is held for the tip")?;
                hold.change(taken, -1, step)?;
                ensure!(hold.left == [0; 3], "something stays held after a tip");
                move_points(&mut self.held, taken, -1)?;
            }
            "tip_received" => move_points(&mut self.available, [0, 0, number(&event["income"])], 1)?,
            other => bail!("nobody asked for {other}"),
        }
        self.steps.push(Step {
            at,
            recorded_at,
            available: self.available.iter().sum(),
            not_promo: self.available[1] + self.available[2],
        });
        Ok(())
    }
}

/// A hold that was over, released by whatever came next, and not by a command that asked for it.
pub fn is_due(payload: &Value) -> bool {
    payload["released"]["cause"] == "expired"
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn buckets(purse: &Value) -> Buckets {
    let promo = purse["promo"].as_object().map_or(0, |lots| lots.values().map(number).sum());
    [promo, number(&purse["paid"]), number(&purse["income"])]
}

fn move_points(points: &mut Buckets, by: Buckets, sign: i64) -> Result<()> {
    for (points, by) in points.iter_mut().zip(by) {
        *points += sign * by;
    }
    ensure!(points.iter().all(|points| *points >= 0), "points fall to {points:?}: decided on stale state");
    Ok(())
}
