//! Each instruction that `kernels/common.cuh`, `hopper.cuh` and `hopper_narrow.cuh` wrap, held on a device against its twin on the CPU: where they
//! differ, a kernel that is right in the tests may be wrong on the device.
//!
//! The twins' answers to fixed inputs are recorded in `tests/vectors/conformance.json`, so that a released program can check a device
//! without them. After a change of a twin, a case or an input: `ADVISOR_RECORD=1 cargo test --release --lib conformance`.

use super::{
    driver::Driver,
    kernel::{In, Kernel, Out},
    machine::{Address, CudaError, Launch, Machine, TensorMap, encode_maps},
};
use crate::vocab::{DType, Fp8Format, Vocabulary};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::Range};

static RECORDED: &[u8] = include_bytes!("../../../tests/vectors/conformance.json");

/// Longer answers are recorded as one hash for each line of 256 bytes: enough to say where the first difference lies.
const LONGEST_WHOLE: usize = 8192;
const LINE: usize = 256;

/// How far a device may be from the twin.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Same {
    Bits,
    /// Words are f32, at most so many representable numbers apart; every NaN is like every other, +0 like -0.
    Ulps(u32),
}

/// What a case said.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Same,
    /// The first word of the answer (or line of 64 words, where only those are recorded) that is too far off, with both values.
    Differs {
        at: usize,
        expected: String,
        got: String,
        wrong: usize,
    },
    /// The device has no image of the entry, or the launch failed.
    NotRun(String),
}

/// One instruction on one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    pub name: String,
    /// Kernel that holds the instruction.
    pub entry: String,
    /// Words of 4 bytes in the answer.
    pub words: usize,
    pub verdict: Verdict,
}

struct Case {
    name: String,
    entry: String,
    grid: u32,
    block: u32,
    shared_bytes: u32,
    /// The number that the kernel takes beside its input.
    count: u64,
    /// For the copy engine: the input is a matrix, of which the kernel takes boxes.
    matrix: Option<Boxes>,
    /// The same of a tensor.
    tensor: Option<TensorBoxes>,
    input: Vec<u32>,
    words: usize,
    same: Same,
}

/// A matrix of 16-bit numbers and the boxes of 64 columns that cover it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Boxes {
    dtype: DType,
    rows: usize,
    columns: usize,
    /// Rows of a box.
    height: usize,
}

impl Boxes {
    fn across(&self) -> usize {
        self.columns.div_ceil(64)
    }

    fn down(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    fn bytes_of_one(&self) -> usize {
        128 * self.height
    }
}

/// A tensor of 16-bit numbers, or of bytes, of 3 or 4 dimensions, the innermost first, and boxes of it at places in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct TensorBoxes {
    dtype: DType,
    rank: usize,
    extents: [usize; 4],
    tile: [u32; 4],
    first: [i32; 4],
    step: [i32; 4],
    count: u32,
}

impl TensorBoxes {
    fn bytes_of_one(&self) -> usize {
        self.dtype.size() * self.tile.iter().product::<u32>() as usize
    }
}

/// Every bit of the file follows from it and the table below.
const SEED: u64 = 20_240;

/// SplitMix64: any generator will do, if it stays the same.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.word()).collect()
    }

    fn between(&mut self, range: &Range<f32>) -> f32 {
        range.start + (self.word() >> 8) as f32 / (1 << 24) as f32 * (range.end - range.start)
    }

    fn floats(&mut self, count: usize, range: Range<f32>) -> Vec<u32> {
        (0..count).map(|_| self.between(&range).to_bits()).collect()
    }

    /// A whole number of at most `most` in absolute value.
    fn small(&mut self, most: u32) -> f32 {
        (self.word() % (2 * most + 1)) as f32 - most as f32
    }

    /// What a rounding may get wrong: zeros, infinities, NaN, the ends of each format, halves between two numbers of the narrower
    /// formats, and any bits.
    fn hard_floats(&mut self, count: usize) -> Vec<u32> {
        const ENDS: [u32; 24] = [
            0x0000_0000,
            0x8000_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0xffc0_0001,
            0x7fff_ffff,
            0x7f7f_ffff,
            0xff7f_ffff,
            0x0000_0001,
            0x807f_ffff,
            0x0080_0000, // the ends of f32
            0x477f_e000,
            0x477f_efff,
            0x477f_f000,
            0x477f_f001,
            0x3880_0000,
            0x387f_ffff,
            0x3380_0000,
            0x3300_0000,
            0x3300_0001,
            0x3f80_0000, // of f16
            0x7f7f_7fff,
            0x7f7f_8000, // of bf16
        ];
        let mut out = ENDS[..ENDS.len().min(count)].to_vec();
        while out.len() < count {
            let any = self.word();
            // Exponents that f16 has, from below its subnormal numbers to above its largest.
            let near = any & 0x807f_ffff | (self.word() % 46 + 101) << 23;
            out.push(match out.len() % 4 {
                0 => any,
                1 => near,
                2 => near & !0x1fff | 0x1000,
                _ => near & !0xffff | 0x8000,
            });
        }
        out
    }
}

