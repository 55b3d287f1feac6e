//! Speed of the CPU kernels at the shapes of the shipped models, and of the GEMM crate beside ours.
//!
//! `cargo bench --bench kernels` runs all; `cargo bench --bench kernels -- gemm` one family. One thread, so that figures compare with
//! the peak of one core that `advisor doctor` prints.

use advisor::backend::cpu::kernels::{self, Context, Epilogue, Gemm, Packed24, PackedInt4, PackedInt8, PackedSparse};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};

/// `[M, N, K]`, named by their use.
const PRODUCTS: &[(&str, [usize; 3])] = &[
    ("gemv_fc1", [1, 128, 6272]),
    ("square_64", [64, 64, 64]),
    ("square_128", [128, 128, 128]),
    ("square_256", [256, 256, 256]),
    ("fc1_batch_64", [64, 128, 6272]),
    ("fc1_batch_256", [256, 128, 6272]),
    ("gemv_4096", [1, 4096, 4096]),
];

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|k| ((k * 2_654_435_761) % 2003) as f32 / 1001.0 - 1.0).collect()
}

fn gemm(c: &mut Criterion) {
    let ctx = Context::new(1);
    let mut group = c.benchmark_group("gemm");
    for (name, [m, n, k]) in PRODUCTS {
        let (m, n, k) = (*m, *n, *k);
        // Two FLOP a multiply-add: criterion's "elements a second" are FLOP/s here.
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let (a, b) = (values(m * k), values(k * n));
        let mut out = vec![0.0f32; m * n];
        group.bench_function(BenchmarkId::new("ours_fp32", name), |bencher| {
            bencher.iter(|| kernels::gemm(&ctx, &Gemm::new(m, n, k), &a, &b, Epilogue::default(), &mut out));
        });
        group.bench_function(BenchmarkId::new("crate_fp32", name), |bencher| {
            bencher.iter(|| {
                // SAFETY: row-major slices of m x k, k x n and m x n elements with these strides; nothing else touches `out`.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        out.as_mut_ptr(),
                        1,
                        n as isize,
                        false,
                        a.as_ptr(),
                        1,
                        k as isize,
                        b.as_ptr(),
                        1,
                        n as isize,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            });
        });
        let (low_a, low_b): (Vec<bf16>, Vec<bf16>) =
            (a.iter().map(|v| bf16::from_f32(*v)).collect(), b.iter().map(|v| bf16::from_f32(*v)).collect());
        group.bench_function(BenchmarkId::new("ours_bf16", name), |bencher| {
            bencher.iter(|| kernels::gemm(&ctx, &Gemm::new(m, n, k), &low_a, &low_b, Epilogue::default(), &mut out));
        });
        let grid: Vec<i8> = b.iter().map(|v| (v * 127.0) as i8).collect();
        let packed = PackedInt8::new(k, n, &grid, &vec![0.01; n]);
        let mut x = vec![0i8; m * k];
        group.bench_function(BenchmarkId::new("ours_int8", name), |bencher| {
            bencher.iter(|| {
                kernels::quantize_symmetric(&ctx, &a, 0.01, &mut x);
                kernels::int8_gemm(&ctx, m, &x, &[0.01], &packed, Epilogue::default(), &mut out);
            });
        });
        let mut scales = vec![0.0f32; m];
        group.bench_function(BenchmarkId::new("ours_int8_dynamic", name), |bencher| {
            bencher.iter(|| {
                kernels::quantize_rows(&ctx, k, &a, &mut x, &mut scales);
                kernels::int8_gemm(&ctx, m, &x, &scales, &packed, Epilogue::default(), &mut out);
            });
        });
        let (pairs, steps) = (vec![0x71i8; k.div_ceil(2) * n], vec![f16::from_f32(0.1); k.div_ceil(128) * n]);
        let quarter = PackedInt4::new(k, n, 128, &pairs, &steps);
        group.bench_function(BenchmarkId::new("ours_int4", name), |bencher| {
            bencher.iter(|| kernels::int4_gemm(&ctx, m, &a, &quarter, Epilogue::default(), &mut out));
        });
        let sparse = Packed24::from_f32(k, n, &b);
        group.bench_function(BenchmarkId::new("ours_2_4", name), |bencher| {
            bencher.iter(|| kernels::sparse_gemm(&ctx, m, &a, &sparse, Epilogue::default(), &mut out));
        });
        for zeros in [50, 80, 95] {
            // Whole hundreds of weights have the share, in an order without a pattern.
            let kept: Vec<f32> = b.iter().enumerate().map(|(k, v)| if k * 7919 % 100 < zeros { 0.0 } else { *v }).collect();
            let sparse = PackedSparse::new(k, n, &kept, m);
            group.bench_function(BenchmarkId::new(format!("ours_{zeros}_percent_zeros"), name), |bencher| {
                bencher.iter(|| kernels::unstructured_gemm(&ctx, m, &a, &sparse, Epilogue::default(), &mut out));
            });
        }
    }
    group.finish();
}

fn convolution(c: &mut Criterion) {
    let ctx = Context::new(1);
    let mut group = c.benchmark_group("conv_relu_pool");
    for batch in [1, 64] {
        let conv = kernels::Conv2d {
            batch,
            height: 28,
            width: 28,
            in_channels: 1,
            out_channels: 32,
            kernel: [3, 3],
            stride: [1, 1],
            padding: [1, 1],
        };
        let (x, w, b) = (values(batch * 784), values(9 * 32), values(32));
        let pooled = batch * 14 * 14 * 32;
        let (mut y, mut code) = (vec![0.0f32; pooled], vec![0u8; pooled]);
        let (mut dw, mut db) = (vec![0.0f32; 288], vec![0.0f32; 32]);
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::new("forward", batch), |bencher| {
            bencher.iter(|| kernels::conv_relu_pool(&ctx, &conv, true, &x, &w, &b, &mut y, Some(&mut code)));
        });
        let dy = values(pooled);
        group.bench_function(BenchmarkId::new("backward", batch), |bencher| {
            bencher.iter(|| {
                kernels::conv_relu_pool_backward(&ctx, &conv, &x, &[], &dy, &code, &mut dw, &mut db, None);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, gemm, convolution);
criterion_main!(benches);
