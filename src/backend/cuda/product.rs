//! Which kernel, tile and parts of K make a matrix product on a device. A small model of rounds, tensor cores and memory puts the compiled
//! configurations in order; what was measured on the same device (`tune`) goes before it. Pure.

use super::{
    kernel::{Element, In, Kernel, Out},
    machine::{Address, Facts, Launch, TensorMap},
};
use crate::vocab::{DType, Vocabulary};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// `C = op(A) op(B)`, row-major, `batch` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    /// A is stored `[K, M]`.
    pub transpose_a: bool,
    /// B is stored `[N, K]`.
    pub transpose_b: bool,
    /// Of A and B.
    pub input: DType,
    /// Of C.
    pub output: DType,
    /// Whether fp32 operands are rounded to tf32 for tensor cores.
    pub rounds_to_tf32: bool,
}

/// Kernels for products: each is a family of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Family {
    /// gemm_f32.cu: fp32 on CUDA cores.
    Cores,
    /// gemm_f32.cu: at most eight rows, B read once.
    Stream,
    /// gemm_mma.cu: tensor cores by warps.
    Mma,
    /// gemm_wgmma.cu: tensor cores by warpgroups, fed by the tensor memory engine.
    Wgmma,
}

/// One way to make a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Config {
    pub family: Family,
    /// Rows and columns of C that a block makes at a time.
    pub tile: [usize; 2],
    /// Parts of K, summed up by a second kernel.
    pub splits: usize,
}

/// What the model knows of a tile. The shares are estimates from published figures of such kernels (the `wgmma` worklogs at 77 to 82 % of
/// the peak, `mma.sync` at 62 % of it on Hopper and 90 % elsewhere, fp32 at 90 %); only ratios between tiles matter.
struct Tile {
    family: Family,
    extents: [usize; 2],
    threads: u32,
    /// Elements of K a step, for operands of two bytes.
    step: usize,
    /// Blocks that a multiprocessor holds.
    resident: usize,
    /// Share of the peak rate that a full multiprocessor reaches.
    share: f64,
    /// Part of that share which one block alone reaches.
    alone: f64,
}

const fn tile(family: Family, extents: [usize; 2], threads: u32, step: usize, resident: usize, share: f64, alone: f64) -> Tile {
    Tile { family, extents, threads, step, resident, share, alone }
}

const TILES: [Tile; 9] = [
    tile(Family::Wgmma, [128, 256], 384, 64, 1, 0.82, 1.0),
    tile(Family::Wgmma, [128, 128], 384, 64, 1, 0.72, 1.0),
    tile(Family::Mma, [128, 128], 128, 32, 2, 0.9, 0.6),
    tile(Family::Mma, [64, 64], 128, 32, 4, 0.8, 0.35),
    tile(Family::Cores, [64, 128], 128, 16, 3, 0.9, 0.5),
    tile(Family::Cores, [64, 64], 128, 16, 4, 0.8, 0.35),
    // Its warps share out a step's K: what one block alone does is not much, but it is short.
    tile(Family::Cores, [32, 32], 128, 64, 3, 0.5, 0.4),
    tile(Family::Stream, [8, 128], 256, 8, 8, 0.5, 0.25),
    tile(Family::Stream, [8, 32], 256, 128, 8, 0.5, 0.25),
];

/// Dynamic shared memory of gemm_wgmma.cu: its ring of 192 KiB and the barriers.
pub(super) const WGMMA_SHARED_BYTES: u32 = 196_736;

/// Least elements of K in a part.
const LEAST_PART: usize = 256;

/// Cycles from a block's start to its first multiplication, and of one more kernel in a recorded sequence: about 1 and 2 microseconds.
pub(super) const FILL_CYCLES: f64 = 1500.0;
pub(super) const LAUNCH_CYCLES: f64 = 3500.0;

/// Rates of one multiprocessor per cycle.
pub(super) struct Rates {
    /// FLOP on tensor cores with operands of two bytes.
    pub tensor: f64,
    fp32: f64,
    /// Share of `tensor` that `mma.sync` can be issued at.
    mma: f64,
    pub memory_bytes: f64,
    pub cache_bytes: f64,
}

