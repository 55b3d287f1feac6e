//! Whether a device computes what the graph means: small graphs with all ops, forward and backward, and products of ragged shapes, each on
//! fresh random numbers, against the f64 reference. Used by the tests and by `advisor kernels`.

use super::{Backend, BackendError, Session};
use crate::{
    graph::{Activation, Graph, Op, Program, Role, ValueId, Window, cases::*, fuse, lower, reference},
    vocab::{DType, Vocabulary},
};

/// One program on one storage type.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// `layer norm, bf16, fused`.
    pub name: String,
    /// Largest error of an element over the size of its result.
    pub error: f64,
    pub tolerance: f64,
    /// The result with the largest error, and its element.
    pub worst: String,
}

impl Checked {
    pub fn passes(&self) -> bool {
        // Not a number fails.
        self.error <= self.tolerance
    }
}

/// Storage types with the largest error over the size of a result that roundings explain: bf16 keeps 8 bits, fp16 11; some thirty roundings
/// of half a last place each, in the longest case, add up to these.
pub(super) const STORAGE: [(DType, f64); 3] = [(DType::F32, 2e-5), (DType::Bf16, 0.1), (DType::F16, 0.0125)];

/// Runs every case in every storage type on numbers made from `seed`, as it is built and fused.
///
/// # Errors
/// What the backend answers where it cannot run one.
pub fn check(backend: &dyn Backend, seed: u64) -> Result<Vec<Checked>, BackendError> {
    let mut out = Vec::new();
    for case in CASES {
        for (storage, tolerance) in STORAGE {
            for fused in [false, true] {
                let mut graph = on(&case.forward(), storage);
                if fused {
                    graph = fuse(graph, true);
                }
                with_gradients(&mut graph);
                let name = format!("{}, {}{}", case.name, storage.name(), if fused { ", fused" } else { "" });
                out.push(compare(backend, &graph, seed, name, tolerance, false)?);
            }
        }
    }
    Ok(out)
}

/// Largest error over the size of a result where products round their operands to the 11 significant bits of tf32, of a single product and
/// of a graph, where a dozen come one behind the other.
const TF32: [f64; 2] = [4e-4, 2e-3];

/// Runs every case, and products of up to `most` multiply-adds, in fp32 storage with products of operands rounded to tf32. For devices that
/// have such products.
///
/// # Errors
/// What the backend answers where it cannot run one.
pub fn check_tf32(backend: &dyn Backend, seed: u64, most: usize) -> Result<Vec<Checked>, BackendError> {
    let mut out = Vec::new();
    for case in CASES {
        for fused in [false, true] {
            let mut graph = if fused { fuse(case.forward(), true) } else { case.forward() };
            with_gradients(&mut graph);
            let name = format!("{}, tf32{}", case.name, if fused { ", fused" } else { "" });
            out.push(compare(backend, &graph, seed, name, TF32[1], true)?);
        }
    }
    // What few rows take is fp32.
    for extents in PRODUCTS.iter().filter(|[m, k, n]| *m > 8 && m * k * n <= most) {
        let name = format!("linear {} x {} x {}, tf32", extents[0], extents[1], extents[2]);
        out.push(compare(backend, &linear(*extents, DType::F32), seed, name, TF32[0], true)?);
    }
    Ok(out)
}

/// Extents `[M, K, N]` on and beside the borders of tiles, and one that is large enough for every kernel of a device to be chosen.
const PRODUCTS: [[usize; 3]; 8] = [
    [1, 128, 130],
    [16, 64, 128],
    [65, 72, 127],
    [127, 129, 65],
    [129, 136, 264],
    [256, 512, 256],
    [1000, 500, 1000],
    [2048, 256, 2048],
];

