//! The summary on a terminal: the answer, then the rows, within the width that is there.

use super::{Inputs, words};
use crate::{
    advise::{Outcome, PhaseAdvice, Row, RowStatus},
    units::three_figures,
};

/// Rows shown of a phase; the rest is in the report.
const MOST_ROWS: usize = 12;
/// Ties that are named.
const MOST_NAMED: usize = 6;

pub(super) struct Style {
    pub bold: &'static str,
    pub dim: &'static str,
    pub good: &'static str,
    pub bad: &'static str,
    pub off: &'static str,
}

pub(super) const COLOUR: Style = Style { bold: "\x1b[1m", dim: "\x1b[2m", good: "\x1b[32m", bad: "\x1b[31m", off: "\x1b[0m" };
pub(super) const PLAIN: Style = Style { bold: "", dim: "", good: "", bad: "", off: "" };

/// The summary of a run for `width` columns (at least 40 are used).
pub fn terminal(inputs: &Inputs, width: usize, colour: bool) -> String {
    let (style, width) = (if colour { COLOUR } else { PLAIN }, width.max(40));
    let header = &inputs.run.header;
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line(&format!("{}{}{}: {}", style.bold, header.scenario, style.off, header.question));
    for phase in &inputs.advice.phases {
        line("");
        for text in answer(inputs, phase, &style, width) {
            line(&text);
        }
        line("");
        for text in table(phase, &style, width) {
            line(&text);
        }
    }
    for warning in &inputs.run.warnings {
        for text in wrap(&format!("warning: {warning}"), width, 0) {
            line(&text);
        }
    }
    out
}

fn answer(inputs: &Inputs, phase: &PhaseAdvice, style: &Style, width: usize) -> Vec<String> {
    let title = words::phase_title(phase.phase);
    let mut out = Vec::new();
    let reasons = match &phase.outcome {
        Outcome::Pick(pick) => {
            let row = &phase.rows[pick.row];
            out.push(format!(
                "{title}: {}{}{} for the {} ({})",
                style.good,
                row.title,
                style.off,
                words::objective(inputs.advice.objective),
                words::odds(pick.probability_best)
            ));
            if !pick.ties.is_empty() {
                let mut names: Vec<String> = pick.ties.iter().map(|at| phase.rows[*at].title.clone()).collect();
                let unnamed = names.len().saturating_sub(MOST_NAMED);
                if unnamed > 1 {
                    names.truncate(MOST_NAMED);
                    names.push(format!("and {unnamed} more (see report.html)"));
                }
                out.extend(wrap(&format!("cannot be told apart from: {}", names.join("; ")), width, 2));
            }
            &pick.reasons
        }
        Outcome::Infeasible(none) => {
            out.push(format!(
                "{title}: {}nothing meets every limit{}; `{}` binds, nearest is {}",
                style.bad, style.off, none.binding, phase.rows[none.nearest].title
            ));
            &none.reasons
        }
        Outcome::Nothing => {
            out.push(format!("{title}: {}nothing was measured{}", style.bad, style.off));
            return out;
        }
    };
    for reason in reasons.iter().take(3) {
        out.extend(wrap(&format!("- {reason}"), width, 2));
    }
    out
}

/// Breaks at spaces; further lines are indented by `indent`.
pub(super) fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = vec![" ".repeat(indent)];
    for word in text.split_whitespace() {
        let current = lines.last_mut().expect("starts with one");
        let empty = current.trim().is_empty();
        if !empty && current.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{}{word}", " ".repeat(indent + 2)));
        } else {
            if !empty {
                current.push(' ');
            }
            current.push_str(word);
        }
    }
    lines
}

/// A column: its heading, and what a row shows in it.
type TableColumn = (&'static str, fn(&Row) -> String);

fn dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "?".into())
}

/// Columns from the most to the least needed; as many as the width takes.
const COLUMNS: &[TableColumn] = &[
    ("per second", |r| dash(r.throughput.map(|e| three_figures(e.value)))),
    ("predicted", |r| dash(r.predicted.map(|p| three_figures(p.rate.0)))),
    ("quality", |r| dash(r.primary.map(|e| words::share(e.value)))),
    ("$ per million", |r| dash(r.usd_per_million.map(|e| three_figures(e.value)))),
    ("speedup", |r| dash(r.speedup.map(|e| words::ratio(e.value)))),
    ("p50 ms", |r| dash(r.latency_p50.map(|s| three_figures(s.as_ms())))),
    ("p99 ms", |r| dash(r.latency_p99.map(|s| three_figures(s.as_ms())))),
    ("to target s", |r| dash(r.time_to_target.map(|s| three_figures(s.0)))),
    ("best with", |r| dash(r.probability_best.map(words::probability))),
];

