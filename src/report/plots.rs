//! The figures, drawn by plotters as SVG that follows the page: text and axes take its colour, the width its column.

use super::{Inputs, ReportError, words};
use crate::{
    advise::{Outcome, PhaseAdvice, Row, RowStatus},
    record::{RunRecord, TimeSplit},
    units::three_figures,
    vocab::{Objective, Precision, Vocabulary},
};
use plotters::{
    coord::ranged1d::{AsRangedCoord, ValueFormatter},
    prelude::*,
};

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// File name without ending.
    pub stem: String,
    pub caption: String,
    /// For inclusion in the page; `standalone` makes a file of it.
    pub svg: String,
}

impl Plot {
    /// The figure as a file of its own: black on white.
    pub fn standalone(&self) -> String {
        self.svg.replacen("<svg ", "<svg style=\"color:#000;background:#fff\" ", 1)
    }
}

/// Drawn in this colour, shown in the text's.
pub(super) const INK: RGBColor = RGBColor(1, 2, 3);
/// The same for grid lines.
pub(super) const FAINT: RGBColor = RGBColor(4, 5, 6);

/// Colours that stay apart for colour-blind readers (Okabe & Ito 2008).
pub(super) const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(153, 153, 153),
];

const WIDTH: u32 = 760;

/// Most rows in a figure with one line a row.
const MOST_ROWS: usize = 30;

/// Most curves in one figure: beyond that nobody can tell them apart.
const MOST_CURVES: usize = 6;

/// All figures of a run. A figure without anything to show is left out.
pub fn plots(inputs: &Inputs) -> Result<Vec<Plot>, ReportError> {
    let mut out = Vec::new();
    for phase in &inputs.advice.phases {
        out.extend(front(inputs, phase)?);
        out.extend(throughput(inputs, phase)?);
        out.extend(time_split(inputs, phase)?);
        out.extend(learning(inputs, phase)?);
        out.extend(roc(inputs, phase)?);
    }
    Ok(out)
}

fn stem(phase: &PhaseAdvice, what: &str) -> String {
    format!("{}-{what}", phase.phase.name())
}

/// Makes the drawing follow the page it stands in.
fn adapt(svg: String, label: &str) -> String {
    let body = svg.find('>').map_or("", |at| &svg[at + 1..]);
    let view = svg.find("viewBox=\"").and_then(|at| svg[at + 9..].split('"').next()).unwrap_or("0 0 760 420");
    let body = body.replace("#010203", "currentColor").replace("#040506", "currentColor");
    format!(
        "<svg class=\"plot\" viewBox=\"{view}\" xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{}\">{body}",
        words::escape(label)
    )
}

pub(super) fn draw(
    plot: &'static str,
    height: u32,
    label: &str,
    paint: impl FnOnce(&DrawingArea<SVGBackend, plotters::coord::Shift>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        paint(&area)
            .and_then(|()| area.present().map_err(Into::into))
            .map_err(|e| ReportError::Plot { plot, reason: e.to_string() })?;
    }
    Ok(adapt(svg, label))
}

/// The names of the drawn series, without a frame.
pub(super) fn draw_legend<'a, X: Ranged<ValueType = f64>, Y: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_series_labels()
        .label_font(font(13))
        .border_style(FAINT.mix(0.0))
        .background_style(FAINT.mix(0.0))
        .position(position)
        .draw()?;
    Ok(())
}

pub(super) fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// Rows with times, best objective first: numbered as in the table.
fn measured<'a>(inputs: &Inputs<'a>, phase: &'a PhaseAdvice) -> Vec<(usize, &'a Row, &'a RunRecord)> {
    let rows = phase.rows.iter().enumerate().filter(|(_, r)| matches!(r.status, RowStatus::Ok | RowStatus::Infeasible));
    rows.map(|(at, row)| (at + 1, row, &inputs.run.records[row.record])).collect()
}