/// NVIDIA's data sheets and white papers of A100, A10, L4 and H100. On Hopper `mma.sync` can be issued at 65 % of the peak (arXiv
/// 2402.13499), of which our kernels reach half: 130 to 145 TFLOP/s in fp16 and in tf32, on an H200 (reports/gpu).
pub(super) fn rates(capability: (u32, u32)) -> Rates {
    match capability {
        (8, 0) => Rates { tensor: 2048.0, fp32: 128.0, mma: 1.0, memory_bytes: 13.4, cache_bytes: 47.0 },
        (8, _) => Rates { tensor: 1024.0, fp32: 256.0, mma: 1.0, memory_bytes: 4.0, cache_bytes: 47.0 },
        _ => Rates { tensor: 4096.0, fp32: 256.0, mma: 0.3, memory_bytes: 14.5, cache_bytes: 47.0 },
    }
}

impl Shape {
    /// `nn`, `nt`, `tn`, `tt`.
    pub fn letters(&self) -> &'static str {
        match (self.transpose_a, self.transpose_b) {
            (false, false) => "nn",
            (false, true) => "nt",
            (true, false) => "tn",
            (true, true) => "tt",
        }
    }

    /// Elements from one stored row of A, and of B, to the next.
    pub fn leading(&self) -> [usize; 2] {
        [if self.transpose_a { self.m } else { self.k }, if self.transpose_b { self.k } else { self.n }]
    }

    /// Operands and result, each once.
    fn bytes(&self) -> f64 {
        let Shape { m, n, k, batch, .. } = *self;
        (batch * ((m * k + k * n) * self.input.size() + m * n * self.output.size())) as f64
    }

    /// Whether the tile's kernel takes this product on such a device.
    fn takes(&self, tile: &Tile, facts: &Facts) -> bool {
        let is_low = matches!(self.input, DType::Bf16 | DType::F16);
        match tile.family {
            Family::Cores => self.input == DType::F32 && !self.rounds_to_tf32,
            // Few rows are bound by memory: tensor cores would win nothing, and fp32 is as fast.
            Family::Stream => {
                let columns = if self.transpose_b { 32 } else { 128 };
                self.input == DType::F32 && self.m <= 8 && !self.transpose_a && tile.extents[1] == columns
            }
            Family::Mma => {
                (is_low || self.rounds_to_tf32) && self.letters() != "tt" || self.input == DType::I8 && self.letters() == "nt"
            }
            // Its image is for this one capability. The tensor memory engine wants stored rows at multiples of 16 bytes.
            Family::Wgmma => {
                let aligned = self.leading().iter().all(|leading| leading.is_multiple_of(8));
                let fits = facts.capability == (9, 0) && facts.shared_bytes_per_block >= WGMMA_SHARED_BYTES;
                is_low && aligned && fits && self.batch == 1 && self.letters() != "tt"
            }
        }
    }
}

