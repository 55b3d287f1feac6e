//! Every op in plain f64 loops: the yardstick for backends and for autodiff. Slow on purpose.
//!
//! Element types do not matter here; results are not rounded to them. In-place ops write their operands as on a device.

use super::{Activation, Binary, DEAD_CODE, Exchange, Graph, Node, Op, OptimizerStep, Unary, Value, ValueId, Window};
use crate::vocab::OptimizerKind;

/// Runs `nodes` over `data`, the flat contents of each value (labels and indices as numbers). `updates`: weight updates done before.
/// For a collective, the only rank is this one: an all-reduce changes nothing.
pub fn run(values: &[Value], nodes: &[Node], data: &mut [Vec<f64>], updates: u64) {
    for node in nodes {
        let made = step(values, node, data, updates);
        for (id, result) in node.outputs.iter().zip(made) {
            data[id.0] = result;
        }
    }
}

/// Zeroed contents for every value.
pub fn zeros(graph: &Graph) -> Vec<Vec<f64>> {
    graph.values.iter().map(|v| vec![0.0; v.elements()]).collect()
}

/// The error function to 1e-15 or better: its Maclaurin series inside 3, the continued fraction of its complement outside
/// (Abramowitz & Stegun 7.1.5 and 7.1.14).
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..=80).rev().fold(a, |below, n| a + f64::from(n) / 2.0 / below);
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    value.copysign(x)
}

fn unary(f: Unary, x: f64) -> f64 {
    match f {
        Unary::Relu => x.max(0.0),
        Unary::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Exp => x.exp(),
    }
}

/// Derivative from y (Gelu: from x).
fn unary_grad(f: Unary, v: f64) -> f64 {
    match f {
        Unary::Relu => f64::from(u8::from(v > 0.0)),
        Unary::Gelu => {
            let density = (-v * v / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * (1.0 + erf(v / std::f64::consts::SQRT_2)) + v * density
        }
        Unary::Tanh => 1.0 - v * v,
        Unary::Sigmoid => v * (1.0 - v),
        Unary::Exp => v,
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => unary(Unary::Relu, x),
        Activation::Gelu => unary(Unary::Gelu, x),
    }
}

/// `op(A) op(B)` of one matrix pair, A `[M, K]`, B `[K, N]` after transposition.
fn product(a: &[f64], b: &[f64], [m, n, k]: [usize; 3], ta: bool, tb: bool) -> Vec<f64> {
    let at = |i: usize, l: usize| if ta { a[l * m + i] } else { a[i * k + l] };
    let bt = |l: usize, j: usize| if tb { b[j * k + l] } else { b[l * n + j] };
    (0..m * n).map(|c| (0..k).map(|l| at(c / n, l) * bt(l, c % n)).sum()).collect()
}

fn matmul(a: (&[f64], &[usize]), b: (&[f64], &[usize]), ta: bool, tb: bool) -> Vec<f64> {
    let pair = |s: &[usize], t: bool| {
        let (r, c) = (s[s.len() - 2], s[s.len() - 1]);
        if t { (c, r) } else { (r, c) }
    };
    let ((m, k), (_, n)) = (pair(a.1, ta), pair(b.1, tb));
    if b.1.len() == 2 {
        let rows = a.0.len() / k;
        let m = if a.1.len() == 2 { m } else { rows };
        return product(a.0, b.0, [m, n, k], ta, tb);
    }
    let pairs = a.0.chunks(m * k).zip(b.0.chunks(k * n));
    pairs.flat_map(|(a, b)| product(a, b, [m, n, k], ta, tb)).collect()
}

/// Calls `visit(output place, input place, tap)` for every pixel of the window that lies inside `[H, W]`, one image and no channels.
fn taps(window: &Window, [h, w]: [usize; 2], mut visit: impl FnMut(usize, usize, usize)) {
    let [oh, ow] = window.output([h, w]).expect("checked by infer");
    for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
        for (i, j) in (0..window.size[0]).flat_map(|i| (0..window.size[1]).map(move |j| (i, j))) {
            let (r, c) = (y * window.stride[0] + i, x * window.stride[1] + j);
            let (Some(r), Some(c)) = (r.checked_sub(window.padding[0]), c.checked_sub(window.padding[1])) else { continue };
            if r < h && c < w {
                visit(y * ow + x, r * w + c, i * window.size[1] + j);
            }
        }
    }
}

