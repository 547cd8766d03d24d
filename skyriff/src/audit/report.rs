//! What an audit tells.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Serialize, Serializer};

use skyriff_domain::ledger::Unit;

use super::{
    findings::Findings,
    fold::{self, Shard},
};

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub events: u64,
    /// By `aggregate.event`.
    pub by_type: BTreeMap<String, u64>,
    pub streams: usize,
    /// The last position of each shard.
    pub heads: BTreeMap<u16, i64>,
    /// The root of each shard's tree of so many events, in base64.
    pub roots: BTreeMap<u16, String>,
    /// What stands on each account of the books, in its unit, all users together.
    pub ledger: BTreeMap<String, i64>,
    /// What that comes to, in each unit.
    #[serde(serialize_with = "by_name")]
    pub ledger_sums: BTreeMap<Unit, i128>,
    /// Tips that are credited and not settled yet, or offered and not answered yet.
    pub tips_under_way: u64,
    /// The checkpoints that the trees were compared with.
    pub checkpoints: Vec<String>,
    /// Of each shard, how many of its first events are those of such a checkpoint.
    pub sealed: BTreeMap<u16, u64>,
    /// Of each shard, how many of its last events no checkpoint agrees with: whether these were edited cannot be told.
    pub not_sealed: BTreeMap<u16, u64>,
    /// What was not looked at, and why.
    pub notes: Vec<String>,
    /// Whether read models were compared.
    #[serde(skip)]
    pub compared: bool,
    /// What is wrong, and how much there is of it.
    #[serde(flatten)]
    pub findings: Findings,
}

/// For so many positions.
pub fn bar(what: &str, total: i64) -> Result<ProgressBar> {
    let style = format!("{what} {{bar:40}} {{human_pos}}/{{human_len}} events, {{per_sec}}, {{eta}} left");
    Ok(ProgressBar::new(u64::try_from(total)?).with_style(ProgressStyle::with_template(&style)?))
}

impl Report {
    /// A shard that is done with.
    pub fn add(&mut self, shard: Shard) {
        self.events += shard.events;
        self.streams += shard.streams.len();
        for ((aggregate, event), count) in &shard.by_type {
            *self.by_type.entry(format!("{aggregate}.{event}")).or_default() += count;
        }
        self.heads.insert(shard.id.0, shard.last.0);
        let sealed = shard.tree.agreed();
        let not_sealed = shard.events.saturating_sub(sealed);
        for (of_all, events) in [(&mut self.sealed, sealed), (&mut self.not_sealed, not_sealed)] {
            if events > 0 {
                of_all.insert(shard.id.0, events);
            }
        }
        if let Some(head) = shard.tree.head() {
            self.roots.insert(shard.id.0, head.root.to_string());
        }
        for (unit, sum) in fold::sums(shard.ledger.iter().map(|(account, amount)| (account, *amount))) {
            *self.ledger_sums.entry(unit).or_default() += sum;
        }
        for (account, points) in &shard.ledger {
            let sum = self.ledger.entry(account.to_string()).or_default();
            match sum.checked_add(*points) {
                Some(points) => *sum = points,
                None => self.findings.of_all(format!("the account {account} overflows over all shards")),
            }
        }
        self.findings.absorb(shard.findings);
    }

    /// All shards are there.
    pub fn end(&mut self) {
        for (unit, sum) in self.ledger_sums.iter().filter(|(_, sum)| **sum != 0) {
            self.findings.of_all(format!("the ledger's {unit} sum to {sum} instead of zero"));
        }
    }

    pub fn print(&self, took: Duration) {
        println!("{} events of {} streams in {} shards", self.events, self.streams, self.heads.len());
        for (name, count) in &self.by_type {
            println!("  {count:>12}  {name}");
        }
        println!("the books");
        for (account, points) in &self.ledger {
            println!("  {points:>12}  {account}");
        }
        for (unit, sum) in &self.ledger_sums {
            println!("  {sum:>12}  sum of {unit}");
        }
        if self.tips_under_way > 0 {
            println!("{} tips are under way, which is what stands on platform:transit", self.tips_under_way);
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        for problem in self.findings.told() {
            println!("WRONG: {problem}");
        }
        let rate = f64::from(u32::try_from(self.events).unwrap_or(u32::MAX)) / took.as_secs_f64();
        println!("checked in {took:.1?}, {rate:.0} events a second");
        match self.findings.total() {
            0 => self.print_what_agrees(),
            more => println!("{more} problems"),
        }
    }

    fn print_what_agrees(&self) {
        let balances = if self.compared { ", and every balance, tip, like and video job with its events" } else { "" };
        println!("everything agrees: positions, sequences, the ledger's zero{balances}");
        match self.checkpoints.len() {
            0 => println!(
                "that nobody edited the log can only be said with a checkpoint that somebody kept: --checkpoint"
            ),
            _ => {
                println!("compared with {}", self.checkpoints.join(", "));
                println!("  events that are as they were sealed, SHARD:HOW MANY: {}", by_shard(&self.sealed));
                println!(
                    "  later ones, of which nobody can say yet that they were not edited: {}",
                    by_shard(&self.not_sealed)
                );
            }
        }
    }
}

fn by_shard(events: &BTreeMap<u16, u64>) -> String {
    if events.is_empty() {
        return "none".to_owned();
    }
    events.iter().map(|(shard, events)| format!("{shard}:{events}")).collect::<Vec<_>>().join(" ")
}

fn by_name<S: Serializer>(sums: &BTreeMap<Unit, i128>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(sums.iter().map(|(unit, sum)| (unit.to_string(), sum)))
}