/// Matrix products with a bias, in every storage type, of shapes that are not multiples of any tile among them. For devices: the f64
/// reference of the largest takes seconds.
pub fn check_products(backend: &dyn Backend, seed: u64) -> Result<Vec<Checked>, BackendError> {
    let mut out = Vec::new();
    for [m, k, n] in PRODUCTS {
        for (storage, _) in STORAGE {
            let graph = linear([m, k, n], storage);
            // Sums in fp32; at most two roundings of half a last place, of the product and with the bias, beside sqrt(K) of fp32.
            let tolerance = match storage {
                DType::F32 => 1e-5,
                DType::Bf16 => 1.0 / 128.0,
                _ => 1.0 / 1024.0,
            };
            let name = format!("linear {m} x {k} x {n}, {}", storage.name());
            out.push(compare(backend, &graph, seed, name, tolerance, false)?);
        }
    }
    Ok(out)
}

/// `[N, H, W, C, F]` of images and filters: patches of pixels that fit and that hang over, channels of one chunk of 64, of less and of more.
const CONVOLUTIONS: [[usize; 5]; 4] = [[4, 14, 14, 64, 64], [3, 17, 9, 24, 136], [2, 16, 16, 8, 72], [5, 7, 7, 136, 256]];

/// Convolutions of 3x3 and their gradients in the types of two bytes, of enough channels for every kernel of a device to be chosen.
///
/// # Errors
/// As above.
pub fn check_convolutions(backend: &dyn Backend, seed: u64) -> Result<Vec<Checked>, BackendError> {
    let mut out = Vec::new();
    for [n, h, w, c, f] in CONVOLUTIONS {
        for (storage, tolerance) in [(DType::Bf16, 1.0 / 128.0), (DType::F16, 1.0 / 1024.0)] {
            let (window, image) = (Window::square(3, 1, 1), [n, h, w, c]);
            let mut graph = Graph::new();
            let (x, dy) = (graph.input("x", &image, storage), graph.input("dy", &[n, h, w, f], storage));
            let weight = graph.input("w", &[3, 3, c, f], storage);
            let activation = Activation::None;
            for (name, op, inputs) in [
                ("y", Op::Conv2d { window, activation }, [x, weight]),
                ("dx", Op::Conv2dGradInput { window, input: image }, [dy, weight]),
                ("dw", Op::Conv2dGradWeight { window }, [x, dy]),
            ] {
                let made = graph.apply(op, &inputs).expect("the extents fit");
                graph.mark_output(name, made);
            }
            let name = format!("conv2d 3x3, {n} x {h} x {w} x {c} to {f}, {}", storage.name());
            out.push(compare(backend, &graph, seed, name, tolerance, false)?);
        }
    }
    Ok(out)
}

/// Images of ragged extents under random maps, in fp32 alone, in which they are changed.
///
/// # Errors
/// As above.
pub fn check_warp(backend: &dyn Backend, seed: u64) -> Result<Checked, BackendError> {
    let mut graph = Graph::new();
    let (images, maps) = (graph.input("images", &[5, 17, 9, 3], DType::F32), graph.input("maps", &[5, 6], DType::F32));
    let y = graph.apply(Op::Warp, &[images, maps]).expect("the extents fit");
    graph.mark_output("y", y);
    compare(backend, &graph, seed, "warp".into(), STORAGE[0].1, false)
}

/// `[N, H, W, C, F]` of images and filters, side, stride and padding of the window, inputs of a group: of one input and of many, places where
/// the window hangs over, channels and groups that fill no tile and no group.
const QUANTIZED: [([usize; 5], [usize; 3], usize); 6] = [
    ([3, 6, 5, 2, 16], [3, 1, 1], 32),
    ([2, 7, 9, 3, 33], [1, 1, 0], 32),
    ([2, 9, 7, 15, 8], [3, 2, 1], 64),
    ([1, 5, 8, 40, 20], [1, 2, 0], 32),
    ([2, 8, 6, 5, 4], [2, 1, 1], 8),
    ([2, 12, 12, 32, 64], [3, 1, 1], 128),
];

