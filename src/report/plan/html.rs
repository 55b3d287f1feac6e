//! The answer of a plan as one HTML file: the pick and how far to trust it, what would change it, every row, what does not fit, and what it
//! all rests on. Nothing is loaded from elsewhere.

use super::{
    super::{
        Plot, ReportError,
        html::{list, page},
        words::escape,
    },
    PlanInputs, figures, words,
};
use crate::{
    predict::{Row, Work, WorkFigures, count_words, thousands},
    units::three_figures,
    vocab::Phase,
};
use std::fmt::Write;

/// Writing to a string cannot fail; this keeps the lines below short.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

/// Rows of the table that stand open; the others are folded away.
const OPEN_ROWS: usize = 24;

/// The page.
pub fn plan_html(inputs: &PlanInputs) -> Result<String, ReportError> {
    let (plan, answer) = (inputs.plan, inputs.answer);
    let plots = figures::figures(inputs)?;
    let mut out = String::new();
    put!(out, "<header>\n<p class=\"soft\">advisor plan: {}</p>\n<h1>{}</h1>", escape(&plan.name), escape(&plan.question));
    put!(
        out,
        "<p class=\"soft\">{}. Every figure is modelled; {}.</p>\n</header>",
        escape(&work(inputs)),
        if words::is_here(plan) { "nothing was run but single ops" } else { "none was measured on these machines" }
    );
    answer_box(&mut out, inputs);
    draw(&mut out, &plots, "front");
    if !answer.swings.is_empty() {
        put!(out, "<h2>What would change the answer</h2>");
        draw(&mut out, &plots, "sensitivity");
        swings(&mut out, inputs);
    }
    put!(out, "<h2>Machines and layouts</h2>");
    table(&mut out, inputs);
    draw(&mut out, &plots, "memory");
    draw(&mut out, &plots, "time-split");
    alternatives(&mut out, inputs);
    refusals(&mut out, inputs);
    provenance(&mut out, inputs);
    Ok(page(&format!("{} - advisor plan", plan.name), &out))
}

fn draw(out: &mut String, plots: &[Plot], stem: &str) {
    if let Some(plot) = plots.iter().find(|plot| plot.stem == stem) {
        put!(out, "<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>", plot.svg, escape(&plot.caption));
    }
}

/// What is asked, in a line.
fn work(inputs: &PlanInputs) -> String {
    let plan = inputs.plan;
    let model = plan.model.shape.as_deref().unwrap_or("a model of its own numbers");
    match &plan.work {
        Work::Train(train) => format!(
            "{model}, {} tokens in sequences of {}, {}, objective {}",
            count_words(train.tokens),
            thousands(train.sequence_length),
            words::kinds(plan),
            plan.objective.name()
        ),
        Work::Graph(run) => format!(
            "the graph of {}, {}, {}, objective {}",
            plan.model.scenario.as_deref().unwrap_or_default(),
            if run.phase == Phase::Train { "training" } else { "inference" },
            if words::is_here(plan) { "on this machine".to_string() } else { words::kinds(plan) },
            plan.objective.name()
        ),
        Work::Serve(serve) => format!(
            "{model}, {} requests a second of {} tokens, answers of {}, {}, objective {}",
            count_words(serve.requests_per_s),
            thousands(serve.input_tokens),
            thousands(serve.output_tokens),
            words::kinds(plan),
            plan.objective.name()
        ),
    }
}

fn answer_box(out: &mut String, inputs: &PlanInputs) {
    let answer = inputs.answer;
    match answer.pick {
        Some(at) => {
            let row = &answer.rows[at];
            put!(
                out,
                "<section class=\"answer\">\n<div class=\"soft\">{} within every limit</div>",
                words::objective(inputs.plan)
            );
            put!(out, "<div class=\"pick\">{}</div>\n<div class=\"figures\">", escape(&row.title()));
            for (name, value) in words::figures(inputs, row) {
                put!(out, "<div><div class=\"name\">{}</div><div class=\"value\">{}</div></div>", escape(name), escape(&value));
            }
            put!(out, "</div>");
            list(out, &words::reasons(inputs, row));
            put!(out, "</section>");
        }
        None => {
            let (title, reasons) = words::no_pick(answer);
            put!(out, "<section class=\"answer none\">\n<div class=\"pick\">{}</div>", escape(&title).replace('`', ""));
            list(out, &reasons);
            put!(out, "</section>");
        }
    }
}