/// Two elements of 16 bits in a word.
fn pairs(count: usize, mut element: impl FnMut() -> u16) -> Vec<u32> {
    (0..count).map(|_| u32::from(element()) | u32::from(element()) << 16).collect()
}

/// Words for one warp's product: A and B by `operands`, the sum by `sum`.
fn fragments(random: &mut Random, operands: fn(&mut Random) -> u32, sum: fn(&mut Random) -> u32) -> Vec<u32> {
    let mut out: Vec<u32> = (0..6 * 32).map(|_| operands(random)).collect();
    out.extend((0..4 * 32).map(|_| sum(random)));
    out
}

fn cases() -> Vec<Case> {
    const COUNT: usize = 512;
    let mut random = Random(SEED);
    let random = &mut random;
    let mut all = Vec::new();
    let mut add = |name: &str, entry: &str, (grid, block, shared_bytes): (u32, u32, u32), count, input, words, same| {
        let (name, entry) = (name.to_string(), format!("conform_{entry}"));
        all.push(Case { name, entry, grid, block, shared_bytes, count, matrix: None, tensor: None, input, words, same });
    };
    let (words, one_warp) = ((4, 128, 0), (1, 32, 0));
    let n = COUNT as u64;
    let exact_f32 = Same::Ulps(0);

    add("f16 to f32", "f16_to_f32", words, n, random.words(COUNT), COUNT, exact_f32);
    add("bf16 to f32", "bf16_to_f32", words, n, random.words(COUNT), COUNT, Same::Bits);
    add("f32 to f16", "f32_to_f16", words, n, random.hard_floats(COUNT), COUNT, Same::Bits);
    add("f32 to bf16", "f32_to_bf16", words, n, random.hard_floats(COUNT), COUNT, Same::Bits);
    add("f32 to tf32", "f32_to_tf32", words, n, random.hard_floats(COUNT), COUNT, exact_f32);
    // 2 + floor(1.173 |x|) of the device, and 1 of the C library behind the twin.
    add("exp, small", "exp_fast", words, n, random.floats(COUNT, -16.0..16.0), COUNT, Same::Ulps(21));
    add("exp, large", "exp_fast", words, n, random.floats(COUNT, -80.0..80.0), COUNT, Same::Ulps(96));
    // 2 of the device, 1 of a square root and a division.
    add("reciprocal root", "reciprocal_root", words, n, random.hard_floats(COUNT), COUNT, Same::Ulps(3));
    add("square root", "square_root", words, n, random.hard_floats(COUNT), COUNT, exact_f32);
    add("round to even", "round_even", words, n, random.floats(COUNT, -40.0..40.0), COUNT, exact_f32);
    add(
        "round halves",
        "round_even",
        words,
        n,
        (0..COUNT).map(|k| (k as f32 / 2.0 - 99.5).to_bits()).collect(),
        COUNT,
        exact_f32,
    );
    add("count bits", "count_bits", words, n, random.words(COUNT), COUNT, Same::Bits);
    add("fused multiply-add", "fused", words, n, random.hard_floats(3 * COUNT), COUNT, exact_f32);
    add("fused, cancelling", "fused", words, n, random.floats(3 * COUNT, -1.0..1.0), COUNT, exact_f32);
    add("division", "divide", words, n, random.hard_floats(2 * COUNT), COUNT, exact_f32);
    let mut bytes = random.words(2 * COUNT);
    // The sums stay far from overflow, which C++ leaves open.
    bytes.extend((0..COUNT).map(|_| (random.word() as i32 >> 8) as u32));
    add("dot of four bytes", "dot4", words, n, bytes, COUNT, Same::Bits);
    add("shuffles, ballot, sums of a warp", "warp", one_warp, 0, random.words(64), 224, Same::Bits);
    add("atomics and fence", "atomics", (4, 64, 0), 0, random.words(256), 2 + 256 + 3 + 4, Same::Bits);
    add("copies without registers", "copy_async", (1, 128, 0), 0, random.words(640), 640, Same::Bits);
    add("matrix load", "load_matrix", one_warp, 0, random.words(160), 128, Same::Bits);
    add("matrix load, transposed", "load_matrix_transposed", one_warp, 0, random.words(160), 128, Same::Bits);

    let sum: fn(&mut Random) -> u32 = |r| r.small(100).to_bits();
    let whole_f16 = |r: &mut Random| pairs(1, || f16::from_f32(r.small(4)).to_bits())[0];
    let whole_bf16 = |r: &mut Random| pairs(1, || bf16::from_f32(r.small(4)).to_bits())[0];
    // Low bits that are to be dropped.
    let whole_tf32 = |r: &mut Random| r.small(4).to_bits() & !0x1fff | r.word() & 0x1fff;
    add("mma f16, whole numbers", "mma_f16", one_warp, 0, fragments(random, whole_f16, sum), 128, Same::Bits);
    add("mma bf16, whole numbers", "mma_bf16", one_warp, 0, fragments(random, whole_bf16, sum), 128, Same::Bits);
    add("mma tf32, whole numbers", "mma_tf32", one_warp, 0, fragments(random, whole_tf32, sum), 128, exact_f32);
    let byte_sum = |r: &mut Random| (r.word() as i32 >> 8) as u32;
    add("mma i8", "mma_i8", one_warp, 0, fragments(random, Random::word, byte_sum), 128, Same::Bits);
    // All positive: each of 17 terms is cut to no less than the 24 bits of the largest term, and the sum is larger than any of them.
    let near_one: fn(&mut Random) -> u32 = |r| r.between(&(0.5..1.5)).to_bits();
    let near_one_f16 = |r: &mut Random| pairs(1, || f16::from_f32(r.between(&(0.5..1.5))).to_bits())[0];
    let near_one_bf16 = |r: &mut Random| pairs(1, || bf16::from_f32(r.between(&(0.5..1.5))).to_bits())[0];
    add("mma f16, fractions", "mma_f16", one_warp, 0, fragments(random, near_one_f16, near_one), 128, Same::Ulps(8));
    add("mma bf16, fractions", "mma_bf16", one_warp, 0, fragments(random, near_one_bf16, near_one), 128, Same::Ulps(8));
    add("mma tf32, fractions", "mma_tf32", one_warp, 0, fragments(random, near_one, near_one), 128, Same::Ulps(8));

    for dtype in ["f16", "bf16"] {
        let input = random.hard_floats(2 * COUNT);
        add(&format!("pair of {dtype}"), &format!("pack_{dtype}"), words, n, input, COUNT, Same::Bits);
    }
    add("mbarrier ring", "mbarrier", (1, 128, 64 + 256), 11, random.words(11 * 32), 11 * 96, Same::Bits);
    add("registers moved", "registers", (1, 384, 0), 0, random.words(384), 384, Same::Bits);
    for dtype in ["f16", "bf16"] {
        for layout in ["nn", "nt", "tn"] {
            for width in [128, 256] {
                let bytes = 8192 + 128 * width;
                let element = || match dtype {
                    "f16" => f16::from_f32(random.small(4)).to_bits(),
                    _ => bf16::from_f32(random.small(4)).to_bits(),
                };
                let input = pairs(bytes / 4, element);
                // Adds to what is there in one width, replaces it in the other.
                let count = u64::from(width == 128);
                let entry = format!("wgmma_{dtype}_{layout}_{width}");
                add(
                    &format!("wgmma {dtype} {layout} {width}"),
                    &entry,
                    (1, 128, bytes as u32),
                    count,
                    input,
                    64 * width,
                    Same::Bits,
                );
            }
        }
    }
    // The last boxes reach beyond the matrix on both sides.
    for (dtype, height, rows) in [(DType::F16, 64, 100), (DType::Bf16, 64, 100), (DType::Bf16, 128, 200), (DType::Bf16, 256, 300)]
    {
        let boxes = Boxes { dtype, rows, columns: 136, height };
        all.push(Case {
            name: format!("copy engine, {} boxes of {height} x 64", dtype.name()),
            entry: "conform_tma".into(),
            grid: 1,
            block: 128,
            // Two boxes, then their barriers.
            shared_bytes: (2 * boxes.bytes_of_one() + 16) as u32,
            count: 0,
            matrix: Some(boxes),
            tensor: None,
            input: random.words(rows * boxes.columns / 2),
            words: boxes.across() * boxes.down() * boxes.bytes_of_one() / 4,
            same: Same::Bits,
        });
    }
    for dtype in ["f16", "bf16"] {
        for layout in ["nn", "nt", "tn"] {
            let element = || match dtype {
                "f16" => f16::from_f32(random.small(4)).to_bits(),
                _ => bf16::from_f32(random.small(4)).to_bits(),
            };
            let bytes = 2 * 8192;
            let (name, entry) = (format!("wgmma {dtype} {layout} 64"), format!("conform_wgmma_{dtype}_{layout}_64"));
            let (input, words) = (pairs(bytes / 4, element), 64 * 64);
            let (grid, block, shared_bytes, count) = (1, 128, bytes as u32, u64::from(layout == "nt"));
            let (matrix, tensor, same) = (None, None, Same::Bits);
            all.push(Case { name, entry, grid, block, shared_bytes, count, matrix, tensor, input, words, same });
        }
    }
    // Boxes begin before the tensor and end beyond it, in every dimension; the last lies outside of it.
    let weights = |dtype, tile| {
        let (extents, first, step) = ([72, 40, 9, 1], [-8, -40, 2, 0], [40, 32, 3, 0]);
        TensorBoxes { dtype, rank: 3, extents, tile, first, step, count: 4 }
    };
    let images = |dtype, tile| {
        let (extents, first, step) = ([72, 9, 7, 3], [0, -3, -2, -1], [32, 4, 3, 1]);
        TensorBoxes { dtype, rank: 4, extents, tile, first, step, count: 5 }
    };
    // Rows of 144 bytes in boxes of 128.
    let bytes = TensorBoxes {
        dtype: DType::U8,
        rank: 3,
        extents: [144, 40, 9, 1],
        tile: [128, 16, 1, 1],
        first: [-16, -8, 0, 0],
        step: [48, 12, 2, 0],
        count: 4,
    };
    let all_boxes = [
        weights(DType::F16, [64, 64, 1, 1]),
        weights(DType::Bf16, [64, 128, 1, 1]),
        images(DType::F16, [64, 8, 10, 1]),
        images(DType::Bf16, [64, 7, 2, 4]),
        bytes,
    ];
    for boxes in all_boxes {
        let bytes = boxes.bytes_of_one();
        let [x, y, z, w] = boxes.tile;
        all.push(Case {
            name: format!("copy engine, {} boxes of {x} x {y} x {z} x {w}", boxes.dtype.name()),
            entry: format!("conform_tma_{}d", boxes.rank),
            grid: 1,
            block: 128,
            shared_bytes: bytes as u32 + 16,
            count: 0,
            matrix: None,
            tensor: Some(boxes),
            input: random.words(boxes.extents.iter().product::<usize>() * boxes.dtype.size() / 4),
            words: boxes.count as usize * bytes / 4,
            same: Same::Bits,
        });
    }
    all.extend(narrow_cases(random));
    all
}

