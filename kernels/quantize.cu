// quantize.cu: rows on grids of their own, weights of 4 bits, and the grids that training simulates.
// Entries  quantize_rows_i8 with scale_rows_f32 (an int8 product with a scale a row); largest_f32 (for one scale of a whole tensor);
//          linear_i4_f32, dequantize_i4_f32; channel_scale_f32, fake_quantize_f32, fake_quantize_grad_f32.
// Shapes   quantize_rows: x [R, K] to i8 [R, K] and scales [R], a warp a row. scale_rows: y [R, N] in place: act(y scales[r] + bias[n]).
//          largest: any number of elements; `largest` starts at zero and takes the bits of |x|, which order as the numbers do.
//          linear_i4: y [M, N] = act(x W + bias); x [M, K] fp32, W i8 [ceil(K / 2), N] of two numbers a byte (the low half is the earlier
//          along K), scales f16 [ceil(K / group), N]. Grid (ceil(N / 128), ceil(M / 4)), 8 warps share K. dequantize_i4: W to fp32 [K, N].
//          channel_scale: x [R, N] to [N], 32 columns a block, grid ceil(N / 32). fake_quantize: any number of elements, scales [1] or [N].
// Work     memory-bound. linear_i4 reads half a byte a weight for every 4 rows: for few rows; of many, the weights are widened once.
// Numbers  fp32; the smallest step is the largest magnitude over 127, rounding to nearest even.
#include "common.cuh"

struct QuantizeRowsArguments { const float* x; i8* y; float* scales; u32 rows; u32 columns; };
struct LargestArguments { const float* x; u32* largest; u64 n; };
struct ScaleRowsArguments { const float* scales; const float* bias; float* y; u32 rows; u32 columns; u32 activation; u32 unused; };
struct LinearInt4Arguments { const float* x; const i8* w; const f16* scales; const float* bias; float* y; u32 m; u32 n; u32 k; u32 group; u32 activation; u32 unused; };
struct DequantizeInt4Arguments { const i8* w; const f16* scales; float* y; u32 k; u32 n; u32 group; u32 unused; };
struct ChannelScaleArguments { const float* x; float* scales; u32 rows; u32 columns; };
struct FakeQuantizeArguments { const float* x; const float* scales; const float* dy; float* y; u64 n; u32 columns; u32 unused; };

struct alignas(16) FourFloats { float at[4]; };
struct alignas(4) FourBytes { i8 at[4]; };
struct alignas(8) FourHalves { f16 at[4]; };

DEVICE float on_grid(float x, float scale) { return smaller(larger(round_even(divide(x, scale)), -127.0f), 127.0f); }
DEVICE float step_of(float most) { return most > 0.0f && most < INFINITE ? divide(most, 127.0f) : 1.0f; }
DEVICE float activated(float x, u32 activation) {
    if (activation == 1) return larger(x, 0.0f);
    if (activation == 2) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return x;
}
// The earlier (0) and the later (1) number of a byte.
DEVICE float number_of(i8 byte, int which) { return (float)(which ? (i32)byte >> 4 : (i32)((u32)(i32)byte << 28) >> 28); }

KERNEL(256) quantize_rows_i8(ARGUMENTS(QuantizeRowsArguments) p) {
    for (u32 row = block() * 8 + warp(); row - warp() < p.rows; row += blocks() * 8) {
        // Warps without a row do the last one again and write nothing.
        const bool mine = row < p.rows;
        const u64 at = (u64)smaller(row, p.rows - 1) * p.columns;
        const float* x = p.x + at;
        i8* y = p.y + at;
        float most = 0.0f;
        const bool wide = p.columns % 4 == 0;
        if (wide) {
            for (u32 c = lane() * 4; c < p.columns; c += 128) {
                const FourFloats in = *(const FourFloats*)(x + c);
                UNROLL for (u32 e = 0; e < 4; ++e) most = larger(most, fabsf(in.at[e]));
            }
        } else {
            for (u32 c = lane(); c < p.columns; c += 32) most = larger(most, fabsf(x[c]));
        }
        const float scale = step_of(warp_max(most));
        if (wide) {
            for (u32 c = lane() * 4; c < p.columns && mine; c += 128) {
                const FourFloats in = *(const FourFloats*)(x + c);
                FourBytes out;
                UNROLL for (u32 e = 0; e < 4; ++e) out.at[e] = (i8)(i32)on_grid(in.at[e], scale);
                *(FourBytes*)(y + c) = out;
            }
        } else {
            for (u32 c = lane(); c < p.columns && mine; c += 32) y[c] = (i8)(i32)on_grid(x[c], scale);
        }
        if (lane() == 0 && mine) p.scales[row] = scale;
    }
}
EXPORT(quantize_rows_i8)

