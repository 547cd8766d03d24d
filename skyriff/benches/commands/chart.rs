//! The pictures.

use std::{error::Error, path::Path, time::Duration};

use plotters::{coord::Shift, prelude::*};

use crate::{ACCOUNTS, history, ledger, report::Figure};

/// One for each part that has one.
pub fn draw(figures: &[Figure], folder: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    if figures.iter().any(|figure| figure.title == "skyriff") {
        let file = folder.join(format!("{name}.svg"));
        let area = SVGBackend::new(&file, (900, 560)).into_drawing_area();
        area.fill(&WHITE)?;
        over_connections(figures, &area)?;
        area.present()?;
    }
    if figures.iter().any(|figure| figure.title.starts_with("history")) {
        let file = folder.join("history.svg");
        let area = SVGBackend::new(&file, (900, 760)).into_drawing_area();
        area.fill(&WHITE)?;
        let (above, below) = area.split_vertically(380);
        let over =
            Over { caption: "With a history", x: "events in the store", titles: &[history::WITH, history::WITHOUT] };
        over.plot(figures, &above, "commands a second", &[("", |figure| Some(figure.per_second))])?;
        over.plot(figures, &below, "milliseconds", &[(", p50", |f| ms(f.p50)), (", p99", |f| ms(f.p99))])?;
        area.present()?;
    }
    let mut questions: Vec<_> =
        figures.iter().map(|f| f.title.as_str()).filter(|t| t.starts_with(ledger::TITLE)).collect();
    questions.sort_unstable();
    questions.dedup();
    if !questions.is_empty() {
        let file = folder.join("ledger.svg");
        let area = SVGBackend::new(&file, (1_000, 560)).into_drawing_area();
        area.fill(&WHITE)?;
        let over = Over { caption: "Questions of auditors, the median", x: "entries in the books", titles: &questions };
        over.plot(figures, &area, "milliseconds", &[("", |f| ms(f.p50))])?;
        area.present()?;
    }
    Ok(())
}

fn ms(time: Option<Duration>) -> Option<f64> {
    Some(time?.as_secs_f64() * 1e3)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Points = Vec<(f64, f64)>;
/// What the lines of a picture show, and how their labels end.
type Value = (&'static str, fn(&Figure) -> Option<f64>);

/// Commands a second over connections: a line per load.
fn over_connections(figures: &[Figure], area: &Area) -> Result<(), Box<dyn Error>> {
    let lines = [
        ("skyriff, random accounts", "skyriff", ACCOUNTS),
        ("skyriff, one account", "skyriff", 1),
        ("stock, random accounts", "stock", ACCOUNTS),
        ("stock, one account", "stock", 1),
        ("the same HTTP, a constant answer", "the same HTTP", ACCOUNTS),
    ];
    let lines = lines.map(|(label, title, accounts)| {
        let of = figures.iter().filter(|f| f.title.starts_with(title) && f.accounts == accounts && f.per_second > 0.0);
        (label.to_owned(), of.map(|figure| (f64::from(figure.connections), figure.per_second)).collect())
    });
    let axes = Axes { x: ("connections", 1.0..1_200.0), y: ("commands a second", 1.0..400_000.0) };
    plot(area, "Commands a second over HTTP", axes, &lines)
}

/// Figures over how much was there before.
struct Over<'a> {
    caption: &'a str,
    x: &'a str,
    titles: &'a [&'a str],
}

impl Over<'_> {
    /// A line for each title and value.
    fn plot(&self, figures: &[Figure], area: &Area, y: &str, values: &[Value]) -> Result<(), Box<dyn Error>> {
        let mut lines = Vec::new();
        for title in self.titles {
            for (label, value) in values {
                let of = figures.iter().filter(|figure| figure.title == *title);
                let point = |f: &Figure| Some((f64::from(u32::try_from(f.events?).ok()?), value(f)?));
                lines.push((format!("{title}{label}"), of.filter_map(point).collect::<Points>()));
            }
        }
        let of_all = |pick: fn(&(f64, f64)) -> f64| {
            let all = lines.iter().flat_map(|(_, points)| points).map(pick);
            let (low, high) = all.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), at| (low.min(at), high.max(at)));
            low.min(high) / 2.0..high * 2.0
        };
        let axes = Axes { x: (self.x, of_all(|at| at.0)), y: (y, of_all(|at| at.1)) };
        plot(area, &format!("{}: {y}", self.caption), axes, &lines)
    }
}

struct Axes<'a> {
    x: (&'a str, std::ops::Range<f64>),
    y: (&'a str, std::ops::Range<f64>),
}

/// Lines over logarithmic axes.
fn plot(area: &Area, caption: &str, axes: Axes, lines: &[(String, Points)]) -> Result<(), Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(80)
        .build_cartesian_2d(axes.x.1.log_scale(), axes.y.1.log_scale())?;
    chart.configure_mesh().x_desc(axes.x.0).y_desc(axes.y.0).draw()?;
    for (index, (label, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}