/// Those of `hopper_narrow.cuh`.
fn narrow_cases(random: &mut Random) -> Vec<Case> {
    const COUNT: usize = 512;
    let case = |name: &str, entry: String, [grid, block, shared_bytes]: [u32; 3], count, input, words| {
        let (name, same) = (name.to_string(), Same::Bits);
        Case { name, entry, grid, block, shared_bytes, count, matrix: None, tensor: None, input, words, same }
    };
    let mut all = Vec::new();
    for format in [Fp8Format::E4m3, Fp8Format::E5m2] {
        // Every code, halves between two of them and what lies beside, then what any rounding may get wrong.
        let near: Vec<f32> = (0..=255u8).map(|code| format.decode(code)).collect();
        let beside = near.iter().map(|x| x * 1.0625).chain(near.iter().map(|x| x * 1.125 + f32::MIN_POSITIVE));
        let mut input: Vec<u32> = near.iter().copied().chain(beside).map(f32::to_bits).take(COUNT).collect();
        input.extend(random.hard_floats(COUNT));
        let name = format.name();
        all.push(case(&format!("codes of {name}"), format!("conform_codes_{name}"), [4, 128, 0], COUNT as u64, input, COUNT));
    }
    for (number, (a, b)) in
        [(Fp8Format::E4m3, Fp8Format::E4m3), (Fp8Format::E5m2, Fp8Format::E4m3), (Fp8Format::E4m3, Fp8Format::E5m2)]
            .into_iter()
            .enumerate()
    {
        let mut codes =
            |format: Fp8Format, count: usize| -> Vec<u8> { (0..count).map(|_| format.encode(random.small(4))).collect() };
        let bytes = [codes(a, 8192), codes(b, 16_384)].concat();
        let words = bytes.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
        let (a, b) = (a.name(), b.name());
        let shape = [1, 128, bytes.len() as u32];
        all.push(case(&format!("wgmma {a} {b}"), format!("conform_wgmma_{a}_{b}"), shape, number as u64 % 2, words, 64 * 128));
    }
    for (name, is_half) in [("bf16", false), ("f16", true)] {
        let element = || {
            let x = random.small(4);
            if is_half { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() }
        };
        let mut input = pairs((8192 + 16_384) / 4, element);
        // Any two places in order, of eight fours a lane.
        let place = |random: &mut Random| [0x4, 0x8, 0x9, 0xc, 0xd, 0xe][random.word() as usize % 6];
        input.extend((0..128).map(|_| (0..8).fold(0u32, |word, _| word << 4 | place(random))));
        let shape = [1, 128, 8192 + 16_384];
        let entry = format!("conform_wgmma_two_four_{name}");
        all.push(case(&format!("wgmma two of four {name}"), entry, shape, u64::from(is_half), input, 64 * 128));
    }
    all
}