/// What the figure of costs shows on its axis: the objective where that is time or throughput, dollars otherwise.
fn price_of(inputs: &Inputs, row: &Row) -> Option<f64> {
    match inputs.advice.objective {
        Objective::Time => row.time_to_target.or(row.latency_p50).map(|s| s.as_ms()),
        _ => row.cost_to_target.map(|u| u.0).filter(|_| row.time_to_target.is_some()).or(row.usd_per_million.map(|e| e.value)),
    }
    .filter(|v| v.is_finite() && *v > 0.0)
}

fn price_title(inputs: &Inputs, phase: &PhaseAdvice) -> String {
    let to_target = phase.rows.iter().any(|r| r.time_to_target.is_some());
    match (inputs.advice.objective, to_target) {
        (Objective::Time, true) => "milliseconds to the target".into(),
        (Objective::Time, false) => "milliseconds a batch, median".into(),
        (_, true) => "dollars to the target".into(),
        (_, false) => format!("dollars for a million {}", words::units(&inputs.run.header)),
    }
}

/// A row of the figure of costs: number, row, precision, price, quality.
type Point<'a> = (usize, &'a Row, Precision, f64, f64);

/// A range with room at both ends; never empty.
fn roomy(low: f64, high: f64, least: f64) -> std::ops::Range<f64> {
    let room = ((high - low) * 0.08).max(least);
    low - room..high + room
}

/// Cost against quality, with the rows that no other beats in both joined.
fn front(inputs: &Inputs, phase: &PhaseAdvice) -> Result<Option<Plot>, ReportError> {
    let wants_target = phase.rows.iter().any(|r| r.time_to_target.is_some());
    let points: Vec<Point> = measured(inputs, phase)
        .into_iter()
        // Dollars to a target and dollars a million do not stand on one axis.
        .filter(|(_, row, _)| !wants_target || row.time_to_target.is_some())
        .filter_map(|(number, row, record)| {
            Some((number, row, record.candidate.precision, price_of(inputs, row)?, row.primary?.value))
        })
        .collect();
    if points.len() < 2 {
        return Ok(None);
    }
    let metric = inputs.run.header.primary_metric.facts().title;
    let caption = format!("{}: {} against {metric}", words::phase_title(phase.phase), price_title(inputs, phase));
    let ends = |of: &dyn Fn(&Point<'_>) -> f64| {
        points.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)))
    };
    let ((x_low, x_high), (y_low, y_high)) = (ends(&|p| p.3), ends(&|p| p.4));
    let y = roomy(y_low, y_high, 0.001);
    let svg = draw("figure of cost against quality", 430, &caption, |area| {
        let mut chart = ChartBuilder::on(area);
        chart.margin(10).x_label_area_size(46).y_label_area_size(64);
        // Beyond a factor of ten a straight axis would pile the cheap ones up.
        if x_high > 10.0 * x_low {
            let chart = chart.build_cartesian_2d((x_low * 0.8..x_high * 1.25).log_scale(), y)?;
            paint_front(chart, inputs, phase, &points, metric)
        } else {
            let chart = chart.build_cartesian_2d(roomy(x_low, x_high, x_low * 0.02), y)?;
            paint_front(chart, inputs, phase, &points, metric)
        }
    })?;
    let caption = format!("{caption}. Numbers are those of the table; the line joins rows that no other beats in both.");
    Ok(Some(Plot { stem: stem(phase, "front"), caption, svg }))
}

/// Digits behind the point that tell a tenth of an axis of this length, at least three.
fn decimals(length: f64) -> usize {
    (-(length / 10.0).log10()).ceil().clamp(3.0, 9.0) as usize
}

