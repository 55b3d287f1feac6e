//! How long a matrix product takes on one GPU.
//!
//! The roofline (Williams et al., CACM 52(4), 2009) with what keeps a tiled product below it: the last wave of tiles does not fill all
//! multiprocessors (NVIDIA, Matrix Multiplication Background User's Guide, 2023, wave quantization), every product loses a part of a wave at its ends, and
//! each tile starts and ends once, however short its inner dimension. Libraries choose among tiles and split the inner dimension, so how much of the
//! places that a last wave leaves empty is lost is a figure of the generation, between none and all.

/// What a GPU sustains in products of one precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Operations a second of a large product.
    pub flops: f64,
    /// Bytes a second of memory.
    pub bytes: f64,
    pub multiprocessors: f64,
    /// Waves that are lost in a product, as if its output were that much larger.
    pub lost_waves: f64,
    /// Share that is lost of the places that the last wave leaves empty.
    pub quantised: f64,
    /// Length of the inner dimension that starting and ending a tile costs.
    pub ramp: f64,
    /// Bytes of an input element.
    pub width: f64,
    /// Seconds that every kernel costs besides.
    pub launch: f64,
}

/// Sides of an output tile, either way round (the same guide lists it as the most efficient).
const TILE: (f64, f64) = (128.0, 256.0);

impl Rate {
    /// Seconds of an `m` x `k` by `k` x `n` product.
    pub fn product(&self, m: f64, n: f64, k: f64) -> f64 {
        self.products(1.0, m, n, k)
    }

    /// Seconds of `count` products of one shape in one kernel.
    pub fn products(&self, count: f64, m: f64, n: f64, k: f64) -> f64 {
        if n == 0.0 || k == 0.0 || m == 0.0 {
            return 0.0;
        }
        let waves = count * m * n / (TILE.0 * TILE.1 * self.multiprocessors);
        let whole = |rows: f64, columns: f64| (count * (m / rows).ceil() * (n / columns).ceil() / self.multiprocessors).ceil();
        let empty = whole(TILE.0, TILE.1).min(whole(TILE.1, TILE.0)) - waves;
        let lost = self.lost_waves + self.quantised * empty;
        let compute = 2.0 * count * m * n * k / self.flops * (1.0 + lost / waves + self.ramp / k);
        let memory = count * (self.width * (m * k + k * n) + 2.0 * m * n) / self.bytes;
        compute.max(memory) + self.launch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        flops: 800e12,
        bytes: 3e12,
        multiprocessors: 132.0,
        lost_waves: 0.5,
        quantised: 0.5,
        ramp: 256.0,
        width: 2.0,
        launch: 3e-6,
    };

    #[test]
    fn a_large_product_nears_the_rate_and_a_small_one_does_not() {
        let share = |size: f64| 2.0 * size.powi(3) / RATE.product(size, size, size) / RATE.flops;
        assert!(share(32768.0) > 0.97);
        assert!(share(4096.0) < 0.85);
        assert!(share(1024.0) < share(4096.0));
    }

    /// One row by a square matrix reads the matrix: 2 bytes x 8192 x 8192 at 3 TB/s are 44.7 us.
    #[test]
    fn a_thin_product_is_bound_by_memory() {
        let seconds = RATE.product(1.0, 8192.0, 8192.0);
        assert!((seconds - 3e-6 - 2.0 * 8192.0 * 8193.0 / 3e12).abs() < 1e-7 || seconds > 44e-6, "{seconds}");
    }

    /// 132 multiprocessors take 12 x 11 tiles at once; one row of tiles more asks for a second wave, which is as long as the first.
    #[test]
    fn a_last_wave_that_is_not_full_takes_as_long_as_one_that_is() {
        let seconds =
            |quantised, m| Rate { quantised, lost_waves: 0.0, ramp: 0.0, launch: 0.0, ..RATE }.product(m, 11.0 * 256.0, 8192.0);
        let (full, more) = (12.0 * 128.0, 13.0 * 128.0);
        assert!((seconds(1.0, more) / seconds(1.0, full) - 2.0).abs() < 1e-9);
        assert!((seconds(0.0, more) / seconds(0.0, full) - 13.0 / 12.0).abs() < 1e-9);
        assert_eq!(seconds(1.0, full), seconds(0.0, full));
    }

    #[test]
    fn a_product_of_nothing_takes_no_time() {
        assert_eq!(RATE.product(0.0, 10.0, 10.0), 0.0);
        assert_eq!(RATE.product(10.0, 0.0, 10.0), 0.0);
    }
}
