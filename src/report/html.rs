//! The report as one HTML file: the answer first, then how sure it is, then everything it rests on. Nothing is loaded from elsewhere.

use super::{Inputs, Plot, ReportError, csv, plots, words, words::escape};
use crate::{
    advise::{DropVerdict, Estimate, Outcome, PhaseAdvice, Row, RowStatus},
    record::{OpProfile, RunRecord},
    stats,
    units::{PerSecond, three_figures},
    vocab::{Phase, Vocabulary},
};
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// Writing to a string cannot fail; this keeps the lines below short.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(title)
    )
}

/// A sentence whose names stand between backticks.
fn prose(sentence: &str) -> String {
    let parts: Vec<&str> = sentence.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return escape(sentence);
    }
    let mark = |(k, part): (usize, &&str)| if k % 2 == 1 { format!("<code>{}</code>", escape(part)) } else { escape(part) };
    parts.iter().enumerate().map(mark).collect()
}

/// The report of one scenario.
pub fn html(inputs: &Inputs) -> Result<String, ReportError> {
    let (header, advice) = (&inputs.run.header, inputs.advice);
    let figures = plots(inputs)?;
    let mut out = String::new();
    put!(
        out,
        "<header>\n<p class=\"soft\">advisor report: {}</p>\n<h1>{}</h1>",
        escape(&header.scenario),
        escape(&header.question)
    );
    put!(
        out,
        "<p class=\"soft\">{} on {}, {} training and {} test {}; measured {} on {} ({} cores){}.</p>\n</header>",
        escape(&header.model),
        escape(&header.data),
        header.train_rows,
        header.test_rows,
        escape(&words::units(header)),
        words::date(header.started_unix_s),
        escape(&header.environment.cpu),
        header.environment.logical_cores,
        if header.quick { "; a quick run, with few short blocks: figures are rough" } else { "" }
    );
    if let Some(processes) = &header.environment.processes {
        let text = "Ranks of layouts were processes of a launch";
        let hosts = escape(&words::hosts(&processes.hosts));
        put!(out, "<p>{text}: {} over {} on {hosts}.</p>", processes.hosts.len(), escape(&processes.library));
    }
    if let Some(end) = inputs.run.end.as_ref().filter(|end| end.ended != "complete") {
        put!(out, "<p class=\"bad\">This run is not complete ({}): rows may be missing.</p>", escape(&end.ended));
    } else if inputs.run.end.is_none() {
        put!(out, "<p class=\"bad\">This run was cut off: rows may be missing.</p>");
    }
    for phase in &advice.phases {
        answer(&mut out, inputs, phase);
    }
    for phase in &advice.phases {
        put!(out, "<h2>{}: all candidates</h2>", words::phase_title(phase.phase));
        table(&mut out, inputs, phase);
        if let Some(text) = words::predictions(phase) {
            put!(out, "<p>{}</p>", escape(&text));
        }
        let of_phase = |plot: &&Plot| plot.stem.starts_with(phase.phase.name());
        for plot in figures.iter().filter(of_phase) {
            put!(out, "<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>", plot.svg, escape(&plot.caption));
        }
        remarks(&mut out, phase);
        not_run(&mut out, phase);
        details_of_pick(&mut out, inputs, phase);
    }
    unknowns(&mut out, inputs);
    provenance(&mut out, inputs);
    Ok(page(&format!("{} - advisor", header.scenario), &out))
}

fn figures(out: &mut String, row: &Row, inputs: &Inputs) {
    put!(out, "<div class=\"figures\">");
    for (name, value) in words::figures(row, &inputs.run.header) {
        put!(out, "<div><div class=\"name\">{}</div><div class=\"value\">{}</div></div>", escape(&name), escape(&value));
    }
    put!(out, "</div>");
}

pub(super) fn list(out: &mut String, sentences: &[String]) {
    if sentences.is_empty() {
        return;
    }
    put!(out, "<ul>");
    for sentence in sentences {
        put!(out, "<li>{}</li>", prose(sentence));
    }
    put!(out, "</ul>");
}

