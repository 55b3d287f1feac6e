//! How long a matrix product takes on one GPU.
//!
//! The roofline (Williams et al., CACM 52(4), 2009) with what keeps a tiled product below it: the last wave of tiles does not fill all
//! multiprocessors, and each tile starts and ends once, however short its inner dimension. Both losses are smooth here: libraries choose among
//! many tiles and split the inner dimension, so the saw-tooth of one tile size does not show.

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
    /// Length of the inner dimension that starting and ending a tile costs.
    pub ramp: f64,
    /// Bytes of an input element.
    pub width: f64,
    /// Seconds that every kernel costs besides.
    pub launch: f64,
}

/// Elements of an output tile: 128 x 256 (NVIDIA, Matrix Multiplication Background User's Guide, 2023, lists it as the most efficient).
const TILE: f64 = 128.0 * 256.0;

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
        let waves = count * m * n / (TILE * self.multiprocessors);
        let compute = 2.0 * count * m * n * k / self.flops * (1.0 + self.lost_waves / waves + self.ramp / k);
        let memory = count * (self.width * (m * k + k * n) + 2.0 * m * n) / self.bytes;
        compute.max(memory) + self.launch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate =
        Rate { flops: 800e12, bytes: 3e12, multiprocessors: 132.0, lost_waves: 0.5, ramp: 256.0, width: 2.0, launch: 3e-6 };

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

    #[test]
    fn a_product_of_nothing_takes_no_time() {
        assert_eq!(RATE.product(0.0, 10.0, 10.0), 0.0);
        assert_eq!(RATE.product(10.0, 0.0, 10.0), 0.0);
    }
}