/// Products of quantised operands: of 8 bits by a given step and by one that is found at run time, and with weights of 4 bits in groups;
/// convolutions, and linear layers of as many inputs.
///
/// # Errors
/// As above.
pub fn check_quantized(backend: &dyn Backend, seed: u64) -> Result<Vec<Checked>, BackendError> {
    let mut out = Vec::new();
    for ([n, h, w, c, f], [side, stride, padding], group) in QUANTIZED {
        let (window, activation) = (Window::square(side, stride, padding), Activation::Relu);
        let (k, mut graph) = (side * side * c, Graph::new());
        let x = graph.input("x", &[n, h, w, c], DType::F32);
        let rows = graph.input("rows", &[n * h, k], DType::F32);
        let bias = graph.bias("b", f, k);
        let eight = graph.state("w8", &[side, side, c, f], DType::I8);
        let matrix = graph.state("m8", &[k, f], DType::I8);
        let scales = graph.input("s8", &[f], DType::F32);
        let four = graph.state("w4", &[k.div_ceil(2), f], DType::I8);
        let steps = graph.state("s4", &[k.div_ceil(group), f], DType::F16);
        // Steps of eighths lie nowhere between two places of the numbers.
        let input_scale = 1.0 / 64.0;
        let mut add = |name: &str, op: Op, inputs: &[ValueId]| {
            let made = graph.apply(op, inputs).expect("the extents fit");
            graph.mark_output(name, made);
            made
        };
        add("conv int8", Op::Conv2dInt8 { window, input_scale, activation }, &[x, eight, scales, bias]);
        add("conv int8-dynamic", Op::Conv2dInt8Dynamic { window, activation }, &[x, eight, scales, bias]);
        let wide = add("int4", Op::DequantizeInt4 { shape: vec![side, side, c, f], group }, &[four, steps]);
        add("conv int4", Op::Conv2d { window, activation }, &[x, wide, bias]);
        add("linear int8", Op::LinearInt8 { input_scale, activation }, &[rows, matrix, scales, bias]);
        add("linear int8-dynamic", Op::LinearInt8Dynamic { activation }, &[rows, matrix, scales, bias]);
        add("linear int4", Op::LinearInt4 { group, activation }, &[rows, four, steps, bias]);
        let name = format!("quantised {side}x{side} by {stride}, {n} x {h} x {w} x {c} to {f}");
        out.push(compare(backend, &graph, seed, name, STORAGE[0].1, false)?);
    }
    Ok(out)
}

/// A product with its bias.
fn linear([m, k, n]: [usize; 3], storage: DType) -> Graph {
    let mut graph = Graph::new();
    let (x, w) = (graph.input("x", &[m, k], storage), graph.weight("w", &[k, n], k, n));
    graph.values[w.0].dtype = storage;
    let b = graph.bias("b", n, k);
    let y = graph.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[x, w]).expect("the extents fit");
    let y = graph.apply(Op::AddBias, &[y, b]).expect("the extents fit");
    graph.mark_output("y", y);
    fuse(graph, true)
}

/// The middle error of three sets of numbers where the first fails: a maximum or a ReLU may choose otherwise after a rounding, on numbers
/// that lie near a tie, and what follows is then another gradient; a wrong kernel errs on all.
fn compare(
    backend: &dyn Backend,
    graph: &Graph,
    seed: u64,
    name: String,
    tolerance: f64,
    rounds_to_tf32: bool,
) -> Result<Checked, BackendError> {
    let on = |seed: u64| compare_on(backend, graph, seed, name.clone(), tolerance, rounds_to_tf32);
    let first = on(seed)?;
    if first.passes() {
        return Ok(first);
    }
    let mut all = [first, on(seed.wrapping_add(1))?, on(seed.wrapping_add(2))?];
    // Not a number counts as the largest.
    all.sort_by(|a, b| a.error.is_nan().cmp(&b.error.is_nan()).then(a.error.total_cmp(&b.error)));
    let [_, middle, _] = all;
    Ok(middle)
}

