//! Plots as PNG files: lines, steps and points over linear, logarithmic or symmetric logarithmic axes. What a plot shows
//! is the caller's business; this makes it readable.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::{FontStyle, RGBColor, register_font};

const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const FAMILY: &str = "sans-serif";
const WIDTH: u32 = 1200;
const HEIGHT: u32 = 640;
/// A name's.
const NAME_HEIGHT: u32 = 26;
/// The width of a letter of a name.
const NAME_LETTER: u32 = 8;
/// A line of more points is drawn thin, for it is mostly corners.
const DENSE: usize = 1500;
const TEXT: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// M. Okabe and K. Ito's colours, which everybody can tell apart; the lightest left out.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
];

/// A plot with its axes.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Drawn in this order, each in a colour of its own.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit: `true time, h`.
    pub label: String,
    /// How values are laid out.
    pub scale: Scale,
    /// The ends; those of the data where there are none.
    pub range: Option<(f64, f64)>,
    /// What stands at 0, 1, 2 … in the place of numbers.
    pub names: Vec<String>,
}

/// How values are laid out along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// As they are.
    Linear,
    /// By their logarithm. What is not positive is left out.
    Log,
    /// By their logarithm in both directions, and as they are nearer to zero than this.
    SymLog(f64),
}

/// Values that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub label: String,
    /// How they are drawn.
    pub mark: Mark,
    /// An index into the palette. Series that belong together may share one.
    pub colour: usize,
    /// In order of the first for lines. Lines are broken at values that are not finite.
    pub points: Vec<(f64, f64)>,
}

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Joined.
    Line,
    /// Joined by a thin line, for what belongs to another series, such as the bound of an error.
    Thin,
    /// A dot each.
    Dots,
    /// Joined, with a dot each: a few measured values.
    DottedLine,
}

impl Axis {
    /// From the data's smallest to their largest value.
    pub fn new(label: impl Into<String>, scale: Scale) -> Axis {
        Axis { label: label.into(), scale, range: None, names: vec![] }
    }

    /// With these names at 0, 1, 2 …, the first one at the far end.
    pub fn of_names(names: Vec<String>) -> Axis {
        let range = Some((names.len() as f64 - 0.4, -0.6));
        Axis { label: String::new(), scale: Scale::Linear, range, names }
    }

    /// With these ends.
    pub fn within(self, low: f64, high: f64) -> Axis {
        Axis { range: Some((low, high)), ..self }
    }

    fn coordinate(&self, values: impl Iterator<Item = f64>) -> Coordinate {
        let scale = self.scale;
        let (low, high) = self.range.unwrap_or_else(|| {
            let seen = |value: &f64| value.is_finite() && (scale != Scale::Log || *value > 0.0);
            let (low, high) = values
                .filter(seen)
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
            if low > high { (1.0, 2.0) } else { (low, high) }
        });
        let (from, to) = (scale.position(low), scale.position(high));
        // A little room, and never none.
        let margin = if self.range.is_some() { 0.0 } else { ((to - from) * 0.03).max(1e-9 * (1.0 + to.abs())) };
        Coordinate { scale, names: self.names.len(), from: from - margin, to: to + margin }
    }
}

