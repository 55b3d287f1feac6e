//! Linear layers in the number formats of an answer: fp32, int8 (static and dynamic), int4 weights; and PyTorch's beside them.
//!
//! ```sh
//! cargo bench --bench linear -- --threads 2 --peer ".venv/bin/python scripts/peer_linear.py"
//! ```
//!
//! What is timed is what a step does: fp32 activations in, quantised where the format says so, product, bias, ReLU, fp32 out. In every
//! round each format takes a block of steps, forth in one round and back in the next, so that a drift of the machine favours none; a ratio
//! is of two blocks of one round, and the table has the median of the rounds with the smallest and the largest.

use advisor::{
    backend::cpu::kernels::{self, Activation, Context, Epilogue, Gemm, PackedInt4, PackedInt8},
    stats::median,
};
use half::f16;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

/// `[M, K, N]`: the layers of `mlp` and `transformer` at 64 rows (of 48 words each), and a wide one at one row.
const LAYERS: &[(&str, [usize; 3])] = &[
    ("mlp fc1", [64, 784, 256]),
    ("mlp fc2", [64, 256, 128]),
    ("transformer q, k, v, o", [64 * 48, 64, 64]),
    ("transformer up", [64 * 48, 64, 128]),
    ("transformer down", [64 * 48, 128, 64]),
    ("4096 wide", [1, 4096, 4096]),
];

const OURS: [&str; 4] = ["fp32", "int8", "int8-dynamic", "int4"];
/// PyTorch has no static path with fp32 in and out; it quantises as a step of its own.
const THEIRS: [&str; 3] = ["fp32", "int8", "int8-dynamic"];

/// Steps before the clock starts, in every block.
const WARM_UP: usize = 3;

/// Weights that share a scale.
const GROUP: usize = 128;

struct Layer {
    shape: [usize; 3],
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    int8: PackedInt8,
    int4: PackedInt4,
    quantised: Vec<i8>,
    scales: Vec<f32>,
    y: Vec<f32>,
}

impl Layer {
    fn new(shape: [usize; 3]) -> Layer {
        let [m, k, n] = shape;
        let values =
            |count: usize| -> Vec<f32> { (0..count).map(|v| ((v * 2_654_435_761) % 2003) as f32 / 1001.0 - 1.0).collect() };
        let w = values(k * n);
        let pairs: Vec<i8> = (0..k.div_ceil(2) * n).map(|v| (v * 37 % 251) as u8 as i8).collect();
        let steps = vec![f16::from_f32(0.1); k.div_ceil(GROUP) * n];
        Layer {
            shape,
            x: values(m * k),
            int8: PackedInt8::from_f32(k, n, &w),
            int4: PackedInt4::new(k, n, GROUP, &pairs, &steps),
            w,
            bias: values(n),
            quantised: vec![0; m * k],
            scales: vec![0.0; m],
            y: vec![0.0; m * n],
        }
    }

    fn step(&mut self, ctx: &Context, format: &str) {
        let Layer { shape: [m, k, n], x, w, bias, int8, int4, quantised, scales, y } = self;
        let epilogue = Epilogue { bias: Some(bias), activation: Activation::Relu };
        match format {
            "fp32" => kernels::gemm(ctx, &Gemm::new(*m, *n, *k), x, w, epilogue, y),
            "int8" => {
                kernels::quantize_symmetric(ctx, x, 1.0 / 127.0, quantised);
                kernels::int8_gemm(ctx, *m, quantised, &[1.0 / 127.0], int8, epilogue, y);
            }
            "int8-dynamic" => {
                kernels::quantize_rows(ctx, *k, x, quantised, scales);
                kernels::int8_gemm(ctx, *m, quantised, scales, int8, epilogue, y);
            }
            _ => kernels::int4_gemm(ctx, *m, x, int4, epilogue, y),
        }
    }

    /// Median seconds of a step.
    fn block(&mut self, ctx: &Context, format: &str, seconds: f64) -> f64 {
        (0..WARM_UP).for_each(|_| self.step(ctx, format));
        let (start, mut samples) = (Instant::now(), Vec::new());
        while samples.len() < 5 || start.elapsed().as_secs_f64() < seconds {
            let begin = Instant::now();
            self.step(ctx, format);
            samples.push(begin.elapsed().as_secs_f64());
        }
        median(&samples).expect("five samples at least")
    }
}

/// Another program that times the same layers: one JSON object a line each way.
struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &str) -> Peer {
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next().expect("--peer names a program"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start `{command}`: {error}"));
        let (to, from) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        Peer { child, to, from }
    }

    fn block(&mut self, [rows, inputs, outputs]: [usize; 3], format: &str, threads: usize, seconds: f64) -> f64 {
        let request =
            json!({"rows": rows, "inputs": inputs, "outputs": outputs, "format": format, "threads": threads, "seconds": seconds});
        writeln!(self.to, "{request}").and_then(|()| self.to.flush()).expect("the peer reads");
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the peer answers");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the peer answered {line:?}"));
        answer["seconds"].as_f64().unwrap_or_else(|| panic!("the peer answered {answer}"))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1));
    let number = |name: &str, usual: f64| given(name).map_or(usual, |text| text.parse().expect("a number"));
    let (threads, rounds) = (number("--threads", 1.0) as usize, number("--rounds", 11.0) as usize);
    let seconds = number("--seconds", 0.1);
    let ctx = Context::new(threads);
    let mut peer = given("--peer").map(|command| Peer::start(command));
    println!("{threads} threads, {rounds} rounds of {seconds} s a block, {:?}\n", ctx.isa());
    println!("| layer, rows x inputs x outputs | side | median us | fp32 / this, ours | PyTorch's same / ours |");
    println!("|---|---|---:|---:|---:|");
    for (name, shape) in LAYERS {
        let mut layer = Layer::new(*shape);
        let mut sides: Vec<(bool, &str)> = OURS.iter().map(|format| (true, *format)).collect();
        if peer.is_some() {
            sides.extend(THEIRS.iter().map(|format| (false, *format)));
        }
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); sides.len()];
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..sides.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let (is_ours, format) = sides[at];
                times[at].push(match &mut peer {
                    Some(peer) if !is_ours => peer.block(*shape, format, threads, seconds),
                    _ => layer.block(&ctx, format, seconds),
                });
            }
        }
        let ratio = |above: &[f64], below: &[f64]| {
            let mut each: Vec<f64> = above.iter().zip(below).map(|(a, b)| a / b).collect();
            each.sort_by(f64::total_cmp);
            format!("{:.2} ({:.2} to {:.2})", median(&each).expect("rounds"), each[0], each[each.len() - 1])
        };
        let [m, k, n] = shape;
        for (at, (is_ours, format)) in sides.iter().enumerate() {
            let against_peer = sides.iter().position(|side| *side == (false, *format)).filter(|_| *is_ours);
            println!(
                "| {name}, {m} x {k} x {n} | {}{format} | {:.1} | {} | {} |",
                if *is_ours { "" } else { "PyTorch " },
                1e6 * median(&times[at]).expect("rounds"),
                if *is_ours { ratio(&times[0], &times[at]) } else { String::new() },
                against_peer.map_or(String::new(), |peer| ratio(&times[peer], &times[at])),
            );
        }
    }
    if let Some(Peer { mut child, to, .. }) = peer {
        drop(to);
        child.wait().expect("the peer ends");
    }
}