impl Config {
    fn row(&self) -> Option<&'static Tile> {
        TILES.iter().find(|tile| tile.family == self.family && tile.extents == self.tile)
    }

    /// Whether there is such a kernel, and it takes this product on such a device.
    pub fn suits(&self, shape: &Shape, facts: &Facts) -> bool {
        // int8 sums of parts would need another type of workspace.
        let parts = 1..=if shape.input == DType::I8 { 1 } else { shape.k.max(1) };
        self.row().is_some_and(|tile| shape.takes(tile, facts)) && parts.contains(&self.splits)
    }

    pub fn kernel(&self, shape: &Shape) -> String {
        let (input, letters) = (if shape.rounds_to_tf32 { "tf32" } else { shape.input.name() }, shape.letters());
        match self.family {
            Family::Cores => format!("gemm_f32_{letters}_{}", self.tile[1]),
            Family::Stream => format!("gemv_f32_{letters}"),
            Family::Wgmma => format!("gemm_wgmma_{input}_{letters}_{}", self.tile[1]),
            Family::Mma => {
                let is_widened = shape.output == DType::F32 && matches!(shape.input, DType::Bf16 | DType::F16);
                format!("gemm_{input}_{letters}_{}{}", self.tile[0], if is_widened { "_f32out" } else { "" })
            }
        }
    }

    /// Tiles of all products of the batch.
    fn tiles(&self, shape: &Shape) -> usize {
        shape.batch * shape.m.div_ceil(self.tile[0]) * shape.n.div_ceil(self.tile[1])
    }

    pub fn workspace_bytes(&self, shape: &Shape) -> usize {
        if self.splits > 1 { 4 * self.splits * shape.batch * shape.m * shape.n } else { 0 }
    }

    /// Modelled cycles. The busiest multiprocessor has `ceil(blocks / multiprocessors)` tiles to make, each bound by its arithmetic or by
    /// what it draws from the cache; the whole cannot be faster than memory.
    fn cycles(&self, shape: &Shape, facts: &Facts) -> f64 {
        let tile = self.row().expect("only compiled tiles are ranked");
        let rates = rates(facts.capability);
        let multiprocessors = facts.multiprocessors as f64;
        let busiest = (self.tiles(shape) * self.splits).div_ceil(facts.multiprocessors as usize);
        let together = busiest.min(tile.resident);
        let peak = match tile.family {
            Family::Cores | Family::Stream => rates.fp32,
            Family::Mma => rates.tensor * rates.mma * 2.0 / shape.input.size() as f64,
            Family::Wgmma => rates.tensor,
        };
        let rows = if tile.family == Family::Stream { shape.m } else { tile.extents[0] };
        let columns = tile.extents[1];
        let depth = shape.k.div_ceil(self.splits).next_multiple_of(tile.step);
        let arithmetic = (2 * rows * columns * depth) as f64 / (peak * tile.share * (together as f64 * tile.alone).min(1.0));
        let drawn = ((rows + columns) * depth * shape.input.size()) as f64 / rates.cache_bytes;
        let compute = busiest as f64 * arithmetic.max(drawn) + busiest.div_ceil(together) as f64 * FILL_CYCLES;
        // A block that streams has 16 KiB under way; memory is busy with some 36 KiB a multiprocessor (Little's law: 25 bytes a cycle for a
        // microsecond and more).
        let under_way = if tile.family == Family::Stream { (together as f64 * 16.0 / 36.0).min(1.0) } else { 1.0 };
        // Some multiprocessors alone draw little more than their share.
        let drawing = (1.25 * (self.tiles(shape) * self.splits) as f64).min(multiprocessors);
        let memory = shape.bytes() / (drawing * rates.memory_bytes * under_way);
        let sum = match self.splits {
            1 => 0.0,
            _ => LAUNCH_CYCLES + 2.0 * self.workspace_bytes(shape) as f64 / (multiprocessors * rates.cache_bytes),
        };
        compute.max(memory) + sum
    }

    /// `512 tiles of 128 x 256 in 4 rounds on 132 multiprocessors, 97 % of which are busy`.
    fn rounds(&self, shape: &Shape, facts: &Facts) -> String {
        let resident = self.row().map_or(1, |tile| tile.resident);
        let (tiles, places) = (self.tiles(shape) * self.splits, facts.multiprocessors as usize);
        let busiest = tiles.div_ceil(places);
        let (rounds, busy) = (busiest.div_ceil(resident), 100.0 * tiles as f64 / (busiest * places) as f64);
        let [rows, columns] = self.tile;
        let of = if self.splits > 1 { format!(", K in {} parts,", self.splits) } else { String::new() };
        let s = |count: usize| if count == 1 { "" } else { "s" };
        format!(
            "{tiles} tile{} of {rows} x {columns}{of} in {rounds} round{} on {places} multiprocessors, {busy:.0} % busy",
            s(tiles),
            s(rounds)
        )
    }
}

/// Every configuration that takes this product, the fastest by the model first, with its modelled cycles.
///
/// Empty where no kernel takes it.
pub(super) fn ranked(shape: &Shape, facts: &Facts) -> Vec<(Config, f64)> {
    let mut out = Vec::new();
    for tile in TILES.iter().filter(|tile| shape.takes(tile, facts)) {
        let whole = Config { family: tile.family, tile: tile.extents, splits: 1 };
        // Parts of K only as far as they give blocks to multiprocessors that have none.
        let fill = if tile.family == Family::Stream { 4 } else { 2 };
        let most = (fill * facts.multiprocessors as usize / whole.tiles(shape).max(1)).min(shape.k / LEAST_PART);
        let parts =
            [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128].into_iter().filter(|splits| *splits == 1 || *splits <= most);
        let configs = parts.map(|splits| Config { splits, ..whole }).filter(|config| config.suits(shape, facts));
        out.extend(configs.map(|config| (config, config.cycles(shape, facts))));
    }
    out.sort_by(|a, b| a.1.total_cmp(&b.1));
    out
}