impl Scale {
    fn position(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.log10(),
            Scale::SymLog(linear) => (value / linear).asinh() / std::f64::consts::LN_10,
        }
    }

    fn value(self, position: f64) -> f64 {
        match self {
            Scale::Linear => position,
            Scale::Log => 10f64.powf(position),
            Scale::SymLog(linear) => linear * (position * std::f64::consts::LN_10).sinh(),
        }
    }

    /// Where an axis with these ends has its lines, about `count` of them.
    fn ticks(self, low: f64, high: f64, count: usize) -> Vec<f64> {
        let count = count.max(2);
        match self {
            Scale::Linear => linear_ticks(low, high, count),
            Scale::Log => {
                let decades = high.log10() - low.log10();
                if decades < 0.8 {
                    return linear_ticks(low, high, count);
                }
                let multiples: &[f64] = if decades < 3.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let every = (decades / count as f64).ceil().max(1.0) as i32;
                let exponents = (low.log10().floor() as i32..=high.log10().ceil() as i32).filter(|e| e % every == 0);
                let ticks = exponents.flat_map(|e| multiples.iter().map(move |multiple| multiple * 10f64.powi(e)));
                ticks.filter(|tick| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(tick)).collect()
            }
            Scale::SymLog(linear) => {
                let first = linear.log10().round() as i32;
                let last = low.abs().max(high.abs()).log10().ceil() as i32;
                let decades = (last - first + 1).max(1);
                let both = if low < 0.0 && high > 0.0 { 2 } else { 1 };
                let every = (f64::from(decades * both) / count as f64).ceil().max(1.0) as i32;
                // Next to zero there is no room for them.
                let begin = if every > 1 { first + 1 } else { first };
                let powers = (begin..=last).filter(|e| (e - begin) % every == 0).map(|e| 10f64.powi(e));
                let mut ticks: Vec<f64> = powers.flat_map(|power| [-power, power]).chain([0.0]).collect();
                ticks.retain(|tick| (low..=high).contains(tick));
                ticks.sort_by(f64::total_cmp);
                ticks
            }
        }
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let least = (high - low) / count as f64;
    if !(least.is_finite() && least > 0.0) {
        return vec![];
    }
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|multiple| multiple * power).find(|step| *step >= least);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|tick| tick as f64 * step).collect()
}

/// The number of a tick, without digits that say nothing.
fn tick_label(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{value:.0e}");
    }
    // Ticks have at most three digits that count.
    let decimals = (2 - size.log10().floor() as i32).clamp(0, 7) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// An axis as plotters wants it: by positions on the scale.
struct Coordinate {
    scale: Scale,
    /// How many names there are in the place of numbers.
    names: usize,
    from: f64,
    to: f64,
}

impl Ranged for Coordinate {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (self.scale.position(*value) - self.from) / (self.to - self.from);
        // Far outside is far enough.
        limit.0 + (share.clamp(-2.0, 3.0) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if self.names > 0 {
            return (0..self.names).map(|name| name as f64).collect();
        }
        let Range { start, end } = self.range();
        self.scale.ticks(start, end, hint.bold_points())
    }

    fn range(&self) -> Range<f64> {
        self.scale.value(self.from)..self.scale.value(self.to)
    }
}

impl ValueFormatter<f64> for Coordinate {
    fn format(value: &f64) -> String {
        tick_label(*value)
    }
}

impl Plot {
    /// Draws it into a PNG file.
    pub fn draw(&self, path: &Path) -> Result<()> {
        load_font()?;
        let area = BitMapBackend::new(path, (WIDTH, self.height())).into_drawing_area();
        self.draw_on(&area)
            .and_then(|()| area.present().map_err(Into::into))
            .with_context(|| path.display().to_string())
    }

    fn height(&self) -> u32 {
        HEIGHT.max(180 + NAME_HEIGHT * self.y.names.len() as u32)
    }

