//! What came of a played trace.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use super::{
    client::{Outcome, Sent},
    trace::{Action, Read},
};

/// The first unexpected answers are told; more are counted.
const UNEXPECTED_TOLD: usize = 5;

/// Longer ones count as this: an hour, in microseconds.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Counts, by kind of action where it matters.
pub struct Summary {
    sent: u64,
    recorded: BTreeMap<&'static str, u64>,
    nothing: u64,
    replayed: u64,
    refused: BTreeMap<String, u64>,
    unexpected: u64,
    told: Vec<String>,
    retries: u64,
    lines: u64,
    unsupported: BTreeMap<String, u64>,
    videos_left_out: u64,
    /// Microseconds to three digits.
    latencies: Histogram<u64>,
}

impl Default for Summary {
    #[expect(clippy::expect_used, reason = "a constant that is valid")]
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("these bounds are valid");
        Self {
            sent: 0,
            recorded: BTreeMap::new(),
            nothing: 0,
            replayed: 0,
            refused: BTreeMap::new(),
            unexpected: 0,
            told: Vec::new(),
            retries: 0,
            lines: 0,
            unsupported: BTreeMap::new(),
            videos_left_out: 0,
            latencies,
        }
    }
}

impl Summary {
    pub fn count(&mut self, action: &Action, Sent { outcome, latency, retries }: Sent) {
        self.sent += 1;
        self.retries += retries;
        self.latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        match outcome {
            Outcome::Recorded => *self.recorded.entry(action.kind()).or_default() += 1,
            Outcome::Nothing => self.nothing += 1,
            Outcome::Replayed => self.replayed += 1,
            Outcome::Refused(problem) => *self.refused.entry(problem).or_default() += 1,
            Outcome::Unexpected(answer) => {
                self.unexpected += 1;
                if self.told.len() < UNEXPECTED_TOLD {
                    self.told.push(format!("{} {}: {answer}", action.kind(), action.idempotency_key()));
                }
            }
        }
    }

    pub fn count_read(&mut self, read: &Read) {
        self.lines += read.lines;
        self.videos_left_out += read.videos_left_out;
        for (kind, count) in &read.unsupported {
            *self.unsupported.entry(kind.clone()).or_default() += count;
        }
    }

    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.nothing += other.nothing;
        self.replayed += other.replayed;
        self.unexpected += other.unexpected;
        self.retries += other.retries;
        self.lines += other.lines;
        self.videos_left_out += other.videos_left_out;
        for (kind, count) in other.recorded {
            *self.recorded.entry(kind).or_default() += count;
        }
        for (problem, count) in other.refused {
            *self.refused.entry(problem).or_default() += count;
        }
        for (kind, count) in other.unsupported {
            *self.unsupported.entry(kind).or_default() += count;
        }
        let room = UNEXPECTED_TOLD.saturating_sub(self.told.len());
        self.told.extend(other.told.into_iter().take(room));
        self.latencies += other.latencies;
    }

    pub fn is_as_expected(&self) -> bool {
        self.unexpected == 0
    }

    pub fn print(&self, took: Duration) {
        let line = |count: u64, what: &str| println!("{count:>10}  {what}");
        line(self.lines, "lines read");
        for (kind, count) in &self.unsupported {
            line(*count, &format!("not supported yet: {kind}"));
        }
        if self.videos_left_out > 0 {
            line(
                self.videos_left_out,
                "left out: video_job (--videos noop orders them, with `skyriff worker --providers noop` running)",
            );
        }
        line(self.sent, "sent");
        for (kind, count) in &self.recorded {
            line(*count, &format!("recorded: {kind}"));
        }
        line(self.nothing, "accepted with nothing to record");
        line(self.replayed, "replayed: recorded by an earlier request");
        for (problem, count) in &self.refused {
            line(*count, &format!("refused: {problem}"));
        }
        line(self.unexpected, "unexpected");
        for told in &self.told {
            println!("            {told}");
        }
        line(self.retries, "retries");
        let at = |quantile| Duration::from_micros(self.latencies.value_at_quantile(quantile));
        let seconds = took.as_secs_f64();
        let rate = f64::from(u32::try_from(self.sent).unwrap_or(u32::MAX)) / seconds.max(f64::EPSILON);
        println!("{seconds:>9.1}s  {rate:.0} a second, p50 {:.1?}, p99 {:.1?}", at(0.5), at(0.99));
    }
}