fn answer(out: &mut String, inputs: &Inputs, phase: &PhaseAdvice) {
    let title = words::phase_title(phase.phase);
    let wanted = words::objective(inputs.advice.objective);
    match &phase.outcome {
        Outcome::Pick(pick) => {
            let row = &phase.rows[pick.row];
            put!(out, "<section class=\"answer\">\n<div class=\"soft\">{title}: {wanted} within every limit</div>");
            put!(out, "<div class=\"pick\">{}</div>", escape(&row.title));
            figures(out, row, inputs);
            let regret = pick.expected_regret.filter(|regret| *regret >= 0.0005);
            let regret = regret
                .map(|regret| format!("; taking it costs {:.1} % on average against the best of each resample", 100.0 * regret));
            if let Some(probability) = pick.probability_best {
                put!(
                    out,
                    "<p>The best of its kind with probability <strong>{}</strong>{}.</p>",
                    words::probability(probability),
                    regret.unwrap_or_default()
                );
            } else {
                put!(
                    out,
                    "<p>Its odds of being the best of its kind are <strong>unknown</strong>: the reasons below say why.</p>"
                );
            }
            if !pick.ties.is_empty() {
                let names: Vec<String> = pick.ties.iter().map(|at| escape(&phase.rows[*at].title)).collect();
                put!(out, "<p>A tie, not told apart by this run: {}.</p>", names.join("; "));
            }
            list(out, &pick.reasons);
            if !pick.flips.is_empty() {
                put!(out, "<h3>What would change the answer</h3>");
                list(out, &pick.flips.iter().map(|f| f.text.clone()).collect::<Vec<_>>());
            }
            put!(out, "</section>");
        }
        Outcome::Infeasible(none) => {
            let row = &phase.rows[none.nearest];
            put!(out, "<section class=\"answer none\">\n<div class=\"soft\">{title}</div>");
            put!(out, "<div class=\"pick\">Nothing meets every limit: <code>{}</code> binds</div>", escape(&none.binding));
            put!(out, "<p>Nearest: {}</p>", escape(&row.title));
            figures(out, row, inputs);
            list(out, &none.reasons);
            put!(out, "</section>");
        }
        Outcome::Nothing => {
            put!(
                out,
                "<section class=\"answer none\">\n<div class=\"soft\">{title}</div>\n<div class=\"pick\">Nothing was measured</div>\n</section>"
            );
        }
    }
}

/// A cell with its interval below; `class` marks unknown ones.
fn cell(estimate: Option<Estimate>, print: impl Fn(f64) -> String) -> String {
    match estimate {
        None => format!("<td class=\"unknown\">{}</td>", words::UNKNOWN),
        Some(e) => {
            let interval = e.interval.map(|i| format!("<span class=\"ci\">{} to {}</span>", print(i.low), print(i.high)));
            format!("<td>{}{}</td>", print(e.value), interval.unwrap_or_default())
        }
    }
}

fn plain(text: Option<String>) -> String {
    match text {
        Some(text) => format!("<td>{}</td>", escape(&text)),
        None => format!("<td class=\"unknown\">{}</td>", words::UNKNOWN),
    }
}