fn paint_front<'a, X>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    inputs: &Inputs,
    phase: &PhaseAdvice,
    points: &[Point<'_>],
    metric: &str,
) -> Result<(), Box<dyn std::error::Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let heights = chart.y_range();
    let digits = decimals(heights.end - heights.start);
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(FAINT.mix(0.25))
        .light_line_style(FAINT.mix(0.0))
        .label_style(font(13))
        .axis_desc_style(font(14))
        .x_desc(price_title(inputs, phase))
        .y_desc(metric)
        .x_label_formatter(&|v| three_figures(*v))
        .y_label_formatter(&|v| format!("{v:.digits$}"))
        .draw()?;
    let mut on_front: Vec<(f64, f64)> = points.iter().filter(|p| p.1.on_front).map(|p| (p.3, p.4)).collect();
    on_front.sort_by(|a, b| a.0.total_cmp(&b.0));
    chart.draw_series(LineSeries::new(on_front, INK.mix(0.5)))?;
    for (k, precision) in Precision::WORDS.iter().map(|w| w.value).enumerate() {
        let colour = COLOURS[k];
        let of: Vec<_> = points.iter().filter(|p| p.2 == precision).collect();
        if of.is_empty() {
            continue;
        }
        chart
            .draw_series(of.iter().map(|p| {
                let style = if p.1.status == RowStatus::Ok { colour.filled() } else { colour.stroke_width(1) };
                Circle::new((p.3, p.4), if p.1.recommended { 8 } else { 5 }, style)
            }))?
            .label(precision.name())
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
        let named = of.iter().filter(|p| p.1.on_front || p.1.recommended || points.len() <= 12);
        chart.draw_series(
            named.map(|p| EmptyElement::at((p.3, p.4)) + Text::new(format!("{}", p.0), (5, -4), font(13).pos(above_right()))),
        )?;
    }
    draw_legend(&mut chart, SeriesLabelPosition::LowerRight)
}

pub(super) fn above_right() -> plotters::style::text_anchor::Pos {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    // What is named are sides of the text: its left and lower ones lie at the point.
    Pos::new(HPos::Left, VPos::Bottom)
}

/// A chart whose rows are horizontal lines.
pub(super) type Lines<'a, X> =
    ChartContext<'a, SVGBackend<'a>, Cartesian2d<<X as AsRangedCoord>::CoordDescType, plotters::coord::types::RangedCoordf64>>;

/// What stands beside and below the rows of a figure.
pub(super) struct Frame<'a> {
    /// Of the rows, the first on top; row k of n lies at n - 1 - k.
    pub titles: &'a [String],
    /// Pixels.
    pub title_width: u32,
    pub x_title: &'a str,
    pub x_label: &'a dyn Fn(&f64) -> String,
}

/// Rows as horizontal lines: titles at the left, a drawing at the right.
pub(super) fn by_line<X: AsRangedCoord<Value = f64>>(
    plot: &'static str,
    height: u32,
    label: &str,
    x: X,
    frame: &Frame,
    paint: impl Fn(&mut Lines<X>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String, ReportError>
where
    X::CoordDescType: ValueFormatter<f64>,
{
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let count = frame.titles.len();
    draw(plot, height, label, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(frame.title_width)
            .build_cartesian_2d(x, -0.6..count as f64 - 0.4)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .axis_style(INK)
            .bold_line_style(FAINT.mix(0.25))
            .light_line_style(FAINT.mix(0.0))
            .label_style(font(13))
            .axis_desc_style(font(14))
            .x_desc(frame.x_title)
            .x_label_formatter(frame.x_label)
            .y_labels(0)
            .draw()?;
        // Labels are set by hand: the mesh would choose places between the rows.
        let (area_x, area_y) = chart.plotting_area().get_pixel_range();
        for (k, title) in frame.titles.iter().enumerate() {
            let share = ((count - 1 - k) as f64 + 0.6) / (count as f64 + 0.2);
            let y = f64::from(area_y.end) - share * f64::from(area_y.end - area_y.start);
            let style = font(13).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(title.clone(), (area_x.start - 8, y as i32), style))?;
        }
        paint(&mut chart)
    })
}