/// Products that share one measured choice: their extents are equal up to 256, and the next power of two or 1.5 times one beyond. The
/// epilogue is no part of it: every tile has the same one on the same sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Bucket {
    pub input: DType,
    pub output: DType,
    /// Absent in files of before there was such a product.
    #[serde(default)]
    pub rounds_to_tf32: bool,
    pub transpose_a: bool,
    pub transpose_b: bool,
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Bucket {
    pub fn of(shape: &Shape) -> Bucket {
        let Shape { m, n, k, batch, transpose_a, transpose_b, input, output, rounds_to_tf32 } = *shape;
        let [m, n, k, batch] = [m, n, k, batch].map(round);
        Bucket { input, output, rounds_to_tf32, transpose_a, transpose_b, batch, m, n, k }
    }
}

fn round(extent: usize) -> usize {
    if extent <= 256 {
        return extent;
    }
    let above = extent.next_power_of_two();
    if extent <= above / 4 * 3 { above / 4 * 3 } else { above }
}

/// Choices that were measured on a device, by the products they are for; the model decides the rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choices(pub HashMap<Bucket, Config>);

impl Choices {
    /// # Panics
    /// Where no kernel takes the product; the planner brings every product into a form that one does.
    pub fn pick(&self, shape: &Shape, facts: &Facts) -> Config {
        let measured = self.0.get(&Bucket::of(shape)).filter(|config| config.suits(shape, facts));
        measured.copied().unwrap_or_else(|| ranked(shape, facts).first().expect("some kernel takes it").0)
    }

    /// What is picked and why, in one line.
    pub fn explain(&self, shape: &Shape, facts: &Facts) -> String {
        let (picked, ranked) = (self.pick(shape, facts), ranked(shape, facts));
        let cycles = picked.cycles(shape, facts);
        let head = format!("{}: {}", picked.kernel(shape), picked.rounds(shape, facts));
        if self.0.get(&Bucket::of(shape)) == Some(&picked) {
            return format!("{head}; measured to be the fastest on this device");
        }
        // The best of each other kernel, and the same one with another number of parts.
        let mut rivals: Vec<String> = Vec::new();
        let mut seen = vec![picked.kernel(shape)];
        for (config, other) in ranked.iter().filter(|(config, _)| *config != picked) {
            let kernel = config.kernel(shape);
            if rivals.len() < 2 && !seen.contains(&kernel) {
                let parts = if config.splits > 1 { format!(", K in {} parts", config.splits) } else { String::new() };
                rivals.push(format!("{:.2} for {kernel}{parts}", other / cycles));
                seen.push(kernel);
            }
        }
        match rivals.is_empty() {
            true => format!("{head}; no other kernel takes it"),
            false => format!("{head}; modelled time 1, {}", rivals.join(", ")),
        }
    }
}

/// Where the operands of a product lie; null for no bias, and for no workspace where K is in one part.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub a: Address,
    pub b: Address,
    pub bias: Address,
    pub c: Address,
    pub workspace: Address,
    /// 0 none, 1 ReLU, 2 GELU.
    pub activation: u32,
}

/// `struct GemmArguments` of kernels/gemm_f32.cu and kernels/gemm_mma.cu.
type GemmSignature<T, C> = (In<T>, In<T>, In<f32>, Out<C>, Out<f32>, In<f32>, In<f32>, u64, u64, u64, [u32; 8]);
type Gemm<T, C> = Kernel<GemmSignature<T, C>>;

/// `struct GemmWgmmaArguments` of kernels/gemm_wgmma.cu.
type GemmWgmma = Kernel<(TensorMap, TensorMap, Out<u8>, In<f32>, [u32; 12])>;

/// The launches of a product of types `T` to `C`, which are those of the shape.
pub(super) fn launches<T: Element, C: Element>(shape: &Shape, config: &Config, facts: &Facts, at: &Operands) -> Vec<Launch> {
    let first = match config.family {
        Family::Wgmma => wgmma(shape, config, facts, at),
        _ => tiles::<T, C>(shape, config, at, [0, 0]),
    };
    if config.splits == 1 {
        return vec![first];
    }
    vec![first, sum_of_parts::<T, C>(shape, config.splits, at)]
}