fn table(out: &mut String, inputs: &Inputs, phase: &PhaseAdvice) {
    let header = &inputs.run.header;
    let mut rows: Vec<(usize, &Row)> =
        phase.rows.iter().enumerate().filter(|(_, r)| matches!(r.status, RowStatus::Ok | RowStatus::Infeasible)).collect();
    let price = |row: &Row| row.cost_to_target.map(|c| c.0).or(row.usd_per_million.map(|e| e.value)).unwrap_or(f64::INFINITY);
    rows.sort_by(|(_, a), (_, b)| {
        let key = |row: &Row| (!row.recommended, row.status != RowStatus::Ok);
        key(a).cmp(&key(b)).then(price(a).total_cmp(&price(b)))
    });
    if rows.is_empty() {
        put!(out, "<p>No candidate was measured.</p>");
        return;
    }
    let train = phase.phase == Phase::Train;
    let units = escape(&words::units(header));
    put!(
        out,
        "<div class=\"scroll\"><table>\n<caption>Intervals are 95 %. Speedups are ratios of interleaved blocks; rates follow from them and the baseline's own, so that the machine's drift cancels. Cheapest first.</caption>\n<thead><tr>"
    );
    put!(out, "<th>#</th><th class=\"text\">candidate</th><th>{units} a second</th><th>speedup</th>");
    let is_predicted = phase.rows.iter().any(|row| row.predicted.is_some());
    if is_predicted {
        put!(out, "<th>predicted</th>");
    }
    if train {
        put!(out, "<th>time to target</th><th>cost to target</th>");
    }
    put!(
        out,
        "<th>batch, median</th><th>batch, p99 at most</th><th>{}</th><th class=\"text\">change</th>",
        header.primary_metric.facts().title
    );
    put!(
        out,
        "<th>$ per million</th><th>peak memory</th><th>model</th><th>of the roofline</th><th>best with</th><th class=\"text\">remark</th></tr></thead>\n<tbody>"
    );
    for (at, row) in rows {
        let class = match (row.recommended, row.status) {
            (true, _) => " class=\"pick\"",
            (_, RowStatus::Infeasible) => " class=\"out\"",
            _ => "",
        };
        put!(out, "<tr{class} id=\"{}\"><td>{}</td><td class=\"text\">{}</td>", escape(&row.id), at + 1, escape(&row.title));
        out.push_str(&cell(row.throughput, three_figures));
        out.push_str(&cell(row.speedup, words::ratio));
        if is_predicted {
            out.push_str(&plain(row.predicted.map(|predicted| words::prediction(&predicted))));
        }
        if train {
            let missed = || "not reached".to_string();
            let has_target = header.train.target.is_some() && inputs.run.records[row.record].candidate.emulation().is_none();
            out.push_str(&plain(row.time_to_target.map(|s| s.to_string()).or_else(|| has_target.then(missed))));
            out.push_str(&plain(row.cost_to_target.map(|u| u.to_string()).or_else(|| has_target.then(missed))));
        }
        out.push_str(&plain(row.latency_p50.map(words::milliseconds)));
        out.push_str(&plain(row.latency_p99.map(words::milliseconds)));
        out.push_str(&cell(row.primary, words::share));
        match &row.drop {
            Some(drop) => {
                let class = match drop.verdict {
                    DropVerdict::TooMuch => "bad",
                    DropVerdict::Better => "good",
                    _ => "",
                };
                put!(out, "<td class=\"text {class}\">{}</td>", escape(&words::drop(drop)));
            }
            None => out.push_str(&plain(None)),
        }
        out.push_str(&cell(row.usd_per_million, words::usd));
        out.push_str(&plain(row.peak_memory.map(|b| b.to_string())));
        out.push_str(&plain(row.model_size.map(|b| b.to_string())));
        out.push_str(&plain(row.roofline_fraction.map(|f| format!("{:.0} %", 100.0 * f))));
        let odds = row.probability_best.map(words::probability);
        out.push_str(&odds.map_or("<td></td>".into(), |text| format!("<td>{text}</td>")));
        let broken: Vec<String> = row.violations.iter().map(|v| escape(&v.text)).collect();
        put!(out, "<td class=\"wrap\">{}</td></tr>", broken.join("; "));
    }
    put!(out, "</tbody></table></div>");
}

/// Notes that several rows share are said once.
fn remarks(out: &mut String, phase: &PhaseAdvice) {
    let mut said: Vec<(&str, Vec<usize>)> = Vec::new();
    for (at, row) in phase.rows.iter().enumerate() {
        for note in &row.notes {
            match said.iter_mut().find(|(text, _)| text == note) {
                Some((_, rows)) => rows.push(at + 1),
                None => said.push((note, vec![at + 1])),
            }
        }
    }
    if said.is_empty() {
        return;
    }
    put!(out, "<details open><summary>Remarks ({})</summary>\n<ul>", said.len());
    for (note, rows) in said {
        let numbers: Vec<String> = rows.iter().map(|n| format!("#{n}")).collect();
        put!(out, "<li>{} <span class=\"soft\">({})</span></li>", prose(note), numbers.join(", "));
    }
    put!(out, "</ul></details>");
}

fn not_run(out: &mut String, phase: &PhaseAdvice) {
    let rows: Vec<&Row> = phase.rows.iter().filter(|r| matches!(r.status, RowStatus::Failed | RowStatus::Skipped)).collect();
    if rows.is_empty() {
        return;
    }
    put!(out, "<details><summary>Not measured: {} candidates</summary>\n<div class=\"scroll\"><table>", rows.len());
    put!(
        out,
        "<thead><tr><th class=\"text\">candidate</th><th class=\"text\">status</th><th class=\"text\">reason</th></tr></thead><tbody>"
    );
    for row in rows {
        put!(
            out,
            "<tr id=\"{}\"><td class=\"text\">{}</td><td class=\"text\">{}</td><td class=\"wrap\">{}</td></tr>",
            escape(&row.id),
            escape(&row.title),
            row.status.name(),
            escape(row.reason.as_deref().unwrap_or("no reason was given"))
        );
    }
    put!(out, "</tbody></table></div></details>");
}