fn conv(window: &Window, x: &[f64], xs: &[usize], w: &[f64], out: usize) -> Vec<f64> {
    let [b, h, v, c] = [xs[0], xs[1], xs[2], xs[3]];
    let [oh, ow] = window.output([h, v]).expect("checked by infer");
    let mut y = vec![0.0; b * oh * ow * out];
    for image in 0..b {
        taps(window, [h, v], |to, from, tap| {
            for (ci, co) in (0..c).flat_map(|ci| (0..out).map(move |co| (ci, co))) {
                y[(image * oh * ow + to) * out + co] += x[(image * h * v + from) * c + ci] * w[(tap * c + ci) * out + co];
            }
        });
    }
    y
}

fn conv_grad_input(window: &Window, dy: &[f64], input: [usize; 4], w: &[f64], out: usize) -> Vec<f64> {
    let [b, h, v, c] = input;
    let [oh, ow] = window.output([h, v]).expect("checked by infer");
    let mut dx = vec![0.0; b * h * v * c];
    for image in 0..b {
        taps(window, [h, v], |to, from, tap| {
            for (ci, co) in (0..c).flat_map(|ci| (0..out).map(move |co| (ci, co))) {
                dx[(image * h * v + from) * c + ci] += dy[(image * oh * ow + to) * out + co] * w[(tap * c + ci) * out + co];
            }
        });
    }
    dx
}

fn conv_grad_weight(window: &Window, x: &[f64], xs: &[usize], dy: &[f64], out: usize) -> Vec<f64> {
    let [b, h, v, c] = [xs[0], xs[1], xs[2], xs[3]];
    let [oh, ow] = window.output([h, v]).expect("checked by infer");
    let mut dw = vec![0.0; window.size[0] * window.size[1] * c * out];
    for image in 0..b {
        taps(window, [h, v], |to, from, tap| {
            for (ci, co) in (0..c).flat_map(|ci| (0..out).map(move |co| (ci, co))) {
                dw[(tap * c + ci) * out + co] += x[(image * h * v + from) * c + ci] * dy[(image * oh * ow + to) * out + co];
            }
        });
    }
    dw
}

/// Largest of each window and its place in it, the first of equals.
fn max_pool(window: &Window, x: &[f64], xs: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let [b, h, v, c] = [xs[0], xs[1], xs[2], xs[3]];
    let [oh, ow] = window.output([h, v]).expect("checked by infer");
    let mut y = vec![f64::NEG_INFINITY; b * oh * ow * c];
    let mut index = vec![0.0; y.len()];
    for image in 0..b {
        taps(window, [h, v], |to, from, tap| {
            for ch in 0..c {
                let (to, value) = ((image * oh * ow + to) * c + ch, x[(image * h * v + from) * c + ch]);
                if value > y[to] {
                    (y[to], index[to]) = (value, tap as f64);
                }
            }
        });
    }
    (y, index)
}

/// Puts each gradient at its winner's place; codes beyond the window are dropped.
fn unpool(window: &Window, dy: &[f64], index: &[f64], [b, h, v, c]: [usize; 4]) -> Vec<f64> {
    let [oh, ow] = window.output([h, v]).expect("checked by infer");
    let mut dx = vec![0.0; b * h * v * c];
    for image in 0..b {
        taps(window, [h, v], |to, from, tap| {
            for ch in 0..c {
                let to = (image * oh * ow + to) * c + ch;
                if index[to] == tap as f64 {
                    dx[(image * h * v + from) * c + ch] += dy[to];
                }
            }
        });
    }
    dx
}

const POOL_2X2: Window = Window::square(2, 2, 0);

fn conv_relu_pool(window: &Window, x: &[f64], xs: &[usize], w: &[f64], b: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let out = b.len();
    let z: Vec<f64> = conv(window, x, xs, w, out).iter().enumerate().map(|(k, z)| z + b[k % out]).collect();
    let [oh, ow] = window.output([xs[1], xs[2]]).expect("checked by infer");
    let (pooled, index) = max_pool(&POOL_2X2, &z, &[xs[0], oh, ow, out]);
    let code = pooled.iter().zip(index).map(|(p, i)| if *p > 0.0 { i } else { f64::from(DEAD_CODE) }).collect();
    (pooled.iter().map(|p| p.max(0.0)).collect(), code)
}