/// The launch that adds the parts of a product up, and has its epilogue.
pub(super) fn sum_of_parts<T: Element, C: Element>(shape: &Shape, splits: usize, at: &Operands) -> Launch {
    let sum: Gemm<T, C> = Kernel::new(format!("gemm_reduce_{}", C::SUFFIX), 256);
    let grid = [(shape.m * shape.n).div_ceil(1024) as u32, 1, shape.batch as u32];
    sum.launch(grid, 0, arguments(shape, splits, at, [0, 0]))
}

/// The launch of a product of int8 to f32. `scales`: of all of A, one number, and of B's columns.
pub(super) fn int8_launches(shape: &Shape, config: &Config, at: &Operands, scales: [Address; 2]) -> Vec<Launch> {
    vec![tiles::<i8, f32>(shape, config, at, scales)]
}

fn arguments<T, C>(shape: &Shape, splits: usize, at: &Operands, scales: [Address; 2]) -> GemmSignature<T, C> {
    let Shape { m, n, k, batch, .. } = *shape;
    let [lda, ldb] = shape.leading();
    let sizes = [m, n, k, lda, ldb, n, splits, at.activation as usize].map(|extent| extent as u32);
    let [a_stride, b_stride, c_stride] = if batch > 1 { [m * k, k * n, m * n] } else { [0; 3] }.map(|stride| stride as u64);
    let (a, b, bias, c, workspace) = (In::at(at.a), In::at(at.b), In::at(at.bias), Out::at(at.c), Out::at(at.workspace));
    let [scale_a, scales_b] = scales.map(In::at);
    (a, b, bias, c, workspace, scale_a, scales_b, a_stride, b_stride, c_stride, sizes)
}

/// One block a tile and part of K.
fn tiles<T: Element, C: Element>(shape: &Shape, config: &Config, at: &Operands, scales: [Address; 2]) -> Launch {
    let tile = config.row().expect("only compiled tiles are picked");
    let kernel: Gemm<T, C> = Kernel::new(config.kernel(shape), tile.threads);
    let blocks = config.tiles(shape) / shape.batch;
    let grid = [blocks as u32, config.splits as u32, shape.batch as u32];
    kernel.launch(grid, 0, arguments(shape, config.splits, at, scales))
}