fn details_of_pick(out: &mut String, inputs: &Inputs, phase: &PhaseAdvice) {
    let Outcome::Pick(pick) = &phase.outcome else { return };
    let row = &phase.rows[pick.row];
    let record = &inputs.run.records[row.record];
    if !record.profile.is_empty() {
        put!(out, "<details><summary>{}: the ops of the recommended row</summary>", words::phase_title(phase.phase));
        ops(out, &record.profile);
        put!(out, "</details>");
    }
    if let Some(training) = &record.training {
        put!(
            out,
            "<details><summary>{}: seeds of the recommended row</summary>\n<div class=\"scroll\"><table>",
            words::phase_title(phase.phase)
        );
        put!(
            out,
            "<thead><tr><th>seed</th><th>epochs</th><th>training time</th><th>time to target</th><th>{}</th><th>skipped steps</th><th class=\"text\">remark</th></tr></thead><tbody>",
            inputs.run.header.primary_metric.facts().title
        );
        let is_timed = record.candidate.emulation().is_none();
        for seed in &training.seeds {
            let to_target = || seed.time_to_target.map_or("not reached".into(), |t| t.to_string());
            put!(
                out,
                "<tr><td>{}</td><td>{}</td>{}{}<td>{}</td><td>{}</td><td class=\"wrap\">{}</td></tr>",
                seed.seed,
                seed.epochs.len(),
                plain(seed.epochs.last().filter(|_| is_timed).map(|e| e.elapsed.to_string())),
                plain(is_timed.then(to_target)),
                words::share(seed.metric),
                seed.skipped_steps,
                escape(seed.failure.as_deref().unwrap_or(""))
            );
        }
        put!(out, "</tbody></table></div></details>");
    }
    confusion(out, inputs, phase, record);
}

fn ops(out: &mut String, profile: &[OpProfile]) {
    let whole: f64 = profile.iter().filter_map(|op| op.time).map(|t| t.0).sum();
    put!(
        out,
        "<div class=\"scroll\"><table>\n<caption>One batch on one rank. Times are medians of steps with a clock around every op, outside the timed blocks.</caption>"
    );
    let has_others = profile.iter().any(|op| op.waited.is_some());
    let waited = if has_others { "<th>of it waiting</th>" } else { "" };
    put!(
        out,
        "<thead><tr><th class=\"text\">op</th><th class=\"text\">shape</th><th>work</th><th>traffic</th><th>time</th>{waited}<th>share</th><th>rate</th></tr></thead><tbody>"
    );
    for op in profile {
        let rate = op
            .time
            .filter(|t| t.0 > 0.0 && op.flops.0 > 0)
            .map(|t| format!("{} GFLOP/s", three_figures(op.flops.0 as f64 / t.0 / 1e9)));
        put!(
            out,
            "<tr><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td>{}{}{}{}</tr>",
            escape(&op.op),
            escape(&op.shape),
            op.flops,
            op.bytes,
            plain(op.time.map(|t| t.to_string())),
            if has_others { plain(op.waited.map(|t| t.to_string())) } else { String::new() },
            plain(op.time.filter(|_| whole > 0.0).map(|t| format!("{:.1} %", 100.0 * t.0 / whole))),
            rate.map_or("<td></td>".into(), |text| format!("<td>{text}</td>"))
        );
    }
    put!(out, "</tbody></table></div>");
}

