//! What is wrong, and where.

use std::fmt;

use serde::Serialize;
use skyriff_domain::{LogPosition, Position, ShardId};

/// More are counted but not told.
const TOLD_MAX: usize = 50;

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// What differs.
    pub what: String,
}

/// The first [`TOLD_MAX`] problems, and how many there are.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    problems: Vec<Problem>,
    problems_total: u64,
}

impl Findings {
    /// Of an event.
    pub fn at(&mut self, at: LogPosition, what: String) {
        self.add(Problem { shard: Some(at.shard), position: Some(at.position), what });
    }

    /// Of a shard.
    pub fn of(&mut self, shard: ShardId, what: String) {
        self.add(Problem { shard: Some(shard), position: None, what });
    }

    /// Of all shards together.
    pub fn of_all(&mut self, what: String) {
        self.add(Problem { shard: None, position: None, what });
    }

    fn add(&mut self, problem: Problem) {
        self.problems_total += 1;
        if self.problems.len() < TOLD_MAX {
            self.problems.push(problem);
        }
    }

    pub fn absorb(&mut self, other: Self) {
        let told = other.problems.len();
        other.problems.into_iter().for_each(|problem| self.add(problem));
        self.problems_total += other.problems_total - u64::try_from(told).unwrap_or_default();
    }

    pub fn told(&self) -> &[Problem] {
        &self.problems
    }

    pub fn total(&self) -> u64 {
        self.problems_total
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.shard, self.position) {
            (Some(shard), Some(position)) => write!(f, "shard {shard}, position {position}: {}", self.what),
            (Some(shard), None) => write!(f, "shard {shard}: {}", self.what),
            (None, _) => f.write_str(&self.what),
        }
    }
}
