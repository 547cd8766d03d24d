//! What was measured: a table with ratios, a file for other programs, and a picture.

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::wrk::Load;

/// One measurement.
#[derive(Debug)]
pub struct Figure {
    pub title: String,
    pub accounts: u32,
    pub connections: u32,
    pub per_second: f64,
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
}

impl Figure {
    pub fn of(title: &str, accounts: u32, connections: u32, load: &Load) -> Self {
        let Load { per_second, p50, p99 } = *load;
        Self { title: title.to_owned(), accounts, connections, per_second, p50: Some(p50), p99: Some(p99) }
    }
}

/// All of one run.
#[derive(Debug, Default)]
pub struct Report(Vec<Figure>);

impl Report {
    pub fn add(&mut self, figure: Figure) {
        self.0.push(figure);
    }

    fn per_second(&self, title: &str, accounts: u32, connections: u32) -> Option<f64> {
        let of = |figure: &&Figure| {
            figure.title.starts_with(title) && figure.accounts == accounts && figure.connections == connections
        };
        self.0.iter().find(of).map(|figure| figure.per_second)
    }

    /// Print the table and the ratios; write them, the figures and the picture.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut text =
            String::from("| what | accounts | connections | a second | p50 | p99 |\n|---|---|---|---|---|---|\n");
        let mut csv = String::from("what,accounts,connections,per_second,p50_us,p99_us\n");
        for Figure { title, accounts, connections, per_second, p50, p99 } in &self.0 {
            let time = |time: &Option<Duration>| time.map_or_else(String::new, |time| format!("{time:.2?}"));
            let micros = |time: &Option<Duration>| time.map_or_else(String::new, |time| time.as_micros().to_string());
            writeln!(
                text,
                "| {title} | {accounts} | {connections} | {per_second:.0} | {} | {} |",
                time(p50),
                time(p99)
            )?;
            writeln!(csv, "{title:?},{accounts},{connections},{per_second:.1},{},{}", micros(p50), micros(p99))?;
        }
        writeln!(text, "\n| ratio | |\n|---|---|")?;
        for (name, ratio) in self.ratios() {
            writeln!(text, "| {name} | {ratio:.2} |")?;
        }
        fs::write(folder.join("commands.md"), &text)?;
        fs::write(folder.join("commands.csv"), csv)?;
        self.draw(&folder.join("commands.svg")).map_err(|error| anyhow!("cannot draw: {error}"))?;
        println!("{text}\nwritten to {}", folder.canonicalize()?.display());
        Ok(())
    }

    fn ratios(&self) -> Vec<(String, f64)> {
        let random = crate::ACCOUNTS;
        let ratio = |(a, accounts, connections), (b, b_accounts, b_connections)| {
            Some(self.per_second(a, accounts, connections)? / self.per_second(b, b_accounts, b_connections)?)
        };
        let mut ratios = Vec::new();
        for n in [1, 64, 256, 1_024] {
            ratios.push((
                format!("skyriff to stock, random accounts, {n} connections"),
                ratio(("skyriff", random, n), ("stock", random, n)),
            ));
        }
        ratios.push((
            "skyriff to stock, one account, 64 connections".into(),
            ratio(("skyriff", 1, 64), ("stock", 1, 64)),
        ));
        for n in [64, 256, 1_024] {
            ratios.push((
                format!("one account to random accounts, {n} connections"),
                ratio(("skyriff", 1, n), ("skyriff", random, n)),
            ));
        }
        ratios.push((
            "skyriff at 256 connections to the append function, 2 × 128".into(),
            ratio(("skyriff", random, 256), ("the append function alone, 2 × 128", random, 2)),
        ));
        ratios.push((
            "skyriff at 256 connections to a constant answer".into(),
            ratio(("skyriff", random, 256), ("the same HTTP", random, 256)),
        ));
        ratios.push((
            "latency of a lone client: skyriff to one pgbench client".into(),
            ratio(("pgbench", random, 1), ("skyriff", random, 1)),
        ));
        ratios.into_iter().filter_map(|(name, ratio)| Some((name, ratio?))).collect()
    }

    /// Commands a second over connections, both on logarithmic axes: a line per load.
    fn draw(&self, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let random = crate::ACCOUNTS;
        let lines = [
            ("skyriff, random accounts", "skyriff", random),
            ("skyriff, one account", "skyriff", 1),
            ("stock, random accounts", "stock", random),
            ("stock, one account", "stock", 1),
            ("the same HTTP, a constant answer", "the same HTTP", random),
        ];
        let area = SVGBackend::new(file, (900, 560)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("Commands a second over HTTP", ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(46)
            .y_label_area_size(80)
            .build_cartesian_2d((1_f64..1_200_f64).log_scale(), (10_f64..400_000_f64).log_scale())?;
        chart.configure_mesh().x_desc("connections").y_desc("commands a second").draw()?;
        for (index, (label, title, accounts)) in lines.into_iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let of = |figure: &&Figure| figure.title.starts_with(title) && figure.accounts == accounts;
            let points: Vec<_> = self.0.iter().filter(of).map(|f| (f64::from(f.connections), f.per_second)).collect();
            chart
                .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            chart.draw_series(points.into_iter().map(|point| Circle::new(point, 4, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}