/// Runs a case and gives the bytes of its answer.
fn answer(machine: &dyn Machine, case: &Case) -> Result<Vec<u8>, CudaError> {
    let x = machine.allocate(4 * case.input.len())?;
    let y = machine.allocate(4 * case.words);
    let run = |y: Address| {
        machine.upload(x, bytemuck::cast_slice(&case.input))?;
        let mut launch = launch(case, x, y);
        encode_maps(machine, std::iter::once(&mut launch))?;
        machine.launch(&launch)?;
        let mut bytes = vec![0; 4 * case.words];
        machine.download(y, &mut bytes)?;
        Ok(bytes)
    };
    let got = y.and_then(|y| {
        let got = run(y);
        machine.release(y);
        got
    });
    machine.release(x);
    got
}

fn launch(case: &Case, x: Address, y: Address) -> Launch {
    if let Some(boxes) = case.matrix {
        let Boxes { dtype, rows, columns, height } = boxes;
        let map = TensorMap::matrix(x, dtype, [rows, columns], [height as u32, 64]);
        let numbers = [height, boxes.across(), boxes.down()].map(|number| number as u32);
        let kernel = Kernel::<(TensorMap, Out<u32>, [u32; 3], [u32; 11])>::new(case.entry.clone(), case.block);
        return kernel.launch([case.grid, 1, 1], case.shared_bytes, (map, Out::at(y), numbers, [0; 11]));
    }
    if let Some(boxes) = case.tensor {
        let TensorBoxes { dtype, rank, extents, tile, first, step, count } = boxes;
        let map = TensorMap { base: x, dtype, rank, extents, tile };
        let mut numbers = [0; 14];
        numbers[..2].copy_from_slice(&[boxes.bytes_of_one() as u32, count]);
        numbers[2..6].copy_from_slice(&first.map(|x| x as u32));
        numbers[6..10].copy_from_slice(&step.map(|x| x as u32));
        let kernel = Kernel::<(TensorMap, Out<u32>, [u32; 14])>::new(case.entry.clone(), case.block);
        return kernel.launch([case.grid, 1, 1], case.shared_bytes, (map, Out::at(y), numbers));
    }
    let kernel = Kernel::<(In<u32>, Out<u32>, u64)>::new(case.entry.clone(), case.block);
    kernel.launch([case.grid, 1, 1], case.shared_bytes, (In::at(x), Out::at(y), case.count))
}