fn optimize(rule: &OptimizerStep, updates: u64, w: &mut [f64], g: &[f64], unscale: f64, state: &mut [Vec<f64>]) {
    let t = (updates + 1) as f64;
    for k in 0..w.len() {
        let decayed = if rule.kind == OptimizerKind::Adamw { 0.0 } else { rule.l2 * w[k] };
        let sign = if w[k] > 0.0 {
            1.0
        } else if w[k] < 0.0 {
            -1.0
        } else {
            0.0
        };
        let g = g[k] * unscale + decayed + rule.l1 * sign;
        match rule.kind {
            OptimizerKind::Sgd => {
                state[0][k] = rule.momentum * state[0][k] + g;
                w[k] -= rule.learning_rate * if rule.momentum == 0.0 { g } else { state[0][k] };
            }
            OptimizerKind::Adam | OptimizerKind::Adamw => {
                if rule.kind == OptimizerKind::Adamw {
                    w[k] *= 1.0 - rule.learning_rate * rule.l2;
                }
                state[0][k] = rule.beta1 * state[0][k] + (1.0 - rule.beta1) * g;
                state[1][k] = rule.beta2 * state[1][k] + (1.0 - rule.beta2) * g * g;
                let m = state[0][k] / (1.0 - rule.beta1.powf(t));
                let v = state[1][k] / (1.0 - rule.beta2.powf(t));
                w[k] -= rule.learning_rate * m / (v.sqrt() + rule.epsilon);
            }
            OptimizerKind::Rmsprop => {
                state[0][k] = rule.beta2 * state[0][k] + (1.0 - rule.beta2) * g * g;
                let mut d = g / (state[0][k].sqrt() + rule.epsilon);
                if rule.momentum != 0.0 {
                    d += rule.momentum * state[1][k];
                    state[1][k] = d;
                }
                w[k] -= rule.learning_rate * d;
            }
        }
    }
}

/// Rounds to the nearest int8 step of `scale`, ties to even, clamped to +-127.
fn quantised(x: f64, scale: f64) -> f64 {
    (x / scale).round_ties_even().clamp(-127.0, 127.0)
}

/// Weights `[K, N]` from bytes of two numbers each, the low half the earlier one along K, and the scales of groups.
fn widened(pairs: &[f64], scales: &[f64], [k, n]: [usize; 2], group: usize) -> Vec<f64> {
    let weight = |at: usize| {
        let byte = pairs[at / n / 2 * n + at % n] as i8;
        let q = if (at / n).is_multiple_of(2) { byte << 4 >> 4 } else { byte >> 4 };
        f64::from(q) * scales[at / n / group * n + at % n]
    };
    (0..k * n).map(weight).collect()
}

/// The step of an int8 grid by which the largest magnitude is 127; 1 for nothing but zeros.
fn step_of(values: &[f64]) -> f64 {
    let most = values.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    if most > 0.0 { most / 127.0 } else { 1.0 }
}