fn confusion(out: &mut String, inputs: &Inputs, phase: &PhaseAdvice, record: &RunRecord) {
    let Some(quality) = record.quality.as_ref().filter(|q| !q.confusion.is_empty() && q.confusion.len() <= 30) else { return };
    let name = |class: usize| escape(inputs.run.header.classes.get(class).map_or("?", String::as_str));
    put!(
        out,
        "<details><summary>{}: classes of the recommended row</summary>\n<div class=\"scroll\"><table>",
        words::phase_title(phase.phase)
    );
    put!(out, "<caption>Rows are true classes, columns predicted ones.</caption><thead><tr><th class=\"text\">class</th>");
    for class in 0..quality.confusion.len() {
        put!(out, "<th>{}</th>", name(class));
    }
    put!(out, "<th>precision</th><th>recall</th><th>F1</th><th>ROC-AUC</th></tr></thead><tbody>");
    for (class, row) in quality.confusion.iter().enumerate() {
        put!(out, "<tr><td class=\"text\">{}</td>", name(class));
        for (predicted, count) in row.iter().enumerate() {
            let hit = if predicted == class { " class=\"hit\"" } else { "" };
            put!(out, "<td{hit}>{count}</td>");
        }
        if let Some(of) = quality.per_class.get(class) {
            put!(
                out,
                "<td>{}</td><td>{}</td><td>{}</td>{}</tr>",
                words::share(of.precision),
                words::share(of.recall),
                words::share(of.f1),
                plain(of.roc_auc.map(words::share))
            );
        } else {
            put!(out, "</tr>");
        }
    }
    put!(out, "</tbody></table></div></details>");
}

/// What a reader must not conclude.
fn unknowns(out: &mut String, inputs: &Inputs) {
    let (header, run) = (&inputs.run.header, inputs.run);
    let mut sentences: Vec<String> = run.warnings.clone();
    let measured: Vec<&RunRecord> = run.records.iter().filter(|r| r.measurement.is_some()).collect();
    if measured.iter().all(|r| r.energy.is_none()) {
        sentences.push(
            "Energy was not measured: this machine shows no energy counter. Nothing is estimated from nominal watts.".into(),
        );
    }
    let invalid = measured.iter().filter(|r| r.energy.as_ref().is_some_and(|e| !e.valid)).count();
    if invalid > 0 {
        sentences.push(format!("Energy of {invalid} rows is not valid: too short a window or a counter that stood still."));
    }
    let no_tail = measured.iter().filter(|r| r.measurement.as_ref().is_some_and(|m| m.latency_p99.is_none())).count();
    if no_tail > 0 {
        sentences.push(format!("{no_tail} rows have no p99: a bound that holds with 99 % confidence needs 459 timed steps."));
    }
    let unstable = measured.iter().filter(|r| r.measurement.as_ref().is_some_and(|m| !m.warm_up_stable)).count();
    if unstable > 0 {
        sentences.push(format!("{unstable} rows were still drifting when their warm-up had to end."));
    }
    let capped = measured.iter().filter(|r| r.measurement.as_ref().is_some_and(|m| csv::stop_name(m.stop) == "time_cap")).count();
    if capped > 0 {
        sentences.push(format!("{capped} rows reached the largest number of blocks before their rate was known to 0.5 %."));
    }
    let flagged: usize = measured
        .iter()
        .filter_map(|r| r.measurement.as_ref())
        .map(|m| stats::outliers(&m.blocks.iter().map(|b| b.total.0 / b.steps as f64).collect::<Vec<_>>()).len())
        .sum();
    if flagged > 0 {
        sentences.push(format!("{flagged} blocks lie outside Tukey's fences of their row; they are kept in every figure."));
    }
    if header.environment.governor.is_none() {
        sentences.push("The processor's frequency governor is not known: the system does not show it.".into());
    }
    sentences.push("Times hold for this machine. Prices of another instance say nothing of its speed.".into());
    put!(out, "<h2>What this run does not tell</h2>");
    list(out, &sentences);
}