#[derive(Serialize, Deserialize)]
struct Recording {
    schema: u32,
    cases: BTreeMap<String, Vector>,
}

/// The twin's answer to a case, in hexadecimal digits.
#[derive(Serialize, Deserialize, PartialEq)]
struct Vector {
    /// Hash of the input, which the table makes anew.
    input: String,
    /// The bytes, or the hashes of their lines.
    answer: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// FNV-1a: finds what differs by chance; nobody forges answers.
fn hash(bytes: &[u8]) -> [u8; 8] {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)).to_le_bytes()
}

fn vector(case: &Case, answer: &[u8]) -> Vector {
    let kept = match answer.len() <= LONGEST_WHOLE {
        true => hex(answer),
        false => answer.chunks(LINE).map(|line| hex(&hash(line))).collect(),
    };
    Vector { input: hex(&hash(bytemuck::cast_slice(&case.input))), answer: kept }
}

/// How many f32 lie between two.
fn distance(a: u32, b: u32) -> u32 {
    let ordered = |bits: u32| if bits >> 31 == 1 { -i64::from(bits & 0x7fff_ffff) } else { i64::from(bits) };
    let is_nan = |bits: u32| bits & 0x7fff_ffff > 0x7f80_0000;
    match (is_nan(a), is_nan(b)) {
        (true, true) => 0,
        (false, false) => (ordered(a) - ordered(b)).unsigned_abs() as u32,
        _ => u32::MAX,
    }
}