fn step(values: &[Value], node: &Node, data: &mut [Vec<f64>], updates: u64) -> Vec<Vec<f64>> {
    let shape = |k: usize| values[node.inputs[k].0].shape.as_slice();
    let out_shape = |k: usize| values[node.outputs[k].0].shape.as_slice();
    if let Some(made) = in_place(node, data, updates, shape(0)) {
        return made;
    }
    let x = |k: usize| data[node.inputs[k].0].as_slice();
    let last = |k: usize| *shape(k).last().expect("has an axis");
    let biased = |z: Vec<f64>, bias: Option<&ValueId>, activation: Activation| -> Vec<f64> {
        let bias = bias.map(|id| data[id.0].as_slice());
        z.iter().enumerate().map(|(k, z)| activate(activation, z + bias.map_or(0.0, |b| b[k % b.len()]))).collect()
    };
    let rows = |n: usize, f: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f64> { x(0).chunks(n).flat_map(f).collect() };
    match &node.op {
        Op::MatMul { transpose_a, transpose_b } => vec![matmul((x(0), shape(0)), (x(1), shape(1)), *transpose_a, *transpose_b)],
        Op::Linear { activation } | Op::LinearTwoFour { activation } | Op::LinearSparse { activation, .. } => {
            let z = matmul((x(0), &[x(0).len() / last(0), last(0)]), (x(1), shape(1)), false, false);
            vec![biased(z, node.inputs.get(2), *activation)]
        }
        Op::Conv2d { window, activation } => {
            vec![biased(conv(window, x(0), shape(0), x(1), last(1)), node.inputs.get(2), *activation)]
        }
        Op::Conv2dGradInput { window, input } => vec![conv_grad_input(window, x(0), *input, x(1), last(1))],
        Op::Conv2dGradWeight { window } => vec![conv_grad_weight(window, x(0), shape(0), x(1), last(1))],
        Op::ConvReluPool { window } => {
            let (y, code) = conv_relu_pool(window, x(0), shape(0), x(1), x(2));
            vec![y, code]
        }
        Op::ConvReluPoolGrad { window } => {
            let [oh, ow] = window.output([shape(0)[1], shape(0)[2]]).expect("checked by infer");
            let dz = unpool(&POOL_2X2, x(1), x(2), [shape(0)[0], oh, ow, last(1)]);
            let mut db = vec![0.0; last(1)];
            dz.iter().enumerate().for_each(|(k, d)| db[k % last(1)] += d);
            vec![conv_grad_weight(window, x(0), shape(0), &dz, last(1)), db]
        }
        Op::ConvReluUnpool { input } => vec![unpool(&POOL_2X2, x(0), x(1), *input)],
        Op::MaxPool2d { window } => {
            let (y, index) = max_pool(window, x(0), shape(0));
            vec![y, index]
        }
        Op::MaxPool2dGrad { window, input } => vec![unpool(window, x(0), x(1), *input)],
        Op::Unary(f) => vec![x(0).iter().map(|v| unary(*f, *v)).collect()],
        Op::UnaryGrad(f) => vec![x(0).iter().zip(x(1)).map(|(v, dy)| dy * unary_grad(*f, *v)).collect()],
        Op::Binary(op) => {
            let f = match op {
                Binary::Add => |a: f64, b: f64| a + b,
                Binary::Sub => |a: f64, b: f64| a - b,
                Binary::Mul => |a: f64, b: f64| a * b,
            };
            vec![x(0).iter().zip(x(1)).map(|(a, b)| f(*a, *b)).collect()]
        }
        Op::AddBias => vec![x(0).iter().enumerate().map(|(k, v)| v + x(1)[k % last(0)]).collect()],
        Op::Scale { factor } => vec![x(0).iter().map(|v| factor * v).collect()],
        Op::MulScalar => vec![x(0).iter().map(|v| v * x(1)[0]).collect()],
        Op::SumLeading | Op::SumFirst => {
            let n: usize = out_shape(0).iter().product();
            let mut sum = vec![0.0; n];
            x(0).iter().enumerate().for_each(|(k, v)| sum[k % n] += v);
            vec![sum]
        }
        Op::RepeatFirst { rows } => vec![x(0).repeat(*rows)],
        Op::Mean { axis } => {
            let extent = shape(0)[*axis];
            let inner: usize = shape(0)[axis + 1..].iter().product();
            let mean = |k: usize| {
                let from = k / inner * extent * inner + k % inner;
                (0..extent).map(|e| x(0)[from + e * inner]).sum::<f64>() / extent as f64
            };
            vec![(0..x(0).len() / extent).map(mean).collect()]
        }
        Op::MeanGrad { axis, extent } => {
            let inner: usize = out_shape(0)[axis + 1..].iter().product();
            let from = |k: usize| k / (extent * inner) * inner + k % inner;
            vec![(0..x(0).len() * extent).map(|k| x(0)[from(k)] / *extent as f64).collect()]
        }
        // Alone, a sum over ranks is what it is made of.
        Op::Reshape { .. } | Op::Cast { .. } | Op::Replicate | Op::RoundGradient { .. } => vec![x(0).to_vec()],
        Op::Exchange(Exchange::Receive { .. }) => unreachable!("alone, nobody sends"),
        Op::Exchange(_) => (0..node.outputs.len()).map(|k| x(k).to_vec()).collect(),
        Op::RoundFp8 { format, .. } => {
            let scale = if x(1)[0] == 0.0 { 1.0 } else { x(1)[0] };
            // Through f32, in which a device has the operand anyway.
            let round = |v: &f64| f64::from(format.round((v * scale) as f32)) / scale;
            let largest = x(0).iter().fold(0.0f64, |most, v| most.max(v.abs()));
            vec![x(0).iter().map(round).collect(), vec![largest]]
        }
        Op::Permute { axes } => {
            let strides: Vec<usize> = (0..axes.len()).map(|a| shape(0)[a + 1..].iter().product()).collect();
            let to = out_shape(0);
            let from = |mut k: usize| {
                let mut place = 0;
                for axis in (0..axes.len()).rev() {
                    place += k % to[axis] * strides[axes[axis]];
                    k /= to[axis];
                }
                place
            };
            vec![(0..x(0).len()).map(|k| x(0)[from(k)]).collect()]
        }
        Op::Softmax => vec![rows(last(0), &softmax)],
        Op::SoftmaxGrad => {
            let n = last(0);
            let row = |(y, dy): (&[f64], &[f64])| {
                let dot: f64 = y.iter().zip(dy).map(|(y, d)| y * d).sum();
                y.iter().zip(dy).map(|(y, d)| y * (d - dot)).collect::<Vec<_>>()
            };
            vec![x(0).chunks(n).zip(x(1).chunks(n)).flat_map(row).collect()]
        }
        Op::LayerNorm { epsilon } => {
            let n = last(0);
            let (mut y, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
            for row in x(0).chunks(n) {
                let mean = row.iter().sum::<f64>() / n as f64;
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
                let rstd = 1.0 / (variance + epsilon).sqrt();
                y.extend(row.iter().enumerate().map(|(k, v)| (v - mean) * rstd * x(1)[k] + x(2)[k]));
                means.push(mean);
                rstds.push(rstd);
            }
            vec![y, means, rstds]
        }
        Op::LayerNormGrad => {
            let n = last(0);
            let (mut dx, mut dgain, mut dbias) = (Vec::new(), vec![0.0; n], vec![0.0; n]);
            for (r, (row, dy)) in x(0).chunks(n).zip(x(4).chunks(n)).enumerate() {
                let (mean, rstd) = (x(2)[r], x(3)[r]);
                let hat: Vec<f64> = row.iter().map(|v| (v - mean) * rstd).collect();
                let g: Vec<f64> = dy.iter().zip(x(1)).map(|(d, gain)| d * gain).collect();
                let (sum, dot) =
                    (g.iter().sum::<f64>() / n as f64, g.iter().zip(&hat).map(|(g, h)| g * h).sum::<f64>() / n as f64);
                for k in 0..n {
                    dx.push(rstd * (g[k] - sum - hat[k] * dot));
                    dgain[k] += dy[k] * hat[k];
                    dbias[k] += dy[k];
                }
            }
            vec![dx, dgain, dbias]
        }
        Op::CrossEntropy { rows } => {
            let (mut loss, mut gradient) = (0.0, Vec::new());
            for (row, label) in x(0).chunks(last(0)).zip(x(1)) {
                let p = softmax(row);
                let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let log_sum = most + row.iter().map(|v| (v - most).exp()).sum::<f64>().ln();
                loss += log_sum - row[*label as usize];
                let hit = |k: usize| f64::from(u8::from(k == *label as usize));
                gradient.extend(p.iter().enumerate().map(|(k, p)| (p - hit(k)) / *rows as f64));
            }
            vec![vec![loss / *rows as f64], gradient]
        }
        Op::Embedding => {
            let n = last(0);
            vec![x(1).iter().flat_map(|i| x(0)[*i as usize * n..][..n].to_vec()).collect()]
        }
        Op::Warp => {
            let [height, width, channels] = [1, 2, 3].map(|axis| shape(0)[axis]);
            let middle = [height, width].map(|extent| (extent as f64 - 1.0) / 2.0);
            let mut out = Vec::with_capacity(x(0).len());
            for (image, m) in x(0).chunks(height * width * channels).zip(x(1).chunks(6)) {
                let pixel = |y: f64, x: f64, channel: usize| {
                    let inside = y >= 0.0 && x >= 0.0 && y < height as f64 && x < width as f64;
                    if inside { image[(y as usize * width + x as usize) * channels + channel] } else { 0.0 }
                };
                for at in 0..image.len() {
                    let (row, column, channel) = (at / channels / width, at / channels % width, at % channels);
                    let (dy, dx) = (row as f64 - middle[0], column as f64 - middle[1]);
                    let (y, x) = (m[0] * dy + m[1] * dx + m[2], m[3] * dy + m[4] * dx + m[5]);
                    let mut sum = 0.0;
                    for (i, j) in [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)] {
                        let weight = (1.0 - (y.floor() + i - y).abs()) * (1.0 - (x.floor() + j - x).abs());
                        sum += weight * pixel(y.floor() + i, x.floor() + j, channel);
                    }
                    out.push(sum);
                }
            }
            vec![out]
        }
        Op::EmbeddingGrad { vocabulary } => {
            let n = last(1);
            let mut table = vec![0.0; vocabulary * n];
            for (row, i) in x(1).chunks(n).zip(x(0)) {
                row.iter().enumerate().for_each(|(k, d)| table[*i as usize * n + k] += d);
            }
            vec![table]
        }
        Op::AllFinite => {
            let finite = (0..node.inputs.len()).all(|k| x(k).iter().all(|v| v.is_finite()));
            vec![vec![f64::from(u8::from(finite))]]
        }
        Op::LinearInt8 { input_scale, activation } => {
            let q: Vec<f64> = x(0).iter().map(|v| quantised(*v, *input_scale)).collect();
            let z = matmul((&q, &[q.len() / last(0), last(0)]), (x(1), shape(1)), false, false);
            let z = z.iter().enumerate().map(|(k, z)| z * input_scale * x(2)[k % last(1)]).collect();
            vec![biased(z, node.inputs.get(3), *activation)]
        }
        Op::LinearInt8Dynamic { activation } => {
            let (k, n) = (last(0), last(1));
            let scales: Vec<f64> = x(0).chunks(k).map(step_of).collect();
            let q: Vec<f64> = x(0).iter().enumerate().map(|(at, v)| quantised(*v, scales[at / k])).collect();
            let z = matmul((&q, &[q.len() / k, k]), (x(1), shape(1)), false, false);
            let z = z.iter().enumerate().map(|(at, z)| z * scales[at / n] * x(2)[at % n]).collect();
            vec![biased(z, node.inputs.get(3), *activation)]
        }
        Op::LinearInt4 { group, activation } => {
            let (k, n) = (last(0), last(1));
            let w = widened(x(1), x(2), [k, n], *group);
            let z = matmul((x(0), &[x(0).len() / k, k]), (&w, &[k, n]), false, false);
            vec![biased(z, node.inputs.get(3), *activation)]
        }
        Op::DequantizeInt4 { shape, group } => {
            let n = *shape.last().expect("checked by infer");
            vec![widened(x(0), x(1), [shape.iter().product::<usize>() / n, n], *group)]
        }
        Op::ChannelScale => {
            let n = last(0);
            let column = |c: usize| x(0).iter().skip(c).step_by(n).copied().collect::<Vec<_>>();
            vec![(0..n).map(|c| step_of(&column(c))).collect()]
        }
        Op::FakeQuantize => {
            let scale = |k: usize| x(1)[k % x(1).len()];
            vec![x(0).iter().enumerate().map(|(k, v)| quantised(*v, scale(k)) * scale(k)).collect()]
        }
        Op::FakeQuantizeGrad => {
            let inside = |k: usize| x(0)[k].abs() <= 127.0 * x(1)[k % x(1).len()];
            vec![x(2).iter().enumerate().map(|(k, dy)| if inside(k) { *dy } else { 0.0 }).collect()]
        }
        Op::Conv2dInt8 { window, input_scale, activation } => {
            let q: Vec<f64> = x(0).iter().map(|v| quantised(*v, *input_scale)).collect();
            let z = conv(window, &q, shape(0), x(1), last(1));
            let z = z.iter().enumerate().map(|(k, z)| z * input_scale * x(2)[k % last(1)]).collect();
            vec![biased(z, node.inputs.get(3), *activation)]
        }
        Op::Conv2dInt8Dynamic { window, activation } => {
            let scale = step_of(x(0));
            let q: Vec<f64> = x(0).iter().map(|v| quantised(*v, scale)).collect();
            let z = conv(window, &q, shape(0), x(1), last(1));
            let z = z.iter().enumerate().map(|(k, z)| z * scale * x(2)[k % last(1)]).collect();
            vec![biased(z, node.inputs.get(3), *activation)]
        }
        Op::Update { .. } | Op::LinearUpdate { .. } | Op::AdjustLossScale { .. } | Op::MoveFp8Scale { .. } => {
            unreachable!("done in place")
        }
    }
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
    row.iter().map(|v| (v - most).exp() / sum).collect()
}