KERNEL(256) largest_f32(ARGUMENTS(LargestArguments) p) {
    float most = 0.0f;
    const u64 step = (u64)blocks() * threads() * 4;
    for (u64 first = ((u64)block() * threads() + thread()) * 4; first < p.n; first += step) {
        if (first + 4 <= p.n) {
            const FourFloats in = *(const FourFloats*)(p.x + first);
            UNROLL for (u32 e = 0; e < 4; ++e) most = larger(most, fabsf(in.at[e]));
        } else {
            for (u64 k = first; k < p.n; ++k) most = larger(most, fabsf(p.x[k]));
        }
    }
    most = warp_max(most);
    if (lane() == 0) atomic_max(p.largest, bits_of(most));
}
EXPORT(largest_f32)

KERNEL(256) scale_rows_f32(ARGUMENTS(ScaleRowsArguments) p) {
    const u64 all = (u64)p.rows * p.columns, step = (u64)blocks() * threads() * 4;
    const bool wide = p.columns % 4 == 0;
    for (u64 first = ((u64)block() * threads() + thread()) * 4; first < all; first += step) {
        const u32 row = (u32)(first / p.columns), column = (u32)(first - (u64)row * p.columns);
        if (wide) {
            FourFloats y = *(FourFloats*)(p.y + first);
            const FourFloats bias = *(const FourFloats*)(p.bias + column);
            const float scale = p.scales[row];
            UNROLL for (u32 e = 0; e < 4; ++e) y.at[e] = activated(y.at[e] * scale + bias.at[e], p.activation);
            *(FourFloats*)(p.y + first) = y;
        } else {
            for (u64 k = first; k < all && k < first + 4; ++k) {
                const u32 r = (u32)(k / p.columns);
                p.y[k] = activated(p.y[k] * p.scales[r] + p.bias[(u32)(k - (u64)r * p.columns)], p.activation);
            }
        }
    }
}
EXPORT(scale_rows_f32)

KERNEL(256) linear_i4_f32(ARGUMENTS(LinearInt4Arguments) p) {
    SHARED(float, partial, 8 * 4 * 128);
    const u32 column = block() * 128 + lane() * 4, row = block_y() * 4;
    const u32 pairs = ceil_div(p.k, 2), length = ceil_div(pairs, 8);
    const u32 first = warp() * length, last = smaller(first + length, pairs);
    const bool whole = p.n % 4 == 0 && column + 4 <= p.n;
    float sums[4][4], scale[4];
    UNROLL for (u32 r = 0; r < 4; ++r) UNROLL for (u32 e = 0; e < 4; ++e) sums[r][e] = 0.0f;
    // Rows past the end read the last one again; their sums are never stored.
    const float* x[4];
    UNROLL for (u32 r = 0; r < 4; ++r) x[r] = p.x + (u64)smaller(row + r, p.m - 1) * p.k;
    u32 group_end = 0;
    for (u32 pair = first; pair < last; ++pair) {
        if (2 * pair >= group_end) {
            const u32 group = 2 * pair / p.group;
            group_end = (group + 1) * p.group;
            if (whole) {
                const FourHalves in = *(const FourHalves*)(p.scales + (u64)group * p.n + column);
                UNROLL for (u32 e = 0; e < 4; ++e) scale[e] = to_f32(in.at[e]);
            } else {
                UNROLL for (u32 e = 0; e < 4; ++e) scale[e] = column + e < p.n ? to_f32(p.scales[(u64)group * p.n + column + e]) : 0.0f;
            }
        }
        FourBytes w;
        if (whole) {
            w = *(const FourBytes*)(p.w + (u64)pair * p.n + column);
        } else {
            UNROLL for (u32 e = 0; e < 4; ++e) w.at[e] = column + e < p.n ? p.w[(u64)pair * p.n + column + e] : (i8)0;
        }
        UNROLL for (u32 half = 0; half < 2; ++half) {
            if (2 * pair + half < p.k) {
                float real[4];
                UNROLL for (u32 e = 0; e < 4; ++e) real[e] = number_of(w.at[e], (int)half) * scale[e];
                UNROLL for (u32 r = 0; r < 4; ++r) {
                    const float v = x[r][2 * pair + half];
                    UNROLL for (u32 e = 0; e < 4; ++e) sums[r][e] = fused(v, real[e], sums[r][e]);
                }
            }
        }
    }
    UNROLL for (u32 r = 0; r < 4; ++r) {
        FourFloats out;
        UNROLL for (u32 e = 0; e < 4; ++e) out.at[e] = sums[r][e];
        *(FourFloats*)(partial + (warp() * 4 + r) * 128 + lane() * 4) = out;
    }
    block_sync();
    UNROLL for (u32 turn = 0; turn < 2; ++turn) {
        const u32 place = turn * 256 + thread(), r = row + place / 128, c = block() * 128 + place % 128;
        if (r < p.m && c < p.n) {
            float sum = 0.0f;
            UNROLL for (u32 part = 0; part < 8; ++part) sum += partial[part * 512 + place];
            p.y[(u64)r * p.n + c] = activated(sum + p.bias[c], p.activation);
        }
    }
}
EXPORT(linear_i4_f32)