/// Compares an answer with the recorded one.
fn judge(case: &Case, recorded: Option<&Vector>, got: &[u8]) -> Verdict {
    let Some(recorded) = recorded else { return Verdict::NotRun("no answer is recorded for it".into()) };
    let mine = vector(case, got);
    if mine.input != recorded.input || mine.answer.len() != recorded.answer.len() {
        return Verdict::NotRun("the recorded answer is of another input: record anew".into());
    }
    let digits = if got.len() <= LONGEST_WHOLE { 8 } else { 16 };
    let pieces = (0..mine.answer.len() / digits).map(|k| (k, k * digits..(k + 1) * digits));
    let wrong: Vec<_> = pieces
        .filter(|(_, at)| {
            let (expected, got) = (&recorded.answer[at.clone()], &mine.answer[at.clone()]);
            // The digits of a word are its bytes in memory.
            let word = |digits: &str| u32::from_str_radix(digits, 16).map(u32::swap_bytes);
            match (case.same, word(expected), word(got)) {
                (Same::Ulps(most), Ok(expected), Ok(got)) => distance(expected, got) > most,
                _ => expected != got,
            }
        })
        .collect();
    match wrong.first() {
        None => Verdict::Same,
        Some((at, digits)) => {
            let (expected, got) = (recorded.answer[digits.clone()].to_string(), mine.answer[digits.clone()].to_string());
            Verdict::Differs { at: *at, expected, got, wrong: wrong.len() }
        }
    }
}

fn check(machine: &dyn Machine) -> Vec<Checked> {
    let recorded: Recording = serde_json::from_slice(RECORDED).expect("a test reads the same file");
    let checked = |case: Case| {
        let verdict = match answer(machine, &case) {
            Ok(got) => judge(&case, recorded.cases.get(&case.name), &got),
            Err(error) => Verdict::NotRun(error.to_string()),
        };
        Checked { name: case.name, entry: case.entry, words: case.words, verdict }
    };
    cases().into_iter().map(checked).collect()
}

