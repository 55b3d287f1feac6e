//! Which kernel makes a convolution or its gradients on a device: kernels/conv.cu, which takes all, or, where a small model says that it is
//! faster, kernels/conv_wgmma.cu with the patches of pixels that it reads the image by. Pure.

use super::{
    kernel::{In, Kernel, Out},
    machine::{Address, Facts, Launch, TensorMap},
    product::{FILL_CYCLES, LAUNCH_CYCLES, rates},
};
use crate::{
    graph::Window,
    vocab::{DType, Vocabulary},
};

/// What is computed of `y = conv(x, w)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    GradInput,
    GradWeight,
}

/// A convolution of images `[batch, height, width, channels]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Convolution<'a> {
    pub pass: Pass,
    pub window: &'a Window,
    pub x: [usize; 4],
    pub y: [usize; 4],
    pub dtype: DType,
    /// Whether fp32 operands are rounded to tf32 for tensor cores.
    pub rounds_to_tf32: bool,
}

/// One way to make it by kernels/conv_wgmma.cu.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Config {
    /// Pixels and filters of a tile; of the weights' gradient: channels under all taps of a tile, and filters.
    tile: [usize; 2],
    /// Width, height and images of a patch of pixels.
    patch: [usize; 3],
    /// Rows of the window that one box serves.
    taps: usize,
    /// Whether half of the 64 channels of a box are left out: there are no more than 32.
    is_short: bool,
    /// Of the pixels, for the gradient of the weights; each makes two sums.
    splits: usize,
}

/// Dynamic shared memory of kernels/conv_wgmma.cu: its rings of 224 KiB and the barriers.
const SHARED_BYTES: u32 = 229_376 + 256;
const RING_BYTES: usize = 229_376;

/// Side of the patches whose rows several taps may share, and channels of a box.
const SIDE: usize = 8;
const CHUNK: usize = 64;
/// Taps of a tile of the weights' gradient.
const WEIGHT_TAPS: usize = 3;

/// Share of the tensor cores' peak that each kernel reaches with enough work. Warpgroups: that of products, of which the narrow
/// instruction loses a part. Warps: what kernels/conv.cu was measured at on an H200 (130 to 146 TFLOP/s; gradient of weights 80).
const WARPGROUPS: f64 = 0.8;
const NARROW: f64 = 0.95;
const WARPS: f64 = 0.14;
const WARPS_WEIGHT: f64 = 0.08;
/// Part of the last that one of the four blocks of a multiprocessor reaches alone.
const ALONE: f64 = 0.35;
/// Cycles a consumer spends on its results for each column of a tile of 64 pixels, while it multiplies nothing.
const STORE_CYCLES: f64 = 6.0;

/// Where the operands lie: the image under the window (of the input's gradient: dy), the weights (of the weights' gradient: dy), and the
/// result or, of the weights' gradient, the sums of its parts. The bias may be null.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub image: Address,
    pub other: Address,
    pub bias: Address,
    pub to: Address,
    /// 0 none, 1 ReLU, 2 GELU.
    pub activation: u32,
}

/// `struct ConvWgmmaArguments` of kernels/conv_wgmma.cu.
type ConvWgmma = Kernel<(TensorMap, TensorMap, Out<u8>, In<f32>, [u32; 28])>;

impl Config {
    /// Sums of the weights' gradient.
    pub fn parts(&self) -> usize {
        2 * self.splits
    }

    /// Boxes of the image in a stage: one, or one for every 64 pixels.
    fn boxes(&self) -> usize {
        if self.taps > 1 { self.tile[0] / CHUNK } else { 1 }
    }

    /// Bytes of a stage from one 64 pixels to the next.
    fn unit_bytes(&self) -> usize {
        128 * SIDE * (SIDE + self.taps - 1)
    }

    fn stage_bytes(&self) -> usize {
        self.tile[0] / CHUNK * self.unit_bytes() + self.taps * self.tile[1] * 128
    }
}