KERNEL(256) dequantize_i4_f32(ARGUMENTS(DequantizeInt4Arguments) p) {
    const u32 pairs = ceil_div(p.k, 2), quads = ceil_div(p.n, 4);
    const bool wide = p.n % 4 == 0;
    for (u64 at = (u64)block() * threads() + thread(); at < (u64)pairs * quads; at += (u64)blocks() * threads()) {
        const u32 pair = (u32)(at / quads), column = (u32)(at - (u64)pair * quads) * 4, group = 2 * pair / p.group;
        const i8* w = p.w + (u64)pair * p.n + column;
        const f16* scales = p.scales + (u64)group * p.n + column;
        float* y = p.y + (u64)2 * pair * p.n + column;
        if (wide) {
            const FourBytes in = *(const FourBytes*)w;
            const FourHalves scale = *(const FourHalves*)scales;
            UNROLL for (u32 half = 0; half < 2; ++half) {
                FourFloats out;
                UNROLL for (u32 e = 0; e < 4; ++e) out.at[e] = number_of(in.at[e], (int)half) * to_f32(scale.at[e]);
                if (2 * pair + half < p.k) *(FourFloats*)(y + (u64)half * p.n) = out;
            }
        } else {
            for (u32 e = 0; e < 4 && column + e < p.n; ++e)
                for (u32 half = 0; half < 2 && 2 * pair + half < p.k; ++half)
                    y[(u64)half * p.n + e] = number_of(w[e], (int)half) * to_f32(scales[e]);
        }
    }
}
EXPORT(dequantize_i4_f32)

KERNEL(1024) channel_scale_f32(ARGUMENTS(ChannelScaleArguments) p) {
    SHARED(float, most, 32 * 32);
    const u32 column = block() * 32 + lane();
    float mine = 0.0f;
    if (column < p.columns) {
        const float* x = p.x + column;
        u32 row = warp();
        for (; row + 96 < p.rows; row += 128) {
            float four[4];
            UNROLL for (u32 e = 0; e < 4; ++e) four[e] = fabsf(x[(u64)(row + 32 * e) * p.columns]);
            mine = larger(mine, larger(larger(four[0], four[1]), larger(four[2], four[3])));
        }
        for (; row < p.rows; row += 32) mine = larger(mine, fabsf(x[(u64)row * p.columns]));
    }
    most[warp() * 32 + lane()] = mine;
    block_sync();
    if (warp() == 0 && column < p.columns) {
        float all = mine;
        UNROLL for (u32 part = 1; part < 32; ++part) all = larger(all, most[part * 32 + lane()]);
        p.scales[column] = step_of(all);
    }
}
EXPORT(channel_scale_f32)

// One column's scale, or the one of all.
DEVICE float scale_at(const FakeQuantizeArguments& p, u64 k) {
    return p.columns == 1 ? *p.scales : p.scales[p.n >> 32 ? (u32)(k % p.columns) : (u32)k % p.columns];
}

struct OnGrid {
    static DEVICE float of(float x, float scale, float) { return on_grid(x, scale) * scale; }
};
struct Through {
    static DEVICE float of(float x, float scale, float dy) { return fabsf(x) <= 127.0f * scale ? dy : 0.0f; }
};

template <class F, bool GRADIENT> DEVICE void fake_quantize(const FakeQuantizeArguments& p) {
    const u64 step = (u64)blocks() * threads() * 4;
    for (u64 first = ((u64)block() * threads() + thread()) * 4; first < p.n; first += step) {
        if (first + 4 <= p.n) {
            const FourFloats x = *(const FourFloats*)(p.x + first);
            const FourFloats dy = GRADIENT ? *(const FourFloats*)(p.dy + first) : x;
            FourFloats scales, out;
            if (p.columns % 4 == 0) {
                scales = *(const FourFloats*)(p.scales + (p.n >> 32 ? (u32)(first % p.columns) : (u32)first % p.columns));
            } else {
                UNROLL for (u32 e = 0; e < 4; ++e) scales.at[e] = scale_at(p, first + e);
            }
            UNROLL for (u32 e = 0; e < 4; ++e) out.at[e] = F::of(x.at[e], scales.at[e], dy.at[e]);
            *(FourFloats*)(p.y + first) = out;
        } else {
            for (u64 k = first; k < p.n; ++k) p.y[k] = F::of(p.x[k], scale_at(p, k), GRADIENT ? p.dy[k] : 0.0f);
        }
    }
}

KERNEL(256) fake_quantize_f32(ARGUMENTS(FakeQuantizeArguments) p) { fake_quantize<OnGrid, false>(p); }
EXPORT(fake_quantize_f32)
KERNEL(256) fake_quantize_grad_f32(ARGUMENTS(FakeQuantizeArguments) p) { fake_quantize<Through, true>(p); }
EXPORT(fake_quantize_grad_f32)