/// Runs every case on a device. A case whose kernel has no image for the device is `NotRun`, with the reason.
///
/// # Errors
/// Where the device cannot be opened.
pub fn conformance(ordinal: usize) -> Result<Vec<Checked>, CudaError> {
    Ok(check(&Driver::open(ordinal)?))
}

#[cfg(test)]
mod tests {
    use super::{super::emulated::Emulated, *};

    /// The twins, under two schedules of the fibers, answer as recorded; where `ADVISOR_RECORD` is set, the first is recorded.
    #[test]
    fn the_twins_answer_as_recorded() {
        let Some(machine) = Emulated::open(0) else { return };
        if std::env::var_os("ADVISOR_RECORD").is_some() {
            let answers = cases().into_iter().map(|case| (case.name.clone(), vector(&case, &answer(&machine, &case).unwrap())));
            let text = serde_json::to_string_pretty(&Recording { schema: 1, cases: answers.collect() }).unwrap();
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/conformance.json"), text + "\n").unwrap();
            return;
        }
        for schedule in [0, 7] {
            let machine = Emulated::open(schedule).unwrap();
            for Checked { name, verdict, .. } in check(&machine) {
                assert_eq!(verdict, Verdict::Same, "{name}, schedule {schedule}");
            }
        }
    }

    #[test]
    fn every_case_is_recorded_and_every_entry_has_a_case() {
        let recorded: Recording = serde_json::from_slice(RECORDED).unwrap();
        let mut names: Vec<String> = cases().into_iter().map(|case| case.name).collect();
        names.sort();
        assert_eq!(names, recorded.cases.into_keys().collect::<Vec<_>>(), "record anew");
        let used: Vec<String> = cases().into_iter().map(|case| case.entry).collect();
        let files = [include_str!("../../../kernels/built/manifest.json")];
        let manifest: serde_json::Value = serde_json::from_str(files[0]).unwrap();
        for file in ["conformance", "conformance_hopper", "conformance_narrow"] {
            let kernels = manifest["files"][file]["images"]["sm_90a"]["kernels"].as_object().unwrap();
            assert!(!kernels.is_empty());
            for kernel in kernels.keys() {
                assert!(used.contains(kernel), "{kernel} has no case");
            }
        }
    }

    #[test]
    fn a_wrong_bit_is_found_where_it_lies() {
        let case = |words: usize, same| Case {
            name: "planted".into(),
            entry: "none".into(),
            grid: 1,
            block: 1,
            shared_bytes: 0,
            count: 0,
            matrix: None,
            tensor: None,
            input: vec![1],
            words,
            same,
        };
        let bits = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
        let (short, right) = (case(4, Same::Ulps(1)), bits(&[1.0, f32::NAN, 0.0, -2.0]));
        let recorded = vector(&short, &right);
        let judged = |got: &[f32]| judge(&short, Some(&recorded), &bits(got));
        assert_eq!(judged(&[1.0 + f32::EPSILON, -f32::NAN, -0.0, -2.0]), Verdict::Same);
        assert!(matches!(judged(&[1.0, f32::NAN, 0.0, 2.0]), Verdict::Differs { at: 3, wrong: 1, .. }));
        assert!(matches!(judged(&[1.0, 1.0, 0.0, -2.000001]), Verdict::Differs { at: 1, wrong: 2, .. }));
        let exact = case(4, Same::Bits);
        let got = bits(&[1.0 + f32::EPSILON, f32::NAN, 0.0, -2.0]);
        assert!(matches!(judge(&exact, Some(&recorded), &got), Verdict::Differs { at: 0, .. }));

        let long = case(4096, Same::Bits);
        let mut answer = vec![7u8; 4 * 4096];
        let recorded = vector(&long, &answer);
        assert_eq!(judge(&long, Some(&recorded), &answer), Verdict::Same);
        answer[3 * LINE + 5] ^= 1;
        assert!(matches!(judge(&long, Some(&recorded), &answer), Verdict::Differs { at: 3, wrong: 1, .. }));
        assert!(matches!(judge(&long, None, &answer), Verdict::NotRun(_)));
    }
}