/// Rows of a run as horizontal lines, by number and title.
fn by_row<X: AsRangedCoord<Value = f64>>(
    plot: &'static str,
    label: &str,
    rows: &[(usize, &Row, &RunRecord)],
    x: X,
    x_title: &str,
    paint: impl Fn(&mut Lines<X>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String, ReportError>
where
    X::CoordDescType: ValueFormatter<f64>,
{
    let titles: Vec<String> = rows.iter().map(|(number, row, _)| format!("{}  {number}", row.title)).collect();
    let frame = Frame { titles: &titles, title_width: 250, x_title, x_label: &|v| three_figures(*v) };
    by_line(plot, 24 * rows.len() as u32 + 76, label, x, &frame, paint)
}

/// The rows of a figure with one line each: the recommended one and those with the best odds first, at most `MOST_ROWS`.
fn foremost<'a>(inputs: &Inputs<'a>, phase: &'a PhaseAdvice) -> Vec<(usize, &'a Row, &'a RunRecord)> {
    let mut rows = measured(inputs, phase);
    rows.retain(|(_, row, _)| row.throughput.is_some());
    rows.sort_by(|a, b| {
        b.1.throughput.map(|e| e.value).unwrap_or(0.0).total_cmp(&a.1.throughput.map(|e| e.value).unwrap_or(0.0))
    });
    if rows.len() > MOST_ROWS {
        // The pick and the baseline are shown even where they are slow.
        let must = |row: &Row, number: usize| row.recommended || phase.baseline == Some(number - 1);
        let (kept, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(number, row, _)| must(row, *number));
        let room = MOST_ROWS - kept.len();
        rows = kept.into_iter().chain(rest.into_iter().take(room)).collect();
        rows.sort_by(|a, b| {
            b.1.throughput.map(|e| e.value).unwrap_or(0.0).total_cmp(&a.1.throughput.map(|e| e.value).unwrap_or(0.0))
        });
    }
    rows
}

fn throughput(inputs: &Inputs, phase: &PhaseAdvice) -> Result<Option<Plot>, ReportError> {
    let rows = foremost(inputs, phase);
    if rows.is_empty() {
        return Ok(None);
    }
    let high = rows
        .iter()
        .filter_map(|(_, row, _)| row.throughput.map(|e| e.interval.map_or(e.value, |i| i.high.max(e.value))))
        .fold(0.0, f64::max);
    let units = words::units(&inputs.run.header);
    let caption = format!("{}: {units} a second with 95 % intervals", words::phase_title(phase.phase));
    let x_title = format!("{units} a second");
    let svg = by_row("figure of throughput", &caption, &rows, 0.0..high * 1.05, &x_title, |chart| {
        for (k, (_, row, record)) in rows.iter().enumerate() {
            let y = (rows.len() - 1 - k) as f64;
            let Some(speed) = row.throughput else { continue };
            let colour = COLOURS[Precision::WORDS.iter().position(|w| w.value == record.candidate.precision).unwrap_or(0)];
            let strength = if row.recommended { 1.0 } else { 0.55 };
            chart.draw_series([Rectangle::new([(0.0, y - 0.3), (speed.value, y + 0.3)], colour.mix(strength).filled())])?;
            if let Some(interval) = speed.interval {
                chart.draw_series([PathElement::new(vec![(interval.low, y), (interval.high, y)], INK.stroke_width(2))])?;
                for end in [interval.low, interval.high] {
                    chart.draw_series([PathElement::new(vec![(end, y - 0.2), (end, y + 0.2)], INK.stroke_width(1))])?;
                }
            }
        }
        Ok(())
    })?;
    let shown = measured(inputs, phase).len();
    let caption = if shown > rows.len() { format!("{caption}, the fastest {} of {shown} rows", rows.len()) } else { caption };
    let shown = |k: usize| rows.iter().any(|(_, _, record)| record.candidate.precision == Precision::WORDS[k].value);
    let colours: Vec<String> = (0..Precision::WORDS.len())
        .filter(|k| shown(*k))
        .map(|k| format!("{} {}", COLOUR_NAMES[k], Precision::WORDS[k].name))
        .collect();
    let mut colours = colours.join(", ");
    colours[..1].make_ascii_uppercase();
    let caption = format!("{caption}. {colours}; the recommended row is drawn full.");
    Ok(Some(Plot { stem: stem(phase, "throughput"), caption, svg }))
}

/// In the order of `TimeSplit::parts`.
const PARTS: [&str; 7] =
    ["compute-bound ops", "memory-bound ops", "communication", "waiting for other ranks", "launches", "data", "host"];

fn time_split(inputs: &Inputs, phase: &PhaseAdvice) -> Result<Option<Plot>, ReportError> {
    let mut rows = foremost(inputs, phase);
    rows.retain(|(_, _, record)| record.time_split.is_some());
    if rows.is_empty() {
        return Ok(None);
    }
    let caption = format!("{}: where the time of a step goes", words::phase_title(phase.phase));
    let svg = by_row("figure of the time split", &caption, &rows, 0.0..100.0, "percent of a step", |chart| {
        for (part, colour) in COLOURS.iter().enumerate().take(PARTS.len()) {
            let mut bars = Vec::new();
            for (k, (_, _, record)) in rows.iter().enumerate() {
                let y = (rows.len() - 1 - k) as f64;
                let split = record.time_split.clone().unwrap_or_default();
                let parts = split.parts().map(|(_, time)| time.map_or(0.0, |time| time.0));
                let whole: f64 = parts.iter().sum();
                if whole <= 0.0 {
                    continue;
                }
                let from: f64 = parts[..part].iter().sum::<f64>() / whole * 100.0;
                let to = from + parts[part] / whole * 100.0;
                bars.push(Rectangle::new([(from, y - 0.32), (to, y + 0.32)], colour.filled()));
            }
            chart.draw_series(bars)?;
        }
        Ok(())
    })?;
    let key = PARTS.iter().zip(COLOUR_NAMES).map(|(part, colour)| format!("{colour} {part}")).collect::<Vec<_>>().join(", ");
    let apart = rows.iter().filter(|(_, _, record)| {
        record.time_split.as_ref().and_then(TimeSplit::excess).is_some_and(|excess| excess.abs() > TimeSplit::TOLERANCE)
    });
    let caption = match apart.count() {
        0 => format!("{caption}: {key}."),
        1 => format!("{caption}: {key}. Of one row the parts do not add up to its step within 5 %; its remark says by how much."),
        some => format!(
            "{caption}: {key}. Of {some} rows the parts do not add up to their step within 5 %; their remarks say by how much."
        ),
    };
    Ok(Some(Plot { stem: stem(phase, "time-split"), caption, svg }))
}

/// Names of the first of `COLOURS`, for captions.
pub(super) const COLOUR_NAMES: [&str; 7] = ["blue", "orange", "green", "pink", "light blue", "red", "grey"];

/// Training loss of the first seed of a few candidates: the baseline, the pick, and those that were fastest to their target.
fn learning(inputs: &Inputs, phase: &PhaseAdvice) -> Result<Option<Plot>, ReportError> {
    let mut rows = measured(inputs, phase);
    rows.retain(|(_, _, record)| record.training.as_ref().is_some_and(|t| t.seeds.iter().any(|s| s.loss_curve.len() > 1)));
    rows.sort_by(|a, b| {
        let key = |(number, row, _): &(usize, &Row, &RunRecord)| (!row.recommended, phase.baseline != Some(number - 1));
        let time = |row: &Row| row.time_to_target.map_or(f64::INFINITY, |s| s.0);
        key(a).cmp(&key(b)).then(time(a.1).total_cmp(&time(b.1)))
    });
    rows.truncate(MOST_CURVES);
    if rows.is_empty() {
        return Ok(None);
    }
    // Loss against the share of the run: candidates of different batch sizes take different numbers of steps.
    let curves: Vec<(String, Vec<(f64, f64)>)> = rows
        .iter()
        .filter_map(|(number, row, record)| {
            let seed = record.training.as_ref()?.seeds.iter().find(|s| s.loss_curve.len() > 1)?;
            let last = seed.loss_curve.last()?.0.max(1) as f64;
            let epochs = seed.epochs.len().max(1) as f64;
            let points = smoothed(&seed.loss_curve).into_iter().map(|(step, loss)| (step / last * epochs, loss)).collect();
            Some((format!("{number}  {}", row.title), points))
        })
        .collect();
    let all = || curves.iter().flat_map(|(_, points)| points.iter());
    let x_high = all().map(|p| p.0).fold(0.0, f64::max);
    let y_high = all().map(|p| p.1).fold(0.0, f64::max);
    let y_low = all().map(|p| p.1).fold(f64::INFINITY, f64::min).max(1e-6);
    if !(x_high > 0.0 && y_high > y_low) {
        return Ok(None);
    }
    let caption = format!("{}: loss of the first seed over the epochs", words::phase_title(phase.phase));
    let y = (y_low * 0.8..y_high * 1.2).log_scale();
    let names = ["epoch", "training loss"];
    let svg = lines("figure of the loss", &caption, 0.0..x_high, y, names, &curves, SeriesLabelPosition::UpperRight)?;
    let caption = format!("{caption}; means over up to 15 neighbouring points of the stored curve.");
    Ok(Some(Plot { stem: stem(phase, "loss"), caption, svg }))
}

/// Running mean over 15 points, so that curves of small batches can be read.
fn smoothed(curve: &[(u64, f64)]) -> Vec<(f64, f64)> {
    let reach = 7.min(curve.len() / 20);
    (0..curve.len())
        .map(|k| {
            let window = &curve[k.saturating_sub(reach)..(k + reach + 1).min(curve.len())];
            (curve[k].0 as f64, window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64)
        })
        .collect()
}

/// Named curves over a common axis.
fn lines<Y: AsRangedCoord<Value = f64>>(
    plot: &'static str,
    label: &str,
    x: std::ops::Range<f64>,
    y: Y,
    [x_name, y_name]: [&str; 2],
    curves: &[(String, Vec<(f64, f64)>)],
    legend: SeriesLabelPosition,
) -> Result<String, ReportError>
where
    Y::CoordDescType: ValueFormatter<f64>,
{
    draw(plot, 400, label, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(46)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(FAINT.mix(0.25))
            .light_line_style(FAINT.mix(0.0))
            .label_style(font(13))
            .axis_desc_style(font(14))
            .x_desc(x_name)
            .y_desc(y_name)
            .x_label_formatter(&|v| three_figures(*v))
            .y_label_formatter(&|v| three_figures(*v))
            .draw()?;
        for (k, (name, points)) in curves.iter().enumerate() {
            let colour = COLOURS[k % COLOURS.len()];
            // Beyond the palette the line is thin: the legend's order tells which is which.
            let width = if k < COLOURS.len() { 2 } else { 1 };
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(width)))?
                .label(name.clone())
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(width + 1)));
        }
        draw_legend(&mut chart, legend)
    })
}