fn swings(out: &mut String, inputs: &PlanInputs) {
    put!(out, "<div class=\"scroll\"><table>\n<thead><tr><th class=\"text\">assumption</th>");
    put!(out, "<th class=\"text\">change</th><th>the answer then</th><th class=\"text\">and the pick</th></tr></thead>\n<tbody>");
    for swing in &inputs.answer.swings {
        for (k, end) in swing.ends.iter().enumerate() {
            let name = if k == 0 { escape(&swing.assumption) } else { String::new() };
            let value = end.objective.map(|value| words::objective_value(inputs.plan, value));
            let pick = end.other_pick.as_deref().map_or("the same".to_string(), escape);
            let pick = if end.objective.is_none() { String::new() } else { pick };
            put!(
                out,
                "<tr><td class=\"text\">{name}</td><td class=\"text\">{}</td><td>{}</td><td class=\"wrap\">{pick}</td></tr>",
                escape(&end.change),
                escape(&value.unwrap_or_else(|| "nothing meets every limit".into()))
            );
        }
    }
    put!(out, "</tbody></table></div>");
}

fn cell(text: Option<String>) -> String {
    match text {
        Some(text) => format!("<td>{}</td>", escape(&text)),
        None => format!("<td class=\"unknown\">{}</td>", words::UNKNOWN),
    }
}

fn head(out: &mut String, inputs: &PlanInputs, caption: &str) {
    put!(out, "<div class=\"scroll\"><table>\n<caption>{}</caption>\n<thead><tr><th>#</th>", escape(caption));
    put!(out, "<th class=\"text\">machines</th><th class=\"text\">layout</th>");
    match &inputs.plan.work {
        Work::Graph(run) => {
            let (time, cost) = match run.phase {
                Phase::Train => ("time", "cost"),
                Phase::Infer => ("an answer", "$ a million"),
            };
            put!(out, "<th>{time}</th><th>{cost}</th><th>step</th><th>examples a second</th>");
        }
        Work::Train(_) => {
            put!(out, "<th>time</th><th>cost</th><th>step</th><th>tokens a second</th><th>MFU</th><th>work of the time</th>");
        }
        Work::Serve(_) => {
            put!(
                out,
                "<th>an answer</th><th>$ a million</th><th>first token</th><th>a token</th><th>tokens a second</th><th>load</th>"
            );
        }
    }
    put!(out, "<th>memory</th><th>energy</th><th>error</th><th class=\"text\">remark</th></tr></thead>\n<tbody>");
}

fn line(out: &mut String, number: &str, row: &Row, is_pick: bool) {
    let class = match (is_pick, row.breaches.is_empty()) {
        (true, _) => " class=\"pick\"",
        (_, false) => " class=\"out\"",
        _ => "",
    };
    put!(
        out,
        "<tr{class}><td>{number}</td><td class=\"text\">{}</td><td class=\"wrap\">{}</td>",
        escape(&row.place()),
        escape(&row.layout.title())
    );
    out.push_str(&cell(Some(words::long_time(row.time))));
    out.push_str(&cell(row.cost.map(words::money)));
    match &row.work {
        WorkFigures::Train(train) => {
            out.push_str(&cell(Some(train.step.to_string())));
            out.push_str(&cell(Some(three_figures(row.tokens_per_s))));
            out.push_str(&cell(train.mfu.map(words::percent)));
            out.push_str(&cell(Some(words::percent(train.goodput))));
        }
        WorkFigures::Graph(graph) => {
            out.push_str(&cell(Some(graph.step.to_string())));
            out.push_str(&cell(Some(three_figures(row.tokens_per_s))));
        }
        WorkFigures::Serve(serve) => {
            out.push_str(&cell(Some(serve.first_token.to_string())));
            out.push_str(&cell(Some(serve.per_token.to_string())));
            out.push_str(&cell(Some(three_figures(row.tokens_per_s))));
            out.push_str(&cell(Some(words::percent(serve.utilisation))));
        }
    }
    out.push_str(&cell(Some(words::bytes(row.memory_bytes()))));
    out.push_str(&cell(row.energy.map(words::energy)));
    out.push_str(&cell(Some(words::trust_short(&row.trust))));
    let mut remarks: Vec<String> = row.breaches.iter().map(|breach| breach.text.replace('`', "")).collect();
    remarks.extend(row.trust.extrapolated.iter().cloned());
    if row.on_front {
        remarks.insert(0, "on the front".into());
    }
    put!(out, "<td class=\"wrap long\">{}</td></tr>", escape(&remarks.join("; ")));
}

fn table(out: &mut String, inputs: &PlanInputs) {
    let rows = &inputs.answer.rows;
    if rows.is_empty() {
        put!(out, "<p>No layout fits on any of these machines.</p>");
        return;
    }
    let caption = if words::is_here(inputs.plan) {
        "Every candidate of the scenario on this machine, best first."
    } else {
        "The best layout of each kind and number of machines, best first. Energy is at the power limit of the GPUs."
    };
    head(out, inputs, caption);
    let is_open = |at: usize| at < OPEN_ROWS || rows[at].on_front;
    for (at, row) in rows.iter().enumerate().filter(|(at, _)| is_open(*at)) {
        line(out, &(at + 1).to_string(), row, inputs.answer.pick == Some(at));
    }
    put!(out, "</tbody></table></div>");
    let folded: Vec<usize> = (0..rows.len()).filter(|at| !is_open(*at)).collect();
    if !folded.is_empty() {
        put!(out, "<details><summary>{} more</summary>", folded.len());
        head(out, inputs, "");
        for at in folded {
            line(out, &(at + 1).to_string(), &rows[at], false);
        }
        put!(out, "</tbody></table></div></details>");
    }
}