fn provenance(out: &mut String, inputs: &Inputs) {
    let (header, price) = (&inputs.run.header, &inputs.advice.price);
    let e = &header.environment;
    put!(out, "<h2>Where the numbers come from</h2>\n<p>{}</p>", escape(&price.explanation));
    if let Some(source) = &price.source {
        put!(out, "<p class=\"soft\">Price from {}.</p>", escape(source));
    }
    let all_blocks = || inputs.run.records.iter().filter_map(|r| r.measurement.as_ref()).flat_map(|m| &m.blocks);
    let steps: u64 = all_blocks().map(|b| b.steps).sum();
    let blocks = all_blocks().count();
    let kept: usize = all_blocks().map(|b| b.step_s.len()).sum();
    let mut facts = vec![
        (
            "measured on".to_string(),
            format!("{}, {} physical and {} logical cores, {}", e.cpu, e.physical_cores, e.logical_cores, e.memory),
        ),
        ("system".into(), format!("{}, kernel {}", e.os, e.kernel)),
        ("instruction sets".into(), e.instruction_sets.join(", ")),
        (
            "fp32 peak of one core".into(),
            words::or_unknown(e.peak_flops_per_core.map(|f| format!("{} GFLOP/s", three_figures(f / 1e9)))),
        ),
        ("copying, all cores".into(), words::or_unknown(e.copy_bytes_per_s.map(|b| format!("{} GB/s", three_figures(b / 1e9))))),
        ("load before the run".into(), words::or_unknown(e.load_before.map(|l| format!("{l:.2}")))),
        (
            "program".into(),
            format!("advisor {} ({}), {}", e.advisor_version, e.commit.as_deref().unwrap_or("commit unknown"), e.rustc),
        ),
        ("price".into(), format!("{}, {}", price.instance, price.usd_per_hour)),
        (
            "samples".into(),
            format!("{steps} timed steps in {blocks} interleaved blocks; {kept} of them one by one in samples.csv"),
        ),
        ("configuration".into(), header.config_hash.clone()),
    ];
    for gpu in &e.gpus {
        facts.insert(1, ("CUDA device".into(), words::gpu(gpu)));
    }
    if let Some(end) = &inputs.run.end {
        facts.push((
            "the last session took".into(),
            format!("{}, {:.1} % of it not a candidate's own work", end.wall, 100.0 * end.overhead_share),
        ));
    }
    put!(out, "<div class=\"scroll\"><table><tbody>");
    for (name, value) in facts {
        put!(out, "<tr><td class=\"text\">{}</td><td class=\"wrap\">{}</td></tr>", escape(&name), escape(&value));
    }
    put!(out, "</tbody></table></div>\n<p>This run again:</p>\n<pre>{}</pre>", escape(&header.command));
    put!(out, "<details><summary>The scenario file</summary><pre>{}</pre></details>", escape(&header.scenario_text));
    put!(
        out,
        "<footer>Every figure is measured unless it says modelled; unknown ones say so. Raw data: run.jsonl, samples.csv, results.csv, recommendation.json.</footer>"
    );
}

/// The overview of several scenarios.
pub fn index_html(scenarios: &[Inputs]) -> Result<String, ReportError> {
    let mut out = String::new();
    put!(out, "<header><p class=\"soft\">advisor</p><h1>Recommendations</h1></header>\n<div class=\"cards\">");
    for inputs in scenarios {
        let header = &inputs.run.header;
        let name = escape(&header.scenario);
        put!(
            out,
            "<section class=\"card\">\n<h2><a href=\"{name}/report.html\">{name}</a></h2>\n<p>{}</p>",
            escape(&header.question)
        );
        for phase in &inputs.advice.phases {
            let title = words::phase_title(phase.phase);
            match &phase.outcome {
                Outcome::Pick(pick) => {
                    let row = &phase.rows[pick.row];
                    let speed =
                        row.throughput().map(|PerSecond(v)| format!("{} {} a second", three_figures(v), words::units(header)));
                    let cost = row.usd_per_million.map(|c| format!("{} a million", words::usd(c.value)));
                    let quality =
                        row.primary.map(|p| format!("{} {}", header.primary_metric.facts().title, words::share(p.value)));
                    let facts: Vec<String> = [speed, cost, quality].into_iter().flatten().collect();
                    put!(
                        out,
                        "<p><span class=\"soft\">{title}</span><br><strong>{}</strong><br>{}</p>",
                        escape(&row.title),
                        escape(&facts.join(", "))
                    );
                }
                Outcome::Infeasible(none) => {
                    put!(
                        out,
                        "<p><span class=\"soft\">{title}</span><br><strong class=\"bad\">nothing meets every limit</strong>: <code>{}</code></p>",
                        escape(&none.binding)
                    );
                }
                Outcome::Nothing => {
                    put!(
                        out,
                        "<p><span class=\"soft\">{title}</span><br><strong class=\"bad\">nothing was measured</strong></p>"
                    );
                }
            }
        }
        put!(out, "</section>");
    }
    put!(out, "</div>\n<footer>All rows: <a href=\"results.csv\">results.csv</a>.</footer>");
    Ok(page("advisor", &out))
}