/// Kernels `(family, FLOP/byte, FLOP/s)` under the roof of their device: bytes/s and FLOP/s that it reached.
pub(super) fn roofline(points: &[(String, f64, f64)], roof: Option<(f64, f64)>) -> Result<Option<Plot>, ReportError> {
    if points.is_empty() {
        return Ok(None);
    }
    let bound = |of: &dyn Fn(&(String, f64, f64)) -> f64| {
        let all = points.iter().map(of).filter(|v| *v > 0.0);
        all.fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((x_low, x_high), (y_low, y_high)) = (bound(&|p| p.1), bound(&|p| p.2));
    let (x_low, x_high) = (x_low / 2.0, x_high * 2.0);
    let y_high = roof.map_or(y_high, |(_, flops)| y_high.max(flops)) * 2.0;
    let caption = "Kernels by arithmetic intensity and rate; the line is the roof that the same device reached".to_string();
    let svg = draw("figure of the kernels", 420, &caption, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(46)
            .y_label_area_size(64)
            .build_cartesian_2d((x_low..x_high).log_scale(), (y_low / 2.0..y_high).log_scale())?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(FAINT.mix(0.25))
            .light_line_style(FAINT.mix(0.0))
            .label_style(font(13))
            .axis_desc_style(font(14))
            .x_desc("FLOP per byte")
            .y_desc("GFLOP/s")
            .x_label_formatter(&|v| three_figures(*v))
            .y_label_formatter(&|v| three_figures(*v / 1e9))
            .draw()?;
        if let Some((bytes, flops)) = roof {
            let knee = (flops / bytes).clamp(x_low, x_high);
            let line =
                [(x_low, (x_low * bytes).min(flops)), (knee, (knee * bytes).min(flops)), (x_high, (x_high * bytes).min(flops))];
            chart.draw_series(LineSeries::new(line, INK.stroke_width(1)))?;
        }
        let mut families: Vec<&str> = points.iter().map(|point| point.0.as_str()).collect();
        families.sort_unstable();
        families.dedup();
        for (k, family) in families.iter().enumerate() {
            let colour = COLOURS[k % COLOURS.len()];
            let of_family = points.iter().filter(|point| point.0 == *family);
            chart
                .draw_series(of_family.map(|point| Circle::new((point.1, point.2), 4, colour.filled())))?
                .label(family.to_string())
                .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        }
        draw_legend(&mut chart, SeriesLabelPosition::LowerRight)
    })?;
    Ok(Some(Plot { stem: "kernels".into(), caption, svg }))
}