    fn draw_on<'a>(&self, area: &DrawingArea<BitMapBackend<'a>, Shift>) -> Result<()> {
        area.fill(&WHITE)?;
        let text = |size: u32| (FAMILY, size).into_font().color(&TEXT);
        area.draw(&Text::new(self.title.clone(), (24, 14), text(24)))?;
        let mut left = 24;
        let mut labels: Vec<&Series> = Vec::new();
        for series in &self.series {
            // Parts of one series, cut for drawing, are named once.
            if series.label.is_empty() || labels.iter().any(|other| other.label == series.label) {
                continue;
            }
            labels.push(series);
            let colour = series.colour();
            match series.mark {
                Mark::Dots => drop(area.draw(&Circle::new((left + 14, 63), 4, colour.filled()))?),
                _ => {
                    let thick = series.thickness() + 1;
                    area.draw(&PathElement::new(vec![(left, 63), (left + 28, 63)], colour.stroke_width(thick)))?;
                }
            }
            area.draw(&Text::new(series.label.clone(), (left + 36, 53), text(18)))?;
            left += 36 + area.estimate_text_size(&series.label, &text(18))?.0 as i32 + 36;
        }
        let (_, below) = area.split_vertically(84);
        let xs = self.series.iter().flat_map(|series| series.points.iter().map(|point| point.0));
        let ys = self.series.iter().flat_map(|series| series.points.iter().map(|point| point.1));
        let longest_name = self.y.names.iter().map(String::len).max().unwrap_or(0);
        let mut chart = ChartBuilder::on(&below)
            .margin_right(30)
            .margin_bottom(10)
            .x_label_area_size(62)
            .y_label_area_size(104.max(40 + NAME_LETTER * longest_name as u32))
            .build_cartesian_2d(self.x.coordinate(xs), self.y.coordinate(ys))?;
        let label = |axis: &Axis, value: f64| match axis.names.get(value as usize) {
            Some(name) => name.clone(),
            None => tick_label(value),
        };
        chart
            .configure_mesh()
            .x_label_formatter(&|value| label(&self.x, *value))
            .y_label_formatter(&|value| label(&self.y, *value))
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(TEXT)
            .x_labels(10)
            .y_labels(9)
            .label_style(text(17))
            .axis_desc_style(text(19))
            .x_desc(self.x.label.clone())
            .y_desc(self.y.label.clone())
            .draw()?;
        for series in &self.series {
            let colour = series.colour();
            if series.mark == Mark::Dots || series.mark == Mark::DottedLine {
                let size = if series.points.len() > 300 { 1 } else { 4 };
                let points = series.points.iter().filter(|point| self.shows(**point));
                chart.draw_series(points.map(|point| Circle::new(*point, size, colour.filled())))?;
            }
            if series.mark == Mark::Dots {
                continue;
            }
            for run in series.points.split(|point| !self.shows(*point)) {
                let line = thinned(run, |x| self.x.scale.position(x));
                let thickness = if line.len() > DENSE { 1 } else { series.thickness() };
                // One by one: joined, plotters would draw corners as long as they are sharp.
                let segments = line.windows(2).map(|ends| PathElement::new(ends, colour.stroke_width(thickness)));
                chart.draw_series(segments)?;
            }
        }
        Ok(())
    }

    fn shows(&self, (x, y): (f64, f64)) -> bool {
        let on = |axis: &Axis, value: f64| value.is_finite() && (axis.scale != Scale::Log || value > 0.0);
        on(&self.x, x) && on(&self.y, y)
    }
}

impl Series {
    fn colour(&self) -> RGBColor {
        COLOURS[self.colour % COLOURS.len()]
    }

    fn thickness(&self) -> u32 {
        if self.mark == Mark::Thin { 1 } else { 2 }
    }
}

/// The first, lowest, highest and last point of each column of pixels: the same picture, and a hundred thousand points
/// cost no more than a few thousand.
fn thinned(points: &[(f64, f64)], position: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let ([first, ..], Some(last)) = (points, points.last()) else { return vec![] };
    let (from, to) = (position(first.0), position(last.0));
    if points.len() < 4 * WIDTH as usize || to <= from {
        return points.to_vec();
    }
    let column = |point: &(f64, f64)| ((position(point.0) - from) / (to - from) * f64::from(WIDTH)) as u32;
    let mut thinned = Vec::new();
    for group in points.chunk_by(|one, other| column(one) == column(other)) {
        let extreme = |best: fn(f64, f64) -> bool| {
            (0..group.len()).reduce(|one, other| if best(group[other].1, group[one].1) { other } else { one })
        };
        let mut kept = vec![0, group.len() - 1];
        kept.extend(extreme(|new, old| new < old).into_iter().chain(extreme(|new, old| new > old)));
        kept.sort_unstable();
        kept.dedup();
        thinned.extend(kept.into_iter().map(|index| group[index]));
    }
    thinned
}