fn table(phase: &PhaseAdvice, style: &Style, width: usize) -> Vec<String> {
    let objective = |row: &Row| row.usd_per_million.map_or(f64::INFINITY, |e| e.value);
    let measured = |row: &&Row| matches!(row.status, RowStatus::Ok | RowStatus::Infeasible);
    let mut rows: Vec<&Row> = phase.rows.iter().filter(measured).collect();
    // The pick first, then what could be picked, best odds first, then what breaks a limit.
    rows.sort_by(|a, b| {
        let key = |r: &Row| (!r.recommended, r.status != RowStatus::Ok);
        key(a)
            .cmp(&key(b))
            .then(b.probability_best.unwrap_or(0.0).total_cmp(&a.probability_best.unwrap_or(0.0)))
            .then(objective(a).total_cmp(&objective(b)))
    });
    let hidden = rows.len().saturating_sub(MOST_ROWS);
    rows.truncate(MOST_ROWS);
    // A column that no row of the phase fills is left out.
    let filled: Vec<&TableColumn> = COLUMNS.iter().filter(|(_, show)| rows.iter().any(|row| show(row) != "?")).collect();
    let title_width = rows.iter().map(|r| r.title.chars().count()).max().unwrap_or(0).clamp(9, 48);
    let width_of = |(heading, show): &TableColumn| {
        rows.iter().map(|row| show(row).chars().count()).max().unwrap_or(0).max(heading.chars().count())
    };
    let mut used = 2 + title_width;
    let mut shown: Vec<(&TableColumn, usize)> = Vec::new();
    for column in filled {
        let needed = width_of(column);
        if used + 2 + needed > width {
            break;
        }
        used += 2 + needed;
        shown.push((column, needed));
    }
    let cut = |text: &str| {
        let chars: Vec<char> = text.chars().collect();
        if chars.len() <= title_width { text.to_string() } else { chars[..title_width - 3].iter().collect::<String>() + "..." }
    };
    let mut out = Vec::new();
    if !rows.is_empty() {
        let headings: String = shown.iter().map(|((heading, _), needed)| format!("  {heading:>needed$}")).collect();
        out.push(format!("{}  {:title_width$}{headings}{}", style.dim, "candidate", style.off));
    }
    for row in &rows {
        let cells: String = shown.iter().map(|((_, show), needed)| format!("  {:>needed$}", show(row))).collect();
        let mark = if row.recommended {
            "*"
        } else if row.status == RowStatus::Infeasible {
            "x"
        } else {
            " "
        };
        let tint = if row.recommended { style.good } else { "" };
        let off = if row.recommended { style.off } else { "" };
        out.push(format!("{tint}{mark} {:title_width$}{cells}{off}", cut(&row.title)));
    }
    let mut rest = Vec::new();
    if hidden > 0 {
        rest.push(format!("{hidden} more measured"));
    }
    for (status, name) in [(RowStatus::Skipped, "skipped"), (RowStatus::Failed, "failed")] {
        let count = phase.rows.iter().filter(|r| r.status == status).count();
        if count > 0 {
            rest.push(format!("{count} {name}"));
        }
    }
    if !rest.is_empty() {
        out.push(format!("{}  {} (see report.html){}", style.dim, rest.join(", "), style.off));
    }
    if rows.iter().any(|r| r.status == RowStatus::Infeasible) {
        out.push(format!("{}  x breaks a limit; ? was not measured{}", style.dim, style.off));
    }
    if let Some(text) = words::predictions(phase) {
        out.extend(wrap(&text, width, 2));
    }
    for row in phase.rows.iter().filter(|r| r.status == RowStatus::Failed) {
        let reason = row.reason.as_deref().unwrap_or("no reason was given");
        out.extend(wrap(&format!("failed: {}: {reason}", row.title), width, 2));
    }
    out
}
