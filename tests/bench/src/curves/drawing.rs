//! Curves on logarithmic axes.

use svg::Document;
use svg::node::element::{Circle, Group, Line, Polyline, Rectangle, Text};

use crate::curves::{Family, Measured};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
/// The ends of the axes.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 620.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 420.0;
/// The height of a line of text.
const LINE: f64 = 15.0;
const FONT: &str = "font-family: sans-serif; font-size: 12px";
const COLOURS: [&str; 8] = ["#4053d3", "#b51d14", "#00813c", "#b86e00", "#7a3fb0", "#00798c", "#c2388e", "#555555"];

/// A logarithmic axis: powers of ten, at places of the drawing.
#[derive(Clone, Copy)]
struct Axis {
    lowest: f64,
    highest: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    /// An axis with whole decades around `values`.
    fn around(values: impl Iterator<Item = f64>, begin: f64, end: f64) -> Self {
        let (mut lowest, mut highest) = (f64::INFINITY, f64::NEG_INFINITY);
        for decade in values.map(|value| value.max(1.0).log10()) {
            (lowest, highest) = (lowest.min(decade.floor()), highest.max(decade.ceil()));
        }
        Self { lowest, highest, begin, end }
    }

    fn place(self, value: f64) -> f64 {
        let part = (value.max(1.0).log10() - self.lowest) / (self.highest - self.lowest).max(1.0);
        self.begin + part * (self.end - self.begin)
    }

    /// The powers of ten on the axis.
    fn decades(self) -> impl Iterator<Item = f64> {
        std::iter::successors(Some(self.lowest), |decade| Some(decade + 1.0))
            .take_while(move |decade| *decade <= self.highest)
            .map(|decade| 10_f64.powf(decade))
    }
}

/// Draws the curves of a family.
#[expect(clippy::cast_precision_loss, reason = "sizes are powers of ten")]
pub(super) fn of(family: &Family, measured: &[Measured]) -> Document {
    let sizes: Vec<f64> = family.sizes.iter().map(|size| *size as f64).collect();
    let x = Axis::around(sizes.iter().copied(), LEFT, RIGHT);
    let y = Axis::around(measured.iter().flat_map(|curve| curve.instructions.iter().copied()), BOTTOM, TOP);
    let mut drawing = Document::new()
        .set("viewBox", (0, 0, WIDTH, HEIGHT))
        .set("style", FONT)
        .add(Rectangle::new().set("width", WIDTH).set("height", HEIGHT).set("fill", "white"))
        .add(grid(x, y, family.counted));
    let labels = places_of_labels(measured.iter().map(|curve| y.place(*curve.instructions.last().unwrap_or(&1.0))));
    for ((curve, label), colour) in measured.iter().zip(labels).zip(COLOURS.iter().cycle()) {
        drawing = drawing
            .add(line(curve, &sizes, (x, y), colour))
            .add(text(RIGHT + 12.0, label + 4.0, "start", curve.name).set("fill", *colour));
    }
    drawing
}

/// The lines of the decades and their numbers.
fn grid(x: Axis, y: Axis, counted: &str) -> Group {
    let mut grid = Group::new().set("stroke-width", 1);
    for decade in x.decades() {
        let at = x.place(decade);
        grid = grid.add(rule((at, BOTTOM), (at, TOP))).add(text(at, BOTTOM + 18.0, "middle", &decade.to_string()));
    }
    for decade in y.decades() {
        let at = y.place(decade);
        grid = grid.add(rule((LEFT, at), (RIGHT, at))).add(text(LEFT - 8.0, at + 4.0, "end", &decade.to_string()));
    }
    let middle = LEFT.midpoint(RIGHT);
    grid.add(text(middle, BOTTOM + 40.0, "middle", counted)).add(text(LEFT, TOP - 12.0, "middle", "instructions"))
}

fn rule(from: (f64, f64), to: (f64, f64)) -> Line {
    let line = Line::new().set("x1", from.0).set("y1", from.1).set("x2", to.0).set("y2", to.1);
    line.set("stroke", "#dddddd")
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> Text {
    Text::new(words).set("x", x).set("y", y).set("text-anchor", anchor)
}

/// One curve, with a dot at each size.
fn line(curve: &Measured, sizes: &[f64], (x, y): (Axis, Axis), colour: &str) -> Group {
    let places = sizes.iter().zip(&curve.instructions).map(|(size, count)| (x.place(*size), y.place(*count)));
    let places: Vec<_> = places.collect();
    let corners: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let line = Polyline::new().set("points", corners.join(" ")).set("fill", "none").set("stroke", colour);
    let mut group = Group::new().add(line.set("stroke-width", 2));
    for (x, y) in places {
        group = group.add(
            Circle::new().set("cx", format!("{x:.1}")).set("cy", format!("{y:.1}")).set("r", 3).set("fill", colour),
        );
    }
    group
}

/// The heights of labels that would be at `wanted`, apart from each other, in the same order.
fn places_of_labels(wanted: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut labels: Vec<(usize, f64)> = wanted.enumerate().collect();
    labels.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut free = f64::NEG_INFINITY;
    for (_, place) in &mut labels {
        *place = place.max(free);
        free = *place + LINE;
    }
    labels.sort_by_key(|(number, _)| *number);
    labels.into_iter().map(|(_, place)| place).collect()
}