/// Gives plotters its one font, once.
fn load_font() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let load = || {
        let font = std::fs::read(FONT).map_err(|error| error.to_string())?;
        register_font(FAMILY, FontStyle::Normal, font.leak()).map_err(|_| "not a font".to_owned())
    };
    LOADED.get_or_init(load).clone().map_err(|error| anyhow!("{FONT} (package fonts-dejavu-core): {error}"))
}

/// The share of values that are not larger, as points of a line: their distribution.
pub fn distribution(values: impl IntoIterator<Item = f64>) -> Result<Vec<(f64, f64)>> {
    let mut values: Vec<f64> = values.into_iter().collect();
    ensure!(!values.is_empty(), "nothing to show the distribution of");
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    Ok(values.into_iter().zip(1..).map(|(value, rank)| (value, f64::from(rank) / count)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        assert_eq!(Scale::Linear.ticks(0.0, 24.0, 10), (0..=4).map(|n| f64::from(n * 5)).collect::<Vec<_>>());
        assert_eq!(Scale::Log.ticks(0.5, 2000.0, 9), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(Scale::Log.ticks(1.0, 100.0, 9), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(Scale::SymLog(1.0).ticks(-20.0, 150.0, 9), [-10.0, -1.0, 0.0, 1.0, 10.0, 100.0]);
        assert_eq!(Scale::SymLog(1.0).ticks(-1e6, 1e6, 9), [-1e5, -1e3, -10.0, 0.0, 10.0, 1e3, 1e5]);
        assert!(Scale::Linear.ticks(1.0, 1.0, 9).is_empty());
    }

    #[test]
    fn labels_have_no_digits_that_say_nothing() {
        let labels = [0.0, 5.0, -0.25, 1200.0, 0.001, 1e7, 1e-9].map(tick_label);
        assert_eq!(labels, ["0", "5", "-0.25", "1200", "0.001", "1e7", "1e-9"]);
    }

    #[test]
    fn a_position_gives_its_value_back() {
        for (scale, value) in [(Scale::Linear, -3.0), (Scale::Log, 0.02), (Scale::SymLog(2.0), -70.0)] {
            assert!((scale.value(scale.position(value)) / value - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let points: Vec<(f64, f64)> = (0..100_000).map(|n| (f64::from(n), f64::from(n * 7919 % 100_003))).collect();
        let thin = thinned(&points, |x| x);
        assert!(thin.len() <= 4 * (WIDTH as usize + 1) && thin.is_sorted_by(|one, other| one.0 < other.0));
        let highest = |points: &[(f64, f64)]| points.iter().map(|point| point.1).fold(0.0, f64::max);
        assert_eq!(highest(&thin), highest(&points));
    }

    #[test]
    fn the_distribution_ends_at_one() {
        assert_eq!(distribution([3.0, 1.0]).expect("two values"), [(1.0, 0.5), (3.0, 1.0)]);
        assert!(distribution([]).is_err());
    }

    #[test]
    fn a_plot_becomes_a_png_whatever_its_values() {
        let dir = tempfile::tempdir().expect("a folder");
        let odd = [(0.0, f64::NAN), (1.0, -1e9), (2.0, 0.0), (3.0, 1e9), (4.0, f64::INFINITY)];
        for scale in [Scale::Linear, Scale::Log, Scale::SymLog(1.0)] {
            for points in [vec![], vec![(1.0, 1.0)], odd.to_vec()] {
                let series = [Mark::Line, Mark::Thin, Mark::Dots, Mark::DottedLine].map(|mark| Series {
                    label: format!("{mark:?}"),
                    mark,
                    colour: 0,
                    points: points.clone(),
                });
                let axis = || Axis::new("value, µs", scale);
                let plot = Plot { title: "odd".to_owned(), x: axis(), y: axis(), series: series.to_vec() };
                let path = dir.path().join("plot.png");
                plot.draw(&path).expect("a file");
                assert!(std::fs::read(&path).expect("a file").starts_with(b"\x89PNG"));
            }
        }
    }
}