impl Convolution<'_> {
    /// Batch, height and width of what a tile covers: the result, or the pixels that the weights' gradient sums over.
    fn pixels(&self) -> [usize; 3] {
        let of = if self.pass == Pass::GradInput { self.x } else { self.y };
        [of[0], of[1], of[2]]
    }

    /// Channels that are summed over for one tap, or, of the weights' gradient, of x; and those of the result.
    fn channels(&self) -> [usize; 2] {
        match self.pass {
            Pass::GradInput => [self.y[3], self.x[3]],
            _ => [self.x[3], self.y[3]],
        }
    }

    fn taps(&self) -> usize {
        self.window.size[0] * self.window.size[1]
    }

    /// Bytes of the operands, each once.
    fn bytes(&self) -> f64 {
        let [x, y]: [usize; 2] = [self.x, self.y].map(|shape| shape.iter().product());
        (self.dtype.size() * (x + y + self.taps() * self.x[3] * self.y[3])) as f64
    }

    /// Whether kernels/conv_wgmma.cu takes it on such a device. Its image is for this one capability; the tensor memory engine wants rows
    /// at multiples of 16 bytes.
    fn suits_warpgroups(&self, facts: &Facts) -> bool {
        let [batch, height, width] = self.pixels();
        let is_low = matches!(self.dtype, DType::Bf16 | DType::F16);
        let fits = facts.capability == (9, 0) && facts.shared_bytes_per_block >= SHARED_BYTES;
        let aligned = self.channels().iter().all(|channels| channels.is_multiple_of(8) && *channels > 0);
        // Both consumers of a weights' gradient have a patch.
        let enough = self.pass != Pass::GradWeight || batch * height.div_ceil(SIDE) * width.div_ceil(SIDE) >= 2;
        is_low && fits && aligned && enough && self.window.stride == [1, 1] && batch * height * width > 0
    }

    fn count_patches(&self, patch: [usize; 3]) -> usize {
        let [batch, height, width] = self.pixels();
        width.div_ceil(patch[0]) * height.div_ceil(patch[1]) * batch.div_ceil(patch[2])
    }

    /// The patch of at most so many pixels of which the fewest cover all images; of equal ones the widest.
    fn best_patch(&self, most: usize) -> [usize; 3] {
        let [batch, height, width] = self.pixels();
        let shares = |extent: usize| {
            let mut all: Vec<usize> = (1..=extent).map(|parts| extent.div_ceil(parts)).filter(|share| *share <= most).collect();
            all.dedup();
            all
        };
        let (widths, heights) = (shares(width), shares(height));
        let all = widths
            .iter()
            .flat_map(|w| heights.iter().filter(|h| *w * **h <= most).map(move |h| [*w, *h, (most / (w * h)).min(batch)]));
        all.min_by_key(|patch| self.count_patches(*patch)).expect("a patch of one pixel fits")
    }

    /// Ways to make it by warpgroups, the fastest by the model first, with its modelled cycles.
    fn ranked(&self, facts: &Facts) -> Vec<(Config, f64)> {
        if !self.suits_warpgroups(facts) {
            return Vec::new();
        }
        let mut all = Vec::new();
        let rows = self.window.size[0];
        if self.pass == Pass::GradWeight {
            let base = Config { tile: [CHUNK, CHUNK], patch: [SIDE, SIDE, 1], taps: WEIGHT_TAPS, is_short: false, splits: 1 };
            let (tiles, patches) = (self.tiles(&base), self.count_patches(base.patch));
            // As many splits as fill the device so many times.
            let fills = (1..=8).map(|rounds| (rounds * facts.multiprocessors as usize / tiles).clamp(1, patches / 2));
            all.extend(fills.map(|splits| Config { splits, ..base }));
        } else {
            let is_short = self.channels()[0] <= CHUNK / 2;
            for tile in [[128, 256], [256, 128], [256, 64]] {
                let one =
                    Config { tile, patch: self.best_patch(tile[0]), taps: 1, is_short: is_short && tile[1] == 64, splits: 1 };
                all.push(one);
                let shared = Config { patch: [SIDE, SIDE, 1], taps: rows, ..one };
                if rows > 1 && 2 * shared.stage_bytes() <= RING_BYTES {
                    all.push(shared);
                }
            }
        }
        let mut out: Vec<(Config, f64)> = all.into_iter().map(|config| (config, self.cycles(&config, facts))).collect();
        out.sort_by(|a, b| a.1.total_cmp(&b.1));
        out
    }

    fn tiles(&self, config: &Config) -> usize {
        let [depth, filters] = self.channels();
        let across = filters.div_ceil(config.tile[1]);
        match self.pass {
            Pass::GradWeight => {
                across * depth.div_ceil(CHUNK) * self.window.size[1] * self.window.size[0].div_ceil(WEIGHT_TAPS) * config.splits
            }
            _ => across * self.count_patches(config.patch).div_ceil(config.boxes()),
        }
    }

    /// Modelled cycles by warpgroups: the busiest multiprocessor's tiles, each bound by its products or by what it draws from the cache, and
    /// what its consumers store.
    fn cycles(&self, config: &Config, facts: &Facts) -> f64 {
        let rates = rates(facts.capability);
        let multiprocessors = facts.multiprocessors as f64;
        let busiest = self.tiles(config).div_ceil(facts.multiprocessors as usize) as f64;
        let [depth, filters] = self.channels();
        let size = self.dtype.size();
        let memory = self.bytes() / (multiprocessors * rates.memory_bytes);
        if self.pass == Pass::GradWeight {
            let steps = 2 * self.count_patches(config.patch).div_ceil(config.parts());
            let products = (2 * CHUNK * CHUNK * CHUNK * WEIGHT_TAPS * steps) as f64 / (rates.tensor * WARPGROUPS * NARROW);
            let rows = SIDE * (SIDE + WEIGHT_TAPS - 1) * depth.min(CHUNK) + SIDE * SIDE * filters.min(CHUNK);
            let drawn = (rows * size * steps) as f64 / rates.cache_bytes;
            let stored = STORE_CYCLES * (WEIGHT_TAPS * CHUNK) as f64;
            let sum = LAUNCH_CYCLES + 2.0 * self.sum_bytes(config) as f64 / (multiprocessors * rates.cache_bytes);
            return (busiest * (products.max(drawn) + stored) + FILL_CYCLES).max(memory) + sum;
        }
        let [pixels, width] = config.tile;
        let chunks = depth.div_ceil(CHUNK) * if config.is_short { CHUNK / 2 } else { CHUNK };
        let narrow = if width == 64 { NARROW } else { 1.0 };
        let products = (2 * pixels * width * self.taps() * chunks) as f64 / (rates.tensor * WARPGROUPS * narrow);
        let seen = match config.taps {
            1 => config.patch.iter().product::<usize>() * self.taps(),
            taps => config.boxes() * SIDE * (SIDE + taps - 1) * self.window.size[1],
        };
        let drawn = ((seen + self.taps() * width.min(filters)) * depth * size) as f64 / rates.cache_bytes;
        let stored = STORE_CYCLES * (pixels * width / 128) as f64;
        (busiest * (products.max(drawn) + stored) + FILL_CYCLES).max(memory)
    }

    /// Modelled cycles by kernels/conv.cu, in tiles of 64 x 64.
    fn cycles_by_warps(&self, facts: &Facts) -> f64 {
        let rates = rates(facts.capability);
        let [depth, filters] = self.channels();
        let [batch, height, width] = self.pixels();
        let (rows, k, share) = match self.pass {
            Pass::GradWeight => (self.taps() * depth, batch * height * width, WARPS_WEIGHT),
            _ => (batch * height * width, self.taps() * depth, WARPS),
        };
        let (tiles, k) = (rows.div_ceil(64) * filters.div_ceil(64), k.next_multiple_of(32));
        let places = facts.multiprocessors as usize;
        let parts = if self.pass == Pass::GradWeight { (2 * places / tiles).clamp(1, k.div_ceil(256)) } else { 1 };
        let busiest = (tiles * parts).div_ceil(places);
        let one = (2 * 64 * 64 * k.div_ceil(parts)) as f64 / (rates.tensor * share * (busiest.min(4) as f64 * ALONE).min(1.0));
        let sum = match self.pass {
            Pass::GradWeight => LAUNCH_CYCLES + (8 * parts * rows * filters) as f64 / (places as f64 * rates.cache_bytes),
            _ => 0.0,
        };
        (busiest as f64 * one + FILL_CYCLES).max(self.bytes() / (places as f64 * rates.memory_bytes)) + sum
    }

    /// The way by warpgroups, where that is the faster one by the model.
    pub fn pick(&self, facts: &Facts) -> Option<Config> {
        let (config, cycles) = self.ranked(facts).into_iter().next()?;
        (cycles < self.cycles_by_warps(facts)).then_some(config)
    }

    fn kernel(&self, config: &Config) -> String {
        let (name, width) = (self.dtype.name(), config.tile[1]);
        let short = if config.is_short { "_short" } else { "" };
        match self.pass {
            Pass::Forward => format!("conv_wgmma_{name}_{width}{short}"),
            Pass::GradInput => format!("conv_wgmma_grad_input_{name}_{width}{short}"),
            Pass::GradWeight => format!("conv_wgmma_grad_weight_{name}"),
        }
    }

    fn kernel_by_warps(&self) -> String {
        let name = if self.rounds_to_tf32 && self.dtype == DType::F32 { "tf32" } else { self.dtype.name() };
        match self.pass {
            Pass::Forward => format!("conv2d_{name}"),
            Pass::GradInput => format!("conv2d_grad_input_{name}"),
            Pass::GradWeight => format!("conv2d_grad_weight_{name}"),
        }
    }

    /// What is picked and why, in one line; nothing where there is no choice.
    pub fn explain(&self, facts: &Facts) -> Option<String> {
        let (best, cycles) = self.ranked(facts).into_iter().next()?;
        let warps = self.cycles_by_warps(facts);
        if self.pick(facts).is_none() {
            return Some(format!(
                "{}: modelled time 1, {:.2} for {}",
                self.kernel_by_warps(),
                cycles / warps,
                self.kernel(&best)
            ));
        }
        let (tiles, places) = (self.tiles(&best), facts.multiprocessors as usize);
        let busy = 100.0 * tiles as f64 / (tiles.div_ceil(places) * places) as f64;
        let [width, height, images] = best.patch;
        let [rows, columns] = best.tile;
        let patches = match images {
            1 => format!("patches of {width} x {height} pixels"),
            _ => format!("patches of {width} x {height} pixels of {images} images"),
        };
        let of = match self.pass {
            Pass::GradWeight => format!("{} taps x {rows} x {columns} over {patches} in {} parts", best.taps, best.parts()),
            _ if best.taps > 1 => format!("{rows} x {columns} over {patches}, each read for {} taps at once", best.taps),
            _ => format!("{rows} x {columns} over {patches}"),
        };
        let (kernel, rival) = (self.kernel(&best), self.kernel_by_warps());
        let ratio = warps / cycles;
        Some(format!(
            "{kernel}: {tiles} tiles of {of} on {places} multiprocessors, {busy:.0} % busy; modelled time 1, {ratio:.2} for {rival}"
        ))
    }

    /// Bytes of the sums that parts of a weights' gradient leave.
    pub fn sum_bytes(&self, config: &Config) -> usize {
        4 * config.parts() * self.taps() * self.x[3] * self.y[3]
    }

    pub fn launch(&self, config: &Config, facts: &Facts, at: &Operands) -> Launch {
        let dtype = self.dtype;
        let [batch, height, width] = self.pixels();
        let [depth, filters] = self.channels();
        let [rows, columns] = self.window.size;
        let [patch_w, patch_h, patch_n] = config.patch;
        // Innermost first.
        let images = |base, of: [usize; 4], height: usize| {
            let (extents, tile) = ([of[3], of[2], of[1], of[0]], [CHUNK, patch_w, height, patch_n].map(|extent| extent as u32));
            TensorMap { base, dtype, rank: 4, extents, tile }
        };
        let seen = if self.pass == Pass::GradInput { self.y } else { self.x };
        let image = images(at.image, seen, patch_h + config.taps - 1);
        let other = match self.pass {
            Pass::GradWeight => images(at.other, self.y, patch_h),
            pass => {
                let tile =
                    [CHUNK, if pass == Pass::GradInput { config.tile[1] } else { CHUNK }, 1, 1].map(|extent| extent as u32);
                TensorMap { base: at.other, dtype, rank: 3, extents: [self.y[3], self.x[3], self.taps(), 1], tile }
            }
        };
        // From a patch to the first pixel that it sees: the gradient by the input looks the other way.
        let shift = |axis: usize| match self.pass {
            Pass::GradInput => self.window.padding[axis] as i32 - (self.window.size[axis] as i32 - 1),
            _ => -(self.window.padding[axis] as i32),
        };
        let [unit_bytes, stage_bytes] = match self.pass {
            Pass::GradWeight => [0; 2],
            _ => [config.unit_bytes(), config.stage_bytes()],
        };
        let stages = RING_BYTES.checked_div(stage_bytes).map_or(0, |stages| stages.min(8));
        let [b, h, w, depth, filters, rows, columns] =
            [batch, height, width, depth, filters, rows, columns].map(|extent| extent as u32);
        let patch = [patch_h, patch_w, patch_n].map(|extent| extent as u32);
        let rest = [config.boxes(), config.taps, unit_bytes, stages, stage_bytes].map(|number| number as u32);
        let mut fields = [0; 28];
        fields[..9].copy_from_slice(&[b, h, w, depth, filters, rows, columns, shift(0) as u32, shift(1) as u32]);
        fields[9..12].copy_from_slice(&patch);
        fields[12..17].copy_from_slice(&rest);
        fields[17..19].copy_from_slice(&[at.activation, config.splits as u32]);
        let blocks = self.tiles(config).min(facts.multiprocessors as usize);
        let kernel: ConvWgmma = Kernel::new(self.kernel(config), 384);
        kernel.launch([blocks as u32, 1, 1], SHARED_BYTES, (image, other, Out::at(at.to), In::at(at.bias), fields))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            THROUGH_THE_DRIVER,
            driver::Driver,
            emulated::Emulated,
            machine::{Machine, encode_maps},
            tests::{numbers, read, stored},
        },
        *,
    };
    use std::collections::BTreeSet;

    /// The result in f64 before bias and activation, and for each number the sum of absolute values.
    fn reference(one: &Convolution<'_>, a: &[f64], b: &[f64]) -> Vec<(f64, f64)> {
        let ([batch, height, width, channels], [_, out_height, out_width, filters]) = (one.x, one.y);
        let ([rows, columns], [pad_h, pad_w]) = (one.window.size, one.window.padding);
        let count = match one.pass {
            Pass::Forward => batch * out_height * out_width * filters,
            Pass::GradInput => batch * height * width * channels,
            Pass::GradWeight => rows * columns * channels * filters,
        };
        let mut out = vec![(0.0, 0.0); count];
        for n in 0..batch {
            for (oh, ow) in (0..out_height).flat_map(|oh| (0..out_width).map(move |ow| (oh, ow))) {
                for (r, s) in (0..rows).flat_map(|r| (0..columns).map(move |s| (r, s))) {
                    let (h, w) = ((oh + r).wrapping_sub(pad_h), (ow + s).wrapping_sub(pad_w));
                    if h >= height || w >= width {
                        continue;
                    }
                    let (x, y) = (((n * height + h) * width + w) * channels, ((n * out_height + oh) * out_width + ow) * filters);
                    for c in 0..channels {
                        let weight = ((r * columns + s) * channels + c) * filters;
                        for f in 0..filters {
                            let (at, term) = match one.pass {
                                Pass::Forward => (y + f, a[x + c] * b[weight + f]),
                                Pass::GradInput => (x + c, a[y + f] * b[weight + f]),
                                Pass::GradWeight => (weight + f, a[x + c] * b[y + f]),
                            };
                            out[at].0 += term;
                            out[at].1 += term.abs();
                        }
                    }
                }
            }
        }
        out
    }

    /// Runs one way to make it, forward with a bias and ReLU, and gives its largest error over the largest sum of absolute values.
    fn error(machine: &dyn Machine, one: &Convolution<'_>, config: &Config, facts: &Facts) -> f64 {
        let weights = one.taps() * one.x[3] * one.y[3];
        let [x, y]: [usize; 2] = [one.x, one.y].map(|shape| shape.iter().product());
        let (sizes, count) = match one.pass {
            Pass::Forward => ([x, weights], y),
            Pass::GradInput => ([y, weights], x),
            Pass::GradWeight => ([x, y], weights * config.parts()),
        };
        let is_forward = one.pass == Pass::Forward;
        let put = |bytes: &[u8]| {
            let address = machine.allocate(bytes.len()).unwrap();
            machine.upload(address, bytes).unwrap();
            address
        };
        let (a, a_values) = stored(&numbers(sizes[0], 7), one.dtype);
        let (b, b_values) = stored(&numbers(sizes[1], 99), one.dtype);
        let bias = numbers(one.y[3], 3);
        let result = if one.pass == Pass::GradWeight { DType::F32 } else { one.dtype };
        // What was there before must not matter.
        let mut got = vec![0xffu8; count * result.size()];
        let (image, other, bias_at, to) = (put(&a), put(&b), put(bytemuck::cast_slice(&bias)), put(&got));
        let at = Operands { image, other, bias: if is_forward { bias_at } else { 0 }, to, activation: u32::from(is_forward) };
        let mut launch = one.launch(config, facts, &at);
        encode_maps(machine, std::iter::once(&mut launch)).unwrap();
        machine.launch(&launch).unwrap_or_else(|error| panic!("{one:?} by {config:?}: {error}"));
        machine.download(to, &mut got).unwrap();
        [image, other, bias_at, to].into_iter().for_each(|address| machine.release(address));
        let got = read(&got, result);
        let expected = reference(one, &a_values, &b_values);
        let (mut worst, mut largest) = (0.0f64, 0.0f64);
        for (at, (sum, size)) in expected.iter().enumerate() {
            let bias = if is_forward { f64::from(bias[at % one.y[3]]) } else { 0.0 };
            let sum = if is_forward { (sum + bias).max(0.0) } else { *sum };
            let got: f64 = got[at..].iter().step_by(expected.len()).sum();
            let error = (got - sum).abs();
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
            largest = largest.max(size + bias.abs());
        }
        worst / largest
    }

    fn facts(multiprocessors: u32) -> Facts {
        let (name, capability) = ("a device".to_string(), (9, 0));
        Facts { name, capability, multiprocessors, shared_bytes_per_block: 232_448, memory_bytes: 80 << 30 }
    }

    fn convolution(pass: Pass, window: &Window, [n, h, w, c, f]: [usize; 5], dtype: DType) -> Convolution<'_> {
        let [height, width] = window.output([h, w]).unwrap();
        Convolution { pass, window, x: [n, h, w, c], y: [n, height, width, f], dtype, rounds_to_tf32: false }
    }

    const PASSES: [Pass; 3] = [Pass::Forward, Pass::GradInput, Pass::GradWeight];

    #[test]
    fn every_convolution_by_warpgroups_is_right_on_ragged_shapes() {
        let through_the_driver = std::env::var_os(THROUGH_THE_DRIVER).is_some();
        let machine: Box<dyn Machine> = match through_the_driver {
            true => Box::new(Driver::open(0).unwrap()),
            false => {
                let Some(machine) = Emulated::open(7) else { return };
                Box::new(machine)
            }
        };
        // Few multiprocessors, so that blocks make several tiles and rings go round.
        let facts = Facts { multiprocessors: 2, ..machine.facts().clone() };
        let window = |size, padding| Window { size, stride: [1, 1], padding };
        let all = [
            (window([3, 3], [1, 1]), [3, 9, 13, 24, 72]),
            (window([3, 3], [1, 1]), [1, 21, 10, 72, 8]),
            (window([5, 5], [2, 2]), [1, 12, 9, 8, 136]),
            (window([1, 1], [0, 0]), [3, 7, 11, 128, 64]),
            (window([3, 5], [0, 3]), [2, 7, 5, 64, 24]),
            (window([2, 2], [0, 1]), [5, 3, 6, 32, 32]),
            // Every other image of a box lies beyond the last.
            (window([3, 3], [1, 1]), [33, 4, 4, 16, 64]),
        ];
        let mut seen = BTreeSet::new();
        for (window, extents) in all.into_iter().take(if through_the_driver { 1 } else { 7 }) {
            for (pass, dtype) in PASSES.into_iter().flat_map(|pass| [DType::Bf16, DType::F16].map(|dtype| (pass, dtype))) {
                let one = convolution(pass, &window, extents, dtype);
                let mut tried: Vec<Config> = Vec::new();
                for (config, cycles) in one.ranked(&facts) {
                    if tried.contains(&config) {
                        continue;
                    }
                    assert!(cycles.is_finite() && cycles > 0.0);
                    let error = error(&*machine, &one, &config, &facts);
                    let tolerance = match (pass, dtype) {
                        (Pass::GradWeight, _) => 1e-6,
                        (_, DType::Bf16) => 1.0 / 256.0,
                        _ => 1.0 / 2048.0,
                    };
                    assert!(error <= tolerance, "{one:?} by {config:?}: {error:e}");
                    seen.insert((one.kernel(&config), config.taps > 1));
                    tried.push(config);
                }
                assert!(!tried.is_empty(), "{one:?}");
            }
        }
        // Of two types: one gradient of the weights; of two passes four kernels each, by single taps and by columns of them.
        assert!(through_the_driver || seen.len() == 2 * (1 + 2 * (4 + 4)), "{seen:?}");
    }

    #[test]
    fn large_convolutions_take_warpgroups_and_the_rest_stays() {
        let square = |size, padding| Window::square(size, 1, padding);
        let picked = |pass, window: &Window, extents, dtype| {
            let one = convolution(pass, window, extents, dtype);
            one.pick(&facts(132)).map(|config| (one.kernel(&config), config.patch, config.taps))
        };
        let three = square(3, 1);
        let of = |pass, extents| picked(pass, &three, extents, DType::Bf16);
        // Few filters: one box serves a column of the window, for the cache would not keep up.
        let layer = [512, 56, 56, 64, 64];
        assert_eq!(of(Pass::Forward, layer), Some(("conv_wgmma_bf16_64".into(), [8, 8, 1], 3)));
        assert_eq!(of(Pass::GradInput, layer), Some(("conv_wgmma_grad_input_bf16_64".into(), [8, 8, 1], 3)));
        assert_eq!(of(Pass::GradWeight, layer), Some(("conv_wgmma_grad_weight_bf16".into(), [8, 8, 1], 3)));
        // Many: patches that fit images of 14 x 14.
        let layer = [512, 14, 14, 256, 256];
        let (kernel, [w, h, n], taps) = of(Pass::Forward, layer).unwrap();
        assert_eq!((kernel.as_str(), 14 % w, 14 % h, taps), ("conv_wgmma_bf16_256", 0, 0, 1));
        assert!(w * h * n >= 126, "{w} x {h} x {n}");
        assert!(of(Pass::GradWeight, layer).is_some());
        let stays =
            |window: &Window, extents, dtype| PASSES.into_iter().all(|pass| picked(pass, window, extents, dtype).is_none());
        assert!(stays(&three, [512, 28, 28, 1, 32], DType::Bf16), "channels that fill no 16 bytes");
        assert!(stays(&three, [512, 28, 28, 64, 64], DType::F32), "fp32");
        assert!(stays(&Window::square(3, 2, 1), [512, 28, 28, 64, 64], DType::F16), "a stride");
        let one = convolution(Pass::Forward, &three, [512, 28, 28, 64, 64], DType::Bf16);
        assert!(one.pick(&Facts { capability: (8, 0), ..facts(132) }).is_none());
        assert!(one.pick(&Facts { shared_bytes_per_block: 99 << 10, ..facts(132) }).is_none());
    }

    #[test]
    fn a_choice_is_explained_with_its_rival() {
        let window = Window::square(3, 1, 1);
        let one = convolution(Pass::Forward, &window, [512, 56, 56, 64, 64], DType::Bf16);
        let text = one.explain(&facts(132)).unwrap();
        let start = "conv_wgmma_bf16_64: 6272 tiles of 256 x 64 over patches of 8 x 8 pixels, each read for 3 taps at once on 132 multiprocessors, ";
        assert!(text.starts_with(start) && text.ends_with("for conv2d_bf16"), "{text}");
        let small = convolution(Pass::Forward, &window, [1, 4, 4, 8, 8], DType::Bf16);
        assert!(small.explain(&facts(132)).is_some());
        let alone = Convolution { dtype: DType::F32, ..one };
        assert_eq!(alone.explain(&facts(132)), None);
    }
}
