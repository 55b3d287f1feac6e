//! The answer of a plan on a terminal: the pick and why, the front, what the answer hangs on.

use super::{
    super::terminal::{COLOUR, PLAIN, Style, wrap},
    PlanInputs, words,
};
use crate::{
    predict::{Row, WorkFigures},
    units::three_figures,
};

/// Rows shown; the rest is in the report.
const MOST_ROWS: usize = 12;
/// Assumptions shown.
const MOST_SWINGS: usize = 5;

/// The answer for `width` columns (at least 40 are used).
pub fn plan_terminal(inputs: &PlanInputs, width: usize, colour: bool) -> String {
    let (style, width) = (if colour { COLOUR } else { PLAIN }, width.max(40));
    let (plan, answer) = (inputs.plan, inputs.answer);
    let mut lines = wrap(&format!("{}{}{}: {}", style.bold, plan.name, style.off, plan.question), width, 0);
    lines.push(String::new());
    match answer.pick {
        Some(at) => {
            let row = &answer.rows[at];
            let title = format!("{}{}{}, for the {}", style.good, row.title(), style.off, words::objective(plan));
            lines.extend(wrap(&title, width, 0));
            let figures: Vec<String> =
                words::figures(inputs, row).iter().map(|(name, value)| format!("{name} {value}")).collect();
            lines.extend(wrap(&figures.join("; "), width, 2));
            for reason in words::reasons(inputs, row) {
                lines.extend(wrap(&format!("- {reason}"), width, 2));
            }
        }
        None => {
            let (title, reasons) = words::no_pick(answer);
            lines.push(format!("{}{title}{}", style.bad, style.off));
            for reason in reasons {
                lines.extend(wrap(&format!("- {reason}"), width, 2));
            }
        }
    }
    lines.push(String::new());
    lines.extend(table(inputs, &style, width));
    lines.extend(swings(inputs, &style, width));
    for note in &answer.notes {
        lines.extend(wrap(&format!("note: {note}"), width, 0));
    }
    lines.join("\n") + "\n"
}

type TableColumn = (&'static str, fn(&Row) -> String);

/// Columns from the most to the least needed; as many as the width takes.
const COLUMNS: &[TableColumn] = &[
    ("time", |r| words::long_time(r.time)),
    ("cost", |r| r.cost.map_or("?".into(), words::money)),
    ("MFU", |r| match &r.work {
        WorkFigures::Train(train) => train.mfu.map_or("?".into(), |mfu| format!("{:.0} %", 100.0 * mfu)),
        WorkFigures::Serve(_) | WorkFigures::Graph(_) => String::new(),
    }),
    ("a step", |r| match &r.work {
        WorkFigures::Graph(graph) => graph.step.to_string(),
        WorkFigures::Train(_) | WorkFigures::Serve(_) => String::new(),
    }),
    ("examples/s", |r| match &r.work {
        WorkFigures::Graph(_) => three_figures(r.tokens_per_s),
        WorkFigures::Train(_) | WorkFigures::Serve(_) => String::new(),
    }),
    ("first token", |r| match &r.work {
        WorkFigures::Serve(serve) => serve.first_token.to_string(),
        WorkFigures::Train(_) | WorkFigures::Graph(_) => String::new(),
    }),
    ("per token", |r| match &r.work {
        WorkFigures::Serve(serve) => serve.per_token.to_string(),
        WorkFigures::Train(_) | WorkFigures::Graph(_) => String::new(),
    }),
    ("error", |r| words::trust_short(&r.trust)),
    ("GiB a GPU", |r| three_figures(r.memory_bytes() / f64::from(1 << 30))),
    ("energy", |r| r.energy.map_or("?".into(), words::energy)),
];

/// The pick, the front and the best of each kind of machine: what a reader chooses from.
pub(super) fn foremost<'a>(inputs: &PlanInputs<'a>) -> Vec<(usize, &'a Row)> {
    let rows = &inputs.answer.rows;
    let is_first =
        |at: usize| rows[..at].iter().all(|other| (other.machine, other.market) != (rows[at].machine, rows[at].market));
    let chosen = |at: usize| inputs.answer.pick == Some(at) || rows[at].on_front || is_first(at);
    rows.iter().enumerate().filter(|(at, _)| chosen(*at)).collect()
}