fn wgmma(shape: &Shape, config: &Config, facts: &Facts, at: &Operands) -> Launch {
    let Shape { m, n, k, .. } = *shape;
    let width = config.tile[1];
    // Along K in memory: a box holds 64 of K and the tile's rows. Across it: 64 of the rows and 64 of K.
    let map = |base, is_turned: bool, rows: usize, extent: usize| match is_turned {
        false => TensorMap::matrix(base, shape.input, [rows, k], [extent as u32, 64]),
        true => TensorMap::matrix(base, shape.input, [k, rows], [64, 64]),
    };
    let (a, b) = (map(at.a, shape.transpose_a, m, config.tile[0]), map(at.b, !shape.transpose_b, n, width));
    let is_split = config.splits > 1;
    // Parts are bare sums in fp32: the kernel that adds them up has the epilogue.
    let (c, bias, activation) = if is_split { (at.workspace, 0, 0) } else { (at.c, at.bias, at.activation) };
    let output_f32 = u32::from(is_split || shape.output == DType::F32);
    let group = if width == 256 { 16 } else { 12 };
    let sizes = [m as u32, n as u32, k as u32, config.splits as u32, group, activation, output_f32, 0, 0, 0, 0, 0];
    let kernel: GemmWgmma = Kernel::new(config.kernel(shape), 384);
    let blocks = (config.tiles(shape) * config.splits).min(facts.multiprocessors as usize);
    kernel.launch([blocks as u32, 1, 1], WGMMA_SHARED_BYTES, (a, b, Out::at(c), In::at(bias), sizes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: (u32, u32) = (9, 0);

    fn facts(capability: (u32, u32), multiprocessors: u32) -> Facts {
        let name = "a device".to_string();
        Facts { name, capability, multiprocessors, shared_bytes_per_block: 232_448, memory_bytes: 80 << 30 }
    }

    fn square(n: usize, input: DType) -> Shape {
        let (m, k) = (n, n);
        Shape { m, n, k, batch: 1, transpose_a: false, transpose_b: false, input, output: input, rounds_to_tf32: false }
    }

    fn kernel(shape: &Shape, capability: (u32, u32), multiprocessors: u32) -> (String, usize) {
        let facts = facts(capability, multiprocessors);
        let config = Choices::default().pick(shape, &facts);
        (config.kernel(shape), config.splits)
    }

    #[test]
    fn large_products_take_the_widest_tile_that_the_device_has() {
        for n in [4096, 8192] {
            assert_eq!(kernel(&square(n, DType::Bf16), H100, 132), ("gemm_wgmma_bf16_nn_256".into(), 1));
            assert_eq!(kernel(&square(n, DType::F16), (8, 0), 108), ("gemm_f16_nn_128".into(), 1));
            assert_eq!(kernel(&square(n, DType::F32), H100, 132), ("gemm_f32_nn_128".into(), 1));
        }
        // Rows of 4100 elements start at no multiple of 16 bytes, and no image of warpgroups is for another capability.
        assert_eq!(kernel(&square(4100, DType::Bf16), H100, 132).0, "gemm_bf16_nn_128");
        assert_eq!(kernel(&square(4096, DType::Bf16), (12, 0), 170).0, "gemm_bf16_nn_128");
    }

    #[test]
    fn few_tiles_are_shared_out_along_k_and_few_rows_are_streamed() {
        let shape = Shape { m: 64, n: 128, k: 3136, ..square(1, DType::Bf16) };
        assert!(kernel(&shape, H100, 132).1 > 4, "{:?}", kernel(&shape, H100, 132));
        let row = Shape { m: 1, n: 4096, k: 4096, ..square(1, DType::F32) };
        assert_eq!(kernel(&row, H100, 132).0, "gemv_f32_nn");
        assert_eq!(kernel(&Shape { transpose_b: true, ..row }, H100, 132).0, "gemv_f32_nt");
        // A short K leaves nothing to share out.
        assert_eq!(kernel(&Shape { k: 64, ..shape }, H100, 132).1, 1);
    }

    #[test]
    fn what_was_measured_goes_before_the_model_where_it_suits() {
        let facts = facts(H100, 132);
        let shape = square(4096, DType::Bf16);
        let measured = Config { family: Family::Mma, tile: [128, 128], splits: 1 };
        let mut choices = Choices::default();
        choices.0.insert(Bucket::of(&shape), measured);
        assert_eq!(choices.pick(&shape, &facts), measured);
        assert!(choices.explain(&shape, &facts).contains("measured"));
        // Of the same bucket, but not for warpgroups.
        let ragged = Shape { k: 4095, ..shape };
        choices.0.insert(Bucket::of(&shape), Config { family: Family::Wgmma, tile: [128, 256], splits: 1 });
        assert_eq!(Bucket::of(&ragged), Bucket::of(&shape));
        assert_eq!(choices.pick(&ragged, &facts).family, Family::Mma);
        assert!(!choices.explain(&ragged, &facts).contains("measured"));
        choices.0.insert(Bucket::of(&shape), Config { family: Family::Mma, tile: [96, 96], splits: 1 });
        assert_eq!(choices.pick(&shape, &facts), Choices::default().pick(&shape, &facts), "no kernel has such a tile");
    }

    #[test]
    fn buckets_are_exact_for_small_extents() {
        assert_eq!([1, 255, 256, 257, 384, 385, 512, 513, 769].map(round), [1, 255, 256, 384, 384, 512, 512, 768, 1024]);
    }

    #[test]
    fn a_choice_is_explained_with_its_rivals() {
        let text = Choices::default().explain(&square(4096, DType::Bf16), &facts(H100, 132));
        let start =
            "gemm_wgmma_bf16_nn_256: 512 tiles of 128 x 256 in 4 rounds on 132 multiprocessors, 97 % busy; modelled time 1, ";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("for gemm_wgmma_bf16_nn_128") && text.contains("for gemm_bf16_nn_128"), "{text}");
    }
}
