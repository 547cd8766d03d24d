//! What was measured: a table with ratios, a file for other programs, and pictures.

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::{Result, anyhow};

use crate::{chart, ratios, wrk::Seen};

/// One measurement.
#[derive(Debug, Default)]
pub struct Figure {
    pub title: String,
    pub accounts: u32,
    pub connections: u32,
    /// Events in the store, where that is what is asked about.
    pub events: Option<i64>,
    pub per_second: f64,
    /// Of one request, whatever number of commands it carries.
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    /// What the numbers alone would hide.
    pub note: String,
}

impl Figure {
    pub fn of(title: &str, accounts: u32, connections: u32, seen: &Seen) -> Self {
        let Seen { per_second, p50, p99, answered, late } = *seen;
        let mut notes = Vec::new();
        if answered < u64::from(connections) * 2 {
            notes.push(format!("{answered} answers in all, the other requests were cut off at the end"));
        }
        if late > 0 {
            notes.push(format!("{late} answers timed out"));
        }
        let time = |time| (answered > 0).then_some(time);
        Self {
            title: title.to_owned(),
            accounts,
            connections,
            per_second,
            p50: time(p50),
            p99: time(p99),
            note: notes.join("; "),
            ..Self::default()
        }
    }
}

/// The middle one and the one that 99 of 100 are below.
pub fn percentiles(mut took: Vec<Duration>) -> (Option<Duration>, Option<Duration>) {
    took.sort_unstable();
    let at = |part: usize| took.get(took.len() * part / 100).copied();
    (at(50), at(99))
}

/// All of one run.
#[derive(Debug, Default)]
pub struct Report(Vec<Figure>);

impl Report {
    pub fn add(&mut self, figure: Figure) {
        self.0.push(figure);
    }

    pub fn figures(&self) -> &[Figure] {
        &self.0
    }

    /// Print the table and the ratios; write them, the figures and the pictures.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut text = String::from(
            "| what | events before | accounts | connections | a second | p50 | p99 | note |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        let mut csv = String::from("what,events,accounts,connections,per_second,p50_us,p99_us,note\n");
        for Figure { title, accounts, connections, events, per_second, p50, p99, note } in &self.0 {
            let events = events.map_or_else(String::new, |events| events.to_string());
            let time = |time: &Option<Duration>| time.map_or_else(String::new, |time| format!("{time:.2?}"));
            let micros = |time: &Option<Duration>| time.map_or_else(String::new, |time| time.as_micros().to_string());
            writeln!(
                text,
                "| {title} | {events} | {accounts} | {connections} | {per_second:.0} | {} | {} | {note} |",
                time(p50),
                time(p99)
            )?;
            writeln!(
                csv,
                "{title:?},{events},{accounts},{connections},{per_second:.1},{},{},{note:?}",
                micros(p50),
                micros(p99)
            )?;
        }
        writeln!(text, "\n| ratio | |\n|---|---|")?;
        for (name, ratio) in ratios::of(&self.0) {
            writeln!(text, "| {name} | {ratio:.2} |")?;
        }
        fs::write(folder.join(format!("{name}.md")), &text)?;
        fs::write(folder.join(format!("{name}.csv")), csv)?;
        chart::draw(self.figures(), folder, name).map_err(|error| anyhow!("cannot draw: {error}"))?;
        println!("{text}\nwritten to {}", folder.canonicalize()?.display());
        Ok(())
    }
}