fn table(inputs: &PlanInputs, style: &Style, width: usize) -> Vec<String> {
    let mut rows = foremost(inputs);
    let hidden = inputs.answer.rows.len() - rows.len().min(MOST_ROWS);
    rows.truncate(MOST_ROWS);
    if rows.is_empty() {
        return Vec::new();
    }
    let title = |row: &Row| row.place();
    let title_width = rows.iter().map(|(_, row)| title(row).chars().count()).max().unwrap_or(0).max(8);
    let filled = COLUMNS.iter().filter(|(_, show)| rows.iter().any(|(_, row)| !show(row).is_empty()));
    let mut used = 2 + title_width;
    let mut shown: Vec<(&TableColumn, usize)> = Vec::new();
    for column in filled {
        let widest = rows.iter().map(|(_, row)| (column.1)(row).chars().count()).max().unwrap_or(0);
        let needed = widest.max(column.0.chars().count());
        if used + 2 + needed > width {
            break;
        }
        used += 2 + needed;
        shown.push((column, needed));
    }
    let has_room = |row: &Row| used + 2 + row.layout.title().chars().count() <= width;
    let with_layouts = rows.iter().all(|(_, row)| has_room(row));
    let headings: String = shown.iter().map(|((heading, _), needed)| format!("  {heading:>needed$}")).collect();
    let layout = if with_layouts { "  layout" } else { "" };
    let mut out = vec![format!("{}  {:title_width$}{headings}{layout}{}", style.dim, "machines", style.off)];
    for (at, row) in &rows {
        let cells: String = shown.iter().map(|((_, show), needed)| format!("  {:>needed$}", show(row))).collect();
        let is_pick = inputs.answer.pick == Some(*at);
        let mark = match (is_pick, row.breaches.is_empty(), row.on_front) {
            (true, ..) => "*",
            (_, false, _) => "x",
            (_, _, true) => "+",
            _ => " ",
        };
        let (tint, off) = if is_pick { (style.good, style.off) } else { ("", "") };
        let layout = if with_layouts { format!("  {}", row.layout.title()) } else { String::new() };
        out.push(format!("{tint}{mark} {:title_width$}{cells}{layout}{off}", title(row)));
    }
    let mut legend = vec!["+ no other is faster and cheaper"];
    if rows.iter().any(|(_, row)| !row.breaches.is_empty()) {
        legend.push("x breaks a limit");
    }
    if rows.iter().any(|(_, row)| row.cost.is_none()) {
        legend.push("? unknown");
    }
    out.push(format!("{}  {}{}", style.dim, legend.join("; "), style.off));
    if hidden > 0 {
        out.push(format!("{}  {hidden} more in the report{}", style.dim, style.off));
    }
    out
}

/// What the answer hangs on, by itself; empty where nothing moves it.
pub fn sensitivity_terminal(inputs: &PlanInputs, width: usize, colour: bool) -> String {
    swings(inputs, if colour { &COLOUR } else { &PLAIN }, width.max(40)).join("\n")
}

fn swings(inputs: &PlanInputs, style: &Style, width: usize) -> Vec<String> {
    if inputs.answer.swings.is_empty() {
        return Vec::new();
    }
    let mut out = vec![String::new(), format!("{}what the answer hangs on{}", style.bold, style.off)];
    for swing in inputs.answer.swings.iter().take(MOST_SWINGS) {
        let ends: Vec<String> = swing
            .ends
            .iter()
            .map(|end| {
                let value = end.objective.map_or("no answer".to_string(), |value| words::objective_value(inputs.plan, value));
                let other = end.other_pick.as_ref().map(|pick| format!(", and the pick is {pick}")).unwrap_or_default();
                format!("{}: {value}{other}", end.change)
            })
            .collect();
        out.extend(wrap(&format!("- {}: {}", swing.assumption, ends.join("; ")), width, 2));
    }
    out
}
