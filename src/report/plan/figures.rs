//! The figures of a plan: time against cost, memory and time of a step part by part, and what the answer hangs on.

use super::{
    super::{
        Plot, ReportError,
        plots::{COLOUR_NAMES, COLOURS, FAINT, Frame, INK, above_right, by_line, draw, draw_legend, font},
    },
    PlanInputs, terminal, words,
};
use crate::{
    predict::{Market, Row, Swing, thousands},
    units::{Usd, three_figures},
};
use plotters::{coord::ranged1d::ValueFormatter, prelude::*};

/// Most rows in a figure with one bar a row.
const MOST_BARS: usize = 16;

/// How many times the longest bar a limit may lie from zero and still be drawn.
const FAR: f64 = 20.0;

/// All figures; one without anything to show is left out.
pub(super) fn figures(inputs: &PlanInputs) -> Result<Vec<Plot>, ReportError> {
    let most = inputs.answer.rows.iter().map(Row::memory_bytes).fold(0.0, f64::max);
    let (unit, name) = if most < f64::from(1 << 30) { (1 << 20, "MiB") } else { (1 << 30, "GiB") };
    let whose = if words::is_here(inputs.plan) { "of the program" } else { "of the fullest GPU" };
    let memory = bars(inputs, "memory", &format!("memory {whose}, {name}"), |_| f64::from(unit), |row| &row.memory)?;
    let percent = |row: &Row| row.time_parts.iter().map(|(_, seconds)| seconds).sum::<f64>() / 100.0;
    let time = bars(inputs, "time-split", "percent of a step", percent, |row| &row.time_parts)?;
    Ok([front(inputs)?, swings(inputs)?, memory, time].into_iter().flatten().collect())
}

/// Places of rows in the table of the page: from 1.
fn number(at: usize) -> usize {
    at + 1
}

fn front(inputs: &PlanInputs) -> Result<Option<Plot>, ReportError> {
    let rows = &inputs.answer.rows;
    let mut points: Vec<(usize, &Row, f64, f64)> = rows
        .iter()
        .enumerate()
        .filter_map(|(at, row)| Some((at, row, words::time_value(inputs.plan, row), row.cost?.0)))
        .filter(|(.., time, cost)| *time > 0.0 && *cost > 0.0)
        .collect();
    if points.len() < 2 {
        return Ok(None);
    }
    let ends = |values: &mut dyn Iterator<Item = f64>| values.fold((f64::INFINITY, 0f64), |(l, h), v| (l.min(v), h.max(v)));
    let (mut x_low, mut x_high) = ends(&mut points.iter().map(|p| p.2));
    let mut title = words::time_title(inputs.plan).to_string();
    if let Some(of_what) = title.strip_prefix("milliseconds").filter(|_| x_high < 1.0) {
        title = format!("microseconds{of_what}");
        points.iter_mut().for_each(|p| p.2 *= 1e3);
        (x_low, x_high) = (1e3 * x_low, 1e3 * x_high);
    }
    let (y_low, y_high) = ends(&mut points.iter().map(|p| p.3));
    let caption = format!("Time against cost: {title} and {}", words::cost_title(inputs.plan));
    let svg = draw("figure of time against cost", 440, &caption, |area| {
        let mut chart = ChartBuilder::on(area);
        chart.margin(10).margin_right(24).x_label_area_size(46).y_label_area_size(96);
        let times = (x_low * 0.85..x_high * 1.2).log_scale().base(2.0);
        // Beyond a factor of ten a straight axis would pile the cheap ones up; up to a hundred, powers of ten would be too few marks.
        if y_high > 10.0 * y_low {
            let base = if y_high > 100.0 * y_low { 10.0 } else { 2.0 };
            let chart = chart.build_cartesian_2d(times, (y_low * 0.85..y_high * 1.2).log_scale().base(base))?;
            paint_front(chart, inputs, &title, &points)
        } else {
            let room = ((y_high - y_low) * 0.08).max(y_low * 0.02);
            let chart = chart.build_cartesian_2d(times, (y_low - room).max(0.0)..y_high + room)?;
            paint_front(chart, inputs, &title, &points)
        }
    })?;
    let numbers = if words::is_here(inputs.plan) { "batch sizes" } else { "GPUs" };
    let caption = format!(
        "{caption}. Numbers are {numbers}; the line joins rows that no other beats in both; hollow ones break a limit; \
         the large one is the answer."
    );
    Ok(Some(Plot { stem: "front".into(), caption, svg }))
}

