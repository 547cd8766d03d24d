//! What was tried and what came of it, for a person to see; and whether all of it was tried at all.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    ask::What,
    history::{Entry, Outcome, Via},
    moves::Move,
    nemesis::Deeds,
};

/// A tenth of the patience that a command has when the store is away.
const OVERLOADED_MAX: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Count {
    sent: u32,
    ok: u32,
    refused: u32,
    unknown: u32,
}

impl Count {
    fn add(&mut self, entry: &Entry) {
        self.sent += 1;
        match entry.outcome {
            Outcome::Ok(_) => self.ok += 1,
            Outcome::Refused(_) => self.refused += 1,
            Outcome::Fault(_) | Outcome::Unknown => self.unknown += 1,
        }
    }
}

pub struct Tally {
    rows: BTreeMap<String, Count>,
    again: [u32; 3],
    moves: Vec<(Move, u32)>,
    overloaded: Vec<Duration>,
}

impl Tally {
    pub fn new(history: &[Entry], deeds: &Deeds, overloaded: Vec<Duration>, with_standby: bool) -> Self {
        let mut rows: BTreeMap<_, Count> = BTreeMap::new();
        let mut again = [0; 3];
        for entry in history {
            rows.entry(entry.ask.what.name().to_owned()).or_default().add(entry);
            rows.entry(format!("({:?})", entry.via)).or_default().add(entry);
            rows.entry("all".to_owned()).or_default().add(entry);
            again.iter_mut().zip(entry.again).for_each(|(sum, count)| *sum += count);
        }
        let mut moves = Move::weighted(with_standby);
        moves.dedup();
        let moves = moves.into_iter().map(|one| (one, deeds.moves.get(&one).copied().unwrap_or(0))).collect();
        Self { rows, again, moves, overloaded }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (one, count) in &self.moves {
            writeln!(text, "{count:>8} × {}", one.name()).ok();
        }
        writeln!(text, "{:>14} {:>8} {:>8} {:>8} {:>8}", "", "sent", "ok", "refused", "unknown").ok();
        for (name, Count { sent, ok, refused, unknown }) in &self.rows {
            writeln!(text, "{name:>14} {sent:>8} {ok:>8} {refused:>8} {unknown:>8}").ok();
        }
        let [unknown, refused, ok] = self.again;
        writeln!(text, "sent again: {unknown} unknown, {refused} refused, {ok} acknowledged").ok();
        let (half, last) = (self.overloaded.get(self.overloaded.len() / 2), self.overloaded.last());
        write!(text, "queue full: {} answers, half within {half:?}, all within {last:?}", self.overloaded.len()).ok();
        text
    }

    /// Whatever never happened has not been tested.
    pub fn ensure_all_was_tried(&self) -> Result<()> {
        for (one, count) in &self.moves {
            ensure!(*count > 0, "never happened: {}", one.name());
        }
        for name in What::NAMES {
            let count = self.rows.get(name);
            ensure!(count.is_some_and(|count| count.ok > 0), "none was ever accepted: {name}");
        }
        for via in [Via::Single, Via::Bulk, Via::Atomic, Via::Stream] {
            let count = self.rows.get(&format!("({via:?})"));
            let both = count.is_some_and(|count| count.ok > 0 && count.refused > 0);
            ensure!(both, "none was ever accepted, or none refused: {via:?}");
        }
        ensure!(
            self.again.iter().all(|count| *count > 0),
            "never sent again: unknown, refused, ok are {:?}",
            self.again
        );
        Ok(())
    }

    /// A full queue says so at once. Half of the answers, since a node may also be stopped in the middle of one.
    pub fn ensure_overload_is_told_fast(&self) -> Result<()> {
        let half = self.overloaded.get(self.overloaded.len() / 2).copied().unwrap_or_default();
        ensure!(half <= OVERLOADED_MAX, "it took {half:?} to say that a queue is full");
        Ok(())
    }
}