fn alternatives(out: &mut String, inputs: &PlanInputs) {
    if inputs.answer.alternatives.is_empty() {
        return;
    }
    put!(out, "<h3>Other layouts of the machines of the answer</h3>");
    head(out, inputs, "Fastest first. Differences below the error of the model are no differences.");
    for row in &inputs.answer.alternatives {
        line(out, "", row, false);
    }
    put!(out, "</tbody></table></div>");
}

fn refusals(out: &mut String, inputs: &PlanInputs) {
    let refusals = &inputs.answer.refusals;
    if refusals.is_empty() {
        return;
    }
    put!(out, "<h2>What does not fit</h2>\n<div class=\"scroll\"><table>");
    put!(
        out,
        "<thead><tr><th class=\"text\">machines</th><th class=\"text\">why</th><th class=\"text\">what would fit</th></tr></thead><tbody>"
    );
    for refusal in refusals {
        put!(
            out,
            "<tr><td class=\"text\">{}{}</td><td class=\"wrap\">{}</td><td class=\"wrap\">{}</td></tr>",
            if refusal.gpus == 0 { String::new() } else { format!("{} x ", thousands(refusal.gpus)) },
            escape(&refusal.gpu),
            escape(&refusal.reason),
            escape(&refusal.remedies.join("; "))
        );
    }
    put!(out, "</tbody></table></div>");
}

fn provenance(out: &mut String, inputs: &PlanInputs) {
    let (plan, answer) = (inputs.plan, inputs.answer);
    put!(out, "<h2>Where the numbers come from</h2>");
    list(out, &answer.notes);
    let mut facts: Vec<(String, String)> = Vec::new();
    for (gpu, price) in &answer.prices {
        let on_demand = words::or_unknown(price.on_demand.map(|usd| usd.to_string()));
        let spot = price.spot.map(|usd| format!(", spot {usd}")).unwrap_or_default();
        facts.push((format!("price of a {gpu}"), format!("{on_demand}{spot}: {}", price.explanation.replace('`', ""))));
    }
    let operation = &plan.operation;
    let trains = matches!(&plan.work, Work::Train(_)) || matches!(&plan.work, Work::Graph(run) if run.phase == Phase::Train);
    if trains && !words::is_here(plan) {
        facts.push(("failures".into(), format!("{} for each GPU and year", three_figures(operation.failures_per_gpu_year))));
        facts.push(("restart".into(), format!("{}", operation.restart)));
        facts.push((
            "checkpoints".into(),
            format!(
                "written at {} GB/s for each GPU; interval and loss by Daly 2006",
                three_figures(operation.checkpoint_bytes_per_s_per_gpu / 1e9)
            ),
        ));
    }
    if let Some(rate) = operation.spot_interruptions_per_machine_day {
        facts.push(("spot".into(), format!("{rate} interruptions for each machine and day, beside the failures")));
    }
    if !words::is_here(plan) {
        facts
            .push(("power".into(), format!("limit of the GPUs, times {} for the building", operation.power_usage_effectiveness)));
    }
    let counts = &answer.counts;
    let count = |value: u64| thousands(u32::try_from(value).unwrap_or(u32::MAX));
    let search = match &plan.work {
        Work::Graph(_) => format!("all of {} candidates, {} of them too large", count(counts.evaluated), count(counts.too_large)),
        _ => format!(
            "exact: {} arrangements of ranks, {} of them passed over because their floor lies above what was found; {} layouts evaluated, {} of \
             them too large",
            count(counts.arrangements),
            count(counts.pruned),
            count(counts.evaluated),
            count(counts.too_large)
        ),
    };
    facts.push(("search".into(), search));
    put!(out, "<div class=\"scroll\"><table><tbody>");
    for (name, value) in facts {
        put!(out, "<tr><td class=\"text\">{}</td><td class=\"wrap\">{}</td></tr>", escape(&name), escape(&value));
    }
    put!(out, "</tbody></table></div>\n<p>This plan again:</p>\n<pre>{}</pre>", escape(inputs.command));
    put!(out, "<details><summary>The plan file</summary><pre>{}</pre></details>", escape(&plan.text));
    put!(
        out,
        "<footer>Every figure is modelled, with the error of the model beside it; unknown ones say so. All rows: plan.csv, plan.json.</footer>"
    );
}