/// One-vs-rest ROC curves of the recommended row.
fn roc(inputs: &Inputs, phase: &PhaseAdvice) -> Result<Option<Plot>, ReportError> {
    let Outcome::Pick(pick) = &phase.outcome else { return Ok(None) };
    let record = &inputs.run.records[phase.rows[pick.row].record];
    let Some(quality) = record.quality.as_ref().filter(|q| !q.roc.is_empty()) else { return Ok(None) };
    let caption = format!("{}: ROC of each class of the recommended row, one against the rest", words::phase_title(phase.phase));
    let classes = &inputs.run.header.classes;
    let most = quality.roc.len().min(12);
    // Good classifiers live in the corner: the false positive rate is cut where all curves have come up to 99 %.
    let reach = |curve: &crate::record::RocCurve| {
        let at = curve.true_positive_rate.iter().position(|t| *t >= 0.99).unwrap_or(curve.true_positive_rate.len() - 1);
        curve.false_positive_rate[at]
    };
    let x_high = quality.roc.iter().map(reach).fold(0.02, f64::max).min(1.0);
    let curves: Vec<(String, Vec<(f64, f64)>)> = quality
        .roc
        .iter()
        .take(most)
        .map(|curve| {
            let pairs = curve.false_positive_rate.iter().copied().zip(curve.true_positive_rate.iter().copied());
            let name = classes.get(curve.class as usize).cloned().unwrap_or_else(|| curve.class.to_string());
            let area = quality.per_class.get(curve.class as usize).and_then(|c| c.roc_auc);
            (area.map_or(name.clone(), |auc| format!("{name}  {auc:.4}")), pairs.take_while(|p| p.0 <= x_high).collect())
        })
        .collect();
    let names = ["false positive rate", "true positive rate"];
    let svg =
        lines("figure of the ROC curves", &caption, 0.0..x_high, 0.0..1.0, names, &curves, SeriesLabelPosition::LowerRight)?;
    let caption = format!("{caption}; the number behind a class is its area under the curve.");
    Ok(Some(Plot { stem: stem(phase, "roc"), caption, svg }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_labels_of_an_axis_differ() {
        assert_eq!([1.0, 0.1, 0.011, 0.003, 0.0002].map(decimals), [3, 3, 3, 4, 5]);
    }
}
