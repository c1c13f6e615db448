//! Plots, as SVG: what docs/performance.md shows.

use std::path::Path;

use lockstep_tests::harness::{Failed, Result};
use plotters::prelude::*;

use crate::contender::Contender;
use crate::meter::{count, median};
use crate::suite::{Cell, Measured, Plan};

const SIZE: (u32, u32) = (760, 420);
/// Colours that most people can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
];

/// Throughput and latency of every contender over the number of clients.
///
/// # Errors
/// If they can't be written.
pub fn suite(measured: &Measured, plan: &Plan, directory: &Path) -> Result<()> {
    let lines = |what: &dyn Fn(&Cell) -> f64| -> Vec<Line> {
        let points = |contender: &Contender| {
            plan.clients
                .iter()
                .map(|clients| (count(*clients as u64), median(&measured.each(*contender, *clients, what))))
                .collect()
        };
        plan.contenders.iter().map(|who| Line { name: who.title().to_owned(), points: points(who) }).collect()
    };
    let axes = Axes { title: "Transfers a second", x: "clients", y: "transfers/s" };
    draw(&directory.join("throughput.svg"), &axes, &lines(&|cell| cell.seen.rate()))?;
    let axes = Axes { title: "Latency, median", x: "clients", y: "ms" };
    draw(&directory.join("latency.svg"), &axes, &lines(&|cell| count(cell.seen.p50) / 1000.0))
}

/// What stands at a plot.
pub struct Axes {
    /// Above it.
    pub title: &'static str,
    /// Below it, on a logarithmic scale.
    pub x: &'static str,
    /// Beside it.
    pub y: &'static str,
}

/// One line of a plot.
pub struct Line {
    /// Whose.
    pub name: String,
    /// Through these points.
    pub points: Vec<(f64, f64)>,
}

/// Draws lines into a file.
///
/// # Errors
/// If it can't be written.
pub fn draw(path: &Path, axes: &Axes, lines: &[Line]) -> Result<()> {
    let cannot = || path.display().to_string();
    try_draw(path, axes, lines).map_err(|error| Failed::new(format!("{}: {error}", cannot())))
}

fn try_draw(path: &Path, axes: &Axes, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let (least, most) =
        (all().map(|p| p.0).fold(f64::INFINITY, f64::min), all().map(|p| p.0).fold(1.0, f64::max));
    let highest = all().map(|p| p.1).fold(0.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(axes.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d((least..most * 1.02).log_scale().base(2.0), 0.0..highest * 1.1)?;
    chart.configure_mesh().x_desc(axes.x).y_desc(axes.y).x_label_formatter(&|x| format!("{x:.0}")).draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let drawn = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(3);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
        chart.draw_series(drawn)?.label(&line.name).legend(legend);
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE.mix(0.8)).draw()?;
    root.present()?;
    Ok(())
}