fn paint_front<'a, X, Y>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    inputs: &PlanInputs,
    time_title: &str,
    points: &[(usize, &Row, f64, f64)],
) -> Result<(), Box<dyn std::error::Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(FAINT.mix(0.25))
        .light_line_style(FAINT.mix(0.0))
        .label_style(font(13))
        .axis_desc_style(font(14))
        .x_desc(time_title)
        .y_desc(words::cost_title(inputs.plan))
        .x_labels(12)
        .y_labels(7)
        .x_label_formatter(&|v| plain_number(*v))
        .y_label_formatter(&|v| words::money(Usd(*v)))
        .draw()?;
    let mut line: Vec<(f64, f64)> = points.iter().filter(|p| p.1.on_front).map(|p| (p.2, p.3)).collect();
    line.sort_by(|a, b| a.0.total_cmp(&b.0));
    chart.draw_series(LineSeries::new(line, INK.mix(0.5)))?;
    // One colour a kind of machine and market.
    let mut kinds: Vec<(usize, Market)> = points.iter().map(|p| (p.1.machine, p.1.market)).collect();
    kinds.sort();
    kinds.dedup();
    for (k, kind) in kinds.iter().enumerate() {
        let colour = COLOURS[k % COLOURS.len()];
        let of: Vec<_> = points.iter().filter(|p| (p.1.machine, p.1.market) == *kind).collect();
        let Some(first) = of.first() else { continue };
        let market = if kind.1 == Market::Spot { " (spot)" } else { "" };
        chart
            .draw_series(of.iter().map(|p| {
                let style = if p.1.breaches.is_empty() { colour.filled() } else { colour.stroke_width(1) };
                Circle::new((p.2, p.3), if inputs.answer.pick == Some(p.0) { 8 } else { 4 }, style)
            }))?
            .label(format!("{}{market}", first.1.gpu))
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
    }
    let mut named: Vec<_> = points.iter().filter(|p| p.1.on_front || inputs.answer.pick == Some(p.0)).collect();
    // Names that would lie on each other are left out: the table has them all.
    named.sort_by_key(|p| (inputs.answer.pick != Some(p.0), p.1.gpus));
    let mut taken: Vec<(i32, i32)> = Vec::new();
    named.retain(|p| {
        let at = chart.plotting_area().map_coordinate(&(p.2, p.3));
        let is_free = taken.iter().all(|(x, y)| (at.0 - x).abs() > 52 || (at.1 - y).abs() > 15);
        if is_free {
            taken.push(at);
        }
        is_free
    });
    let label = |row: &Row| if words::is_here(inputs.plan) { row.layout.batch } else { row.gpus };
    // Beside the point, not on it.
    chart.draw_series(named.iter().map(|p| {
        let beside = if inputs.answer.pick == Some(p.0) { (9, -7) } else { (5, -4) };
        EmptyElement::at((p.2, p.3)) + Text::new(thousands(label(p.1)), beside, font(12).pos(above_right()))
    }))?;
    // Where fewest points are: the faster the dearer on machines that are rented, the cheaper on the one at hand.
    let corner = match words::is_here(inputs.plan) {
        true => SeriesLabelPosition::LowerRight,
        false => SeriesLabelPosition::UpperRight,
    };
    draw_legend(&mut chart, corner)
}

