//! How fast layouts are evaluated, and how long a whole search takes, on one core.
//!
//! ```sh
//! cargo bench --bench plan
//! ```

use advisor::{
    input::Source,
    predict::{Books, Landscape, Plan, Site, TrainingPrecision, Work, search, transformer_of},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Every knob open.
const PLANS: [(&str, &str); 2] = [("llama-3.1-405b", "dense"), ("deepseek-v3", "experts")];

fn on_site(model: &str, run: impl FnOnce(&Site)) {
    let text = format!(
        "name = \"bench\"\n[model]\nshape = \"{model}\"\n[train]\ntokens = 1e12\nsequence_length = 8192\nbatch_sequences = 2048\n\
         precision = [\"bf16\", \"fp8\"]\n[[machines]]\ngpu = \"h100-sxm-80gb\"\ngpus = {{ from = 8, to = 16384 }}\n"
    );
    let books = Books::shipped();
    let plan = books.known(|known| Plan::read(Source::new("bench.toml", &text), known)).expect("a good plan");
    let model = transformer_of(&plan.model, &books.models).expect("a shape of the book");
    let Work::Train(work) = &plan.work else { unreachable!("`[train]` stands above") };
    let machine = books.hardware.gpus[plan.machines[0].gpu].machine;
    let precisions = [TrainingPrecision::Half, TrainingPrecision::Fp8];
    run(&Site::new(&model, &machine, &books.parameters, &precisions, &plan, work).expect("H100 has both"));
}

/// Layouts of 1,024 GPUs, one after the other as they stand in the space: time of all, and layouts a second.
fn evaluate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layouts evaluated");
    for (model, kind) in PLANS {
        on_site(model, |site| {
            let space = site.space(1024);
            let layouts: Vec<_> =
                space.arrangements().iter().flat_map(|on| space.schedules(on).map(|with| (*on, with))).collect();
            group.throughput(Throughput::Elements(layouts.len() as u64));
            group.bench_function(kind, |bencher| {
                bencher.iter(|| {
                    for (on, with) in &layouts {
                        black_box(site.evaluate(on, with));
                    }
                });
            });
        });
    }
    group.finish();
}

/// The best layout of every whole number of machines up to 16,384 GPUs.
fn search_all(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("16,384 GPUs searched");
    group.sample_size(10);
    for (model, kind) in PLANS {
        on_site(model, |site| {
            group.bench_function(kind, |bencher| {
                bencher.iter(|| {
                    for machines in 1..=2048 {
                        black_box(search(&site.space(8 * machines), site, 1, f64::INFINITY));
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, evaluate, search_all);
criterion_main!(benches);