/// Runs an op that writes its operands; `None` for others. `shape` is that of the first operand.
fn in_place(node: &Node, data: &mut [Vec<f64>], updates: u64, shape: &[usize]) -> Option<Vec<Vec<f64>>> {
    let id = |k: usize| node.inputs[k].0;
    let (rule, gradient, states, unscale) = match &node.op {
        Op::MoveFp8Scale { format, margin } => {
            let now = (2..node.inputs.len()).fold(0.0f64, |most, k| most.max(data[id(k)][0]));
            data[id(1)].rotate_right(1);
            data[id(1)][0] = now;
            let most = data[id(1)].iter().copied().fold(0.0, f64::max);
            if let Some(scale) = format.scale(most as f32, *margin) {
                data[id(0)][0] = f64::from(scale);
            }
            return Some(Vec::new());
        }
        Op::Exchange(
            Exchange::StartReduce { .. } | Exchange::AllReduce { .. } | Exchange::LargestOfRanks | Exchange::Send { .. },
        ) => {
            return Some(Vec::new());
        }
        Op::Exchange(Exchange::AllGather { .. }) => {
            let part = data[id(1)].clone();
            for k in (0..node.inputs.len()).filter(|k| *k != 1) {
                data[id(k)] = part.clone();
            }
            return Some(Vec::new());
        }
        Op::AdjustLossScale { growth_interval, largest } => {
            if data[id(3)][0] == 0.0 {
                data[id(0)][0] = (data[id(0)][0] / 2.0).max(0.5);
                data[id(1)] = vec![0.0, data[id(1)][1] + 1.0];
                if data[id(0)][0] < 1.0 {
                    data[id(2)][0] = f64::NAN;
                }
            } else {
                data[id(1)][0] += 1.0;
                if data[id(1)][0] >= f64::from(*growth_interval) {
                    data[id(0)][0] = (data[id(0)][0] * 2.0).min(*largest);
                    data[id(1)][0] = 0.0;
                }
            }
            return Some(Vec::new());
        }
        Op::Update { optimizer, guarded } => {
            let count = node.inputs.len();
            if *guarded && data[id(count - 1)][0] == 0.0 {
                return Some(Vec::new());
            }
            let unscale = if *guarded { 1.0 / data[id(count - 2)][0] } else { 1.0 };
            let end = if *guarded { count - 2 } else { count };
            (optimizer, data[id(1)].clone(), 2..end, unscale)
        }
        Op::LinearUpdate { optimizer } => {
            let (k, n) = (shape[0], shape[1]);
            let rows = data[id(1)].len() / k;
            let g = product(&data[id(1)], &data[id(2)], [k, n, rows], true, false);
            (optimizer, g, 3..node.inputs.len(), 1.0)
        }
        _ => return None,
    };
    let made = match (&node.op, node.outputs.is_empty()) {
        (Op::LinearUpdate { .. }, false) => {
            let (k, n) = (shape[0], shape[1]);
            vec![product(&data[id(2)], &data[id(0)], [data[id(2)].len() / n, k, n], false, true)]
        }
        _ => Vec::new(),
    };
    let mut w = std::mem::take(&mut data[id(0)]);
    let arrays = rule.state_arrays();
    let mut state: Vec<Vec<f64>> = states.clone().take(arrays).map(|k| data[id(k)].clone()).collect();
    optimize(rule, updates, &mut w, &gradient, unscale, &mut state);
    for (k, array) in states.clone().zip(state) {
        data[id(k)] = array;
    }
    if let Some(copy) = states.clone().nth(arrays) {
        data[id(copy)] = w.clone();
    }
    data[id(0)] = w;
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_published_digits() {
        let known = [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (2.9, 0.999_958_902_121_900_5)];
        for (x, y) in known.into_iter().chain([(3.5, 0.999_999_256_901_627_7), (-1.0, -0.842_700_792_949_714_9)]) {
            assert!((erf(x) - y).abs() < 1e-13, "{x}: {} against {y}", erf(x));
        }
    }
}