/// `4`, `0.5`, `128`: powers of two need no zeros behind the point.
fn plain_number(value: f64) -> String {
    let text = three_figures(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// Rows as stacked bars: the foremost rows, part by part.
fn bars(
    inputs: &PlanInputs,
    stem: &str,
    title: &str,
    unit: impl Fn(&Row) -> f64,
    parts_of: impl for<'r> Fn(&'r Row) -> &'r [(&'static str, f64)],
) -> Result<Option<Plot>, ReportError> {
    // On the machine at hand there is one kind of machine, and time is money: candidates are what is chosen among.
    let mut rows = match words::is_here(inputs.plan) {
        true => inputs.answer.rows.iter().enumerate().collect(),
        false => terminal::foremost(inputs),
    };
    rows.retain(|(_, row)| parts_of(row).iter().any(|(_, value)| *value > 0.0));
    rows.truncate(MOST_BARS);
    if rows.is_empty() {
        return Ok(None);
    }
    // Parts by their order in the rows; those beyond the colours are one.
    let mut names: Vec<&'static str> = Vec::new();
    for (_, row) in &rows {
        for (name, value) in parts_of(row) {
            if *value > 0.0 && !names.contains(name) {
                names.push(name);
            }
        }
    }
    let whole = |row: &Row| parts_of(row).iter().map(|(_, value)| value).sum::<f64>() / unit(row);
    // A limit that lies far beyond every bar would make them all a line.
    let most = rows.iter().map(|(_, row)| whole(row)).fold(0.0, f64::max);
    let is_near = |limit: f64| limit <= FAR * most;
    let limit = |row: &Row| {
        let limit = row.memory_limit / unit(row);
        if stem == "memory" && is_near(limit) { limit } else { 0.0 }
    };
    let high = rows.iter().map(|(_, row)| whole(row).max(limit(row))).fold(0.0, f64::max);
    let count = rows.len();
    let caption = format!("Where it goes: {title}");
    let named = |row: &Row| if words::is_here(inputs.plan) { row.layout.title() } else { row.place() };
    let titles: Vec<String> = rows.iter().map(|(at, row)| format!("#{} {}", number(*at), named(row))).collect();
    let frame = Frame { titles: &titles, title_width: 230, x_title: title, x_label: &|v| three_figures(*v) };
    let svg = by_line("figure of parts", 24 * count as u32 + 76, &caption, 0.0..high * 1.04, &frame, |chart| {
        for (k, (_, row)) in rows.iter().enumerate() {
            let y = (count - 1 - k) as f64;
            let mut from = 0.0;
            for (name, value) in parts_of(row) {
                let Some(place) = names.iter().position(|other| other == name) else { continue };
                let colour = COLOURS[place.min(COLOURS.len() - 1)];
                let to = from + value / unit(row);
                chart.draw_series([Rectangle::new([(from, y - 0.32), (to, y + 0.32)], colour.filled())])?;
                from = to;
            }
            if limit(row) > 0.0 {
                let mark = vec![(limit(row), y - 0.42), (limit(row), y + 0.42)];
                chart.draw_series([PathElement::new(mark, INK.stroke_width(2))])?;
            }
        }
        Ok(())
    })?;
    let last = COLOURS.len() - 1;
    let mut key: Vec<String> =
        names.iter().zip(COLOUR_NAMES).take(last).map(|(name, colour)| format!("{colour} {name}")).collect();
    if names.len() > last {
        key.push(format!("{} {}", COLOUR_NAMES[last], names[last..].join(" and ")));
    }
    let limits = match (stem == "memory", rows.iter().any(|(_, row)| limit(row) > 0.0)) {
        (false, _) => "",
        (true, true) => " The line is what may be used.",
        (true, false) => " What may be used lies far beyond.",
    };
    Ok(Some(Plot { stem: stem.into(), caption: format!("{caption}: {}.{limits}", key.join(", ")), svg }))
}

/// A tornado: the objective at either end of each assumption.
fn swings(inputs: &PlanInputs) -> Result<Option<Plot>, ReportError> {
    let answer = inputs.answer;
    let Some(base) = answer.pick.and_then(|at| answer.rows[at].objective(inputs.plan.objective)).filter(|base| *base > 0.0)
    else {
        return Ok(None);
    };
    if answer.swings.is_empty() {
        return Ok(None);
    }
    let change = |objective: Option<f64>| objective.map(|value| 100.0 * (value / base - 1.0));
    let all: Vec<f64> = answer.swings.iter().flat_map(|swing| &swing.ends).filter_map(|end| change(end.objective)).collect();
    let (low, high) = all.iter().fold((0f64, 0f64), |(low, high), value| (low.min(*value), high.max(*value)));
    let room = ((high - low) * 0.06).max(0.5);
    let count = answer.swings.len();
    let caption = format!("What the answer hangs on: change of the {} in percent", words::objective(inputs.plan));
    let title = |swing: &Swing| format!("{} ({}, {})", swing.assumption, swing.ends[0].change, swing.ends[1].change);
    let titles: Vec<String> = answer.swings.iter().map(title).collect();
    let frame =
        Frame { titles: &titles, title_width: 320, x_title: "change of the answer, percent", x_label: &|v| format!("{v:+.0}") };
    let svg = by_line("figure of assumptions", 26 * count as u32 + 76, &caption, low - room..high + room, &frame, |chart| {
        chart.draw_series([PathElement::new(vec![(0.0, -0.6), (0.0, count as f64 - 0.4)], INK.stroke_width(1))])?;
        for (k, swing) in answer.swings.iter().enumerate() {
            let y = (count - 1 - k) as f64;
            for (end, colour) in swing.ends.iter().zip([COLOURS[0], COLOURS[1]]) {
                let Some(to) = change(end.objective) else { continue };
                let strength = if end.other_pick.is_some() { 0.5 } else { 1.0 };
                chart.draw_series([Rectangle::new([(0.0, y - 0.3), (to, y + 0.3)], colour.mix(strength).filled())])?;
            }
        }
        Ok(())
    })?;
    let caption = format!(
        "{caption}; blue with the first change, orange with the second, paler where another layout or machine is then the answer. Each is put in \
         alone, and the search is made again."
    );
    Ok(Some(Plot { stem: "sensitivity".into(), caption, svg }))
}
