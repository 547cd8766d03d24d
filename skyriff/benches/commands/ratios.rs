//! What is compared with what. A ratio whose figures were not measured is left out.

use crate::{ACCOUNTS, history, likes, report::Figure};

pub fn of(figures: &[Figure]) -> Vec<(String, f64)> {
    let mut ratios = Ratios { figures, found: Vec::new() };
    ratios.single();
    ratios.bulk();
    for batch in ["1 × 1", "2 × 128"] {
        let executors = if batch == "1 × 1" { 1 } else { 2 };
        let of = |what: &str| (format!("append {what} the key table, {batch}"), ACCOUNTS, executors);
        ratios.add(format!("the append function with the key table to without, {batch}"), of("with"), of("without"));
    }
    for way in ["by shard", "at random"] {
        let of = |way: &str| (format!("two nodes, {way}"), ACCOUNTS, 256);
        ratios.add(format!("two nodes, {way}, to one node"), of(way), of("all to one of them"));
    }
    for n in [1, 256] {
        let of = |way: &str| (format!("with{way} standby"), ACCOUNTS, n);
        for (way, to) in [("out a", " a required"), ("out a", " an asynchronous"), (" an asynchronous", " a required")]
        {
            ratios.add(format!("with{to} standby to with{way} standby, {n} connections"), of(to), of(way));
        }
    }
    for (name, of, n) in [
        ("projecting a like", likes::projected as fn(&str) -> String, 1),
        ("PUT like", likes::over_http, likes::CONNECTIONS),
    ] {
        ratios.add(
            format!("{name}: of a work with many likes to one with none"),
            (of("many"), 0, n),
            (of("none"), 0, n),
        );
    }
    ratios.history();
    ratios.found
}

/// A figure by the beginning of its title, its accounts and its connections.
type Name<'a> = (&'a str, u32, u32);

struct Ratios<'a> {
    figures: &'a [Figure],
    found: Vec<(String, f64)>,
}

impl Ratios<'_> {
    fn add<T: AsRef<str>, U: AsRef<str>>(&mut self, name: impl Into<String>, a: (T, u32, u32), b: (U, u32, u32)) {
        let per_second = |(title, accounts, connections): Name| {
            let of = |figure: &&Figure| {
                figure.title.starts_with(title) && figure.accounts == accounts && figure.connections == connections
            };
            self.figures.iter().find(of).map(|figure| figure.per_second)
        };
        let (a, b) = (per_second((a.0.as_ref(), a.1, a.2)), per_second((b.0.as_ref(), b.1, b.2)));
        if let (Some(a), Some(b)) = (a, b)
            && b > 0.0
        {
            self.found.push((name.into(), a / b));
        }
    }

    fn single(&mut self) {
        for n in [1, 64, 256, 1_024] {
            let name = format!("skyriff to stock, random accounts, {n} connections");
            self.add(name, ("skyriff", ACCOUNTS, n), ("stock", ACCOUNTS, n));
        }
        for n in [1, 64, 256, 1_024] {
            let name = format!("skyriff to stock, one account, {n} connections");
            self.add(name, ("skyriff", 1, n), ("stock", 1, n));
        }
        for n in [64, 256, 1_024] {
            let name = format!("one account to random accounts, {n} connections");
            self.add(name, ("skyriff", 1, n), ("skyriff", ACCOUNTS, n));
        }
        let ours = ("skyriff", ACCOUNTS, 256);
        let append = ("the append function alone, 2 × 128", ACCOUNTS, 2);
        self.add("skyriff at 256 connections to the append function, 2 × 128", ours, append);
        self.add("skyriff at 256 connections to a constant answer", ours, ("the same HTTP", ACCOUNTS, 256));
        let name = "latency of a lone client: skyriff to one pgbench client";
        self.add(name, ("pgbench", ACCOUNTS, 1), ("skyriff", ACCOUNTS, 1));
    }

    fn bulk(&mut self) {
        for title in ["bulk JSON", "bulk NDJSON", "bulk without HTTP"] {
            for n in [4, 8] {
                for batch in ["2 × 512", "2 × 128"] {
                    let limit = (format!("bulk's limit, append, {batch}"), ACCOUNTS, 2);
                    self.add(format!("{title}, {n} senders, to append, {batch}"), (title, ACCOUNTS, n), limit);
                }
                if title != "bulk without HTTP" {
                    let constant = (format!("{title}, a constant answer"), ACCOUNTS, n);
                    self.add(format!("{title}, {n} senders, to a constant answer"), (title, ACCOUNTS, n), constant);
                    let bare = ("bulk without HTTP", ACCOUNTS, n);
                    self.add(format!("{title}, {n} senders, to bulk without HTTP"), (title, ACCOUNTS, n), bare);
                }
            }
            let single = ("skyriff", ACCOUNTS, 256);
            self.add(format!("{title}, 8 senders, to single commands at 256"), (title, ACCOUNTS, 8), single);
        }
    }

    fn history(&mut self) {
        for title in [history::WITH, history::WITHOUT] {
            let mut of_title = self.figures.iter().filter(|figure| figure.title == title);
            let Some(first) = of_title.next() else { continue };
            for figure in of_title {
                let events = |figure: &Figure| figure.events.unwrap_or_default();
                let name = format!("{title}: {} events to {}", events(figure), events(first));
                self.found.push((name, figure.per_second / first.per_second));
            }
        }
    }
}