fn compare_on(
    backend: &dyn Backend,
    graph: &Graph,
    seed: u64,
    name: String,
    tolerance: f64,
    rounds_to_tf32: bool,
) -> Result<Checked, BackendError> {
    let data = contents(graph, seed);
    let mut expected = data.clone();
    reference::run(&graph.values, &graph.nodes, &mut expected, 0);
    let mut session = backend.load(Program { rounds_to_tf32, ..lower(graph) }, None)?;
    upload(&mut *session, &data)?;
    session.execute()?;
    let (error, worst) = worst_error(&mut *session, graph, &expected, seed)?;
    Ok(Checked { name, error, tolerance, worst })
}

/// The largest error of an output's element over the size of its output, and where it lies.
pub(super) fn worst_error(
    session: &mut dyn Session,
    graph: &Graph,
    expected: &[Vec<f64>],
    seed: u64,
) -> Result<(f64, String), BackendError> {
    let (mut largest, mut worst) = (0.0, "none".to_string());
    for (output, id) in &graph.outputs {
        let mut got = vec![f32::NAN; graph.value(*id).elements()];
        session.download_f32(*id, &mut got)?;
        let size = size_of(graph, *id, expected);
        for (k, (got, want)) in got.iter().zip(&expected[id.0]).enumerate() {
            let error = (f64::from(*got) - want).abs() / size;
            if error > largest || error.is_nan() {
                (largest, worst) = (error, format!("{output}[{k}] is {got}, not {want} (seed {seed})"));
            }
            if error.is_nan() {
                return Ok((largest, worst));
            }
        }
    }
    Ok((largest, worst))
}

/// What errors of a result are measured against: its largest element, as single elements may cancel to anything. All elements of a sum over
/// rows may (the gradient of a key's bias is 0, since softmax does not see it), so there its largest term counts as well.
fn size_of(graph: &Graph, id: ValueId, expected: &[Vec<f64>]) -> f64 {
    let largest = |id: ValueId| expected[id.0].iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let maker = |id: ValueId| graph.producer(id).map(|k| &graph.nodes[k]);
    let mut node = maker(id);
    while let Some(cast) = node.filter(|node| matches!(node.op, Op::Cast { .. })) {
        node = maker(cast.inputs[0]);
    }
    let terms = node.filter(|node| matches!(node.op, Op::SumLeading)).map_or(0.0, |node| largest(node.inputs[0]));
    largest(id).max(terms).max(1e-3)
}

/// Uploads what a graph starts from. Values that are not floats hold whole numbers.
pub(super) fn upload(session: &mut dyn Session, data: &[Vec<f64>]) -> Result<(), BackendError> {
    for (k, value) in session.program().values.clone().iter().enumerate() {
        if value.role == Role::Intermediate || session.program().slot_of[k].is_none() {
            continue;
        }
        match value.dtype {
            DType::I32 => session.upload_i32(ValueId(k), &data[k].iter().map(|v| *v as i32).collect::<Vec<_>>()),
            DType::I8 => session.upload_i8(ValueId(k), &data[k].iter().map(|v| *v as i8).collect::<Vec<_>>()),
            _ => session.upload_f32(ValueId(k), &data[k].iter().map(|v| *v as f32).collect::<Vec<_>>()),
        }?;
    }
    Ok(())
}

/// The same graph on `storage`: parameters themselves are of that type, as reference and device then start from the same numbers.
pub(super) fn on(graph: &Graph, storage: DType) -> Graph {
    let mut out = Graph::new();
    for value in &graph.values {
        let mut value = value.clone();
        let vector = matches!(value.role, Role::Parameter { is_bias: true, .. });
        if value.dtype == DType::F32 && !vector && value.role != Role::Intermediate {
            value.dtype = storage;
        }
        out.values.push(value);
    }
    // Results are made anew behind the given values, so that their types follow.
    let mut now: Vec<ValueId> = graph.ids().collect();
    for node in &graph.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|id| now[id.0]).collect();
        let made = out.apply_all(node.op.clone(), &inputs).expect("another type changes no shape");
        for (old, new) in node.outputs.iter().zip(made) {
            now[old.0] = new;
        }
    }
    for (name, id) in &graph.outputs {
        out.mark_output(name, now[id.0]);
    }
    out
}
