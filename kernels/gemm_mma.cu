// gemm_mma.cu: C = op(A) op(B) + bias, activation, on tensor cores by mma.sync: f16, bf16, tf32 (fp32 storage), int8.
// Entries  gemm_{f16,bf16}_{nn,nt,tn}_{128,64} (C as the operands), the same with _f32out; gemm_tf32_{nn,nt,tn}_{128,64};
//          gemm_i8_nt_{128,64} (C f32 = sum * scale_a[0] * scales_b[n] + bias), gemm_reduce_i8.
// Shapes   A [M, K] (t: stored [K, M]), B [K, N] (t: stored [N, K]), C [M, N], bias [N] f32 or null; any M, N, K >= 1, any leading
//          dimension and batch stride (0 too). Rows that do not start at 16 bytes take plain loads, chosen for each operand.
// Grid     (ceil(M / tile) ceil(N / tile), splits, batch), 128 threads. splits > 1: partial sums (int8: i32) go to workspace
//          [splits, batch, M, N], then gemm_reduce_<type of C> (gemm_f32.cu), int8: gemm_reduce_i8, with the same argument.
// Tile     128 x 128 or 64 x 64 by 64 bytes of K (32 of 16 bits, 16 tf32, 64 int8), 4 warps of 64 x 64 or 32 x 32; 3 stages in 48 KiB
//          or 4 in 32 KiB, filled by cp.async; 16-byte chunks permuted by XOR: no conflicts and no padding.
// Work     2MNK FLOP over (MK + KN + MN) x size bytes; 4096 cubed in bf16: 1365 FLOP/byte, compute-bound.
// Numbers  fp32 (int8: i32, exact) sums in the order of K, splits in order: the same bits every time.
// Adds     fragments of the next 32 bytes of K are loaded while these multiply; one barrier a step.
#include "common.cuh"

// gemm_f32.cu has the same.
template <class T, class TC> struct GemmArguments {
    const T* a; const T* b; const float* bias; TC* c; float* workspace; const float* scale_a; const float* scales_b;
    u64 stride_a, stride_b, stride_c;
    u32 m, n, k, lda, ldb, ldc, splits, activation;
};

constexpr u32 MMA_THREADS = 128, ROW = 64;   // ROW: bytes of K a step

// Both steps of the multiplication below run over 32 bytes of K, whatever the type: the fragments' bytes are the same.
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16 t) { mma_m16n8k16(d, a, b0, b1, t); }
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16 t) { mma_m16n8k16(d, a, b0, b1, t); }
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, float) { mma_m16n8k8_tf32(d, a, b0, b1); }
DEVICE void multiply(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, i8) { mma_m16n8k32_i8(d, a, b0, b1); }

template <class T> struct SumOf { typedef float Type; };
template <> struct SumOf<i8> { typedef i32 Type; };
template <class T> struct Rounded { static DEVICE void apply(u32 (&)[4]) {} };
template <> struct Rounded<float> {
    static DEVICE void apply(u32 (&x)[4]) { UNROLL for (int e = 0; e < 4; ++e) x[e] = to_tf32(float_of(x[e])); }
};

DEVICE float mma_activate(float x, u32 activation) {
    if (activation == 1) return larger(x, 0.0f);
    if (activation == 2) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return x;
}
DEVICE u32 rest(u32 end, u32 at) { return at < end ? end - at : 0; }

// One operand's tile of EXTENT rows. K_FAST: memory runs along K; in shared memory a row is 64 bytes, chunk c of row r lies at
// c ^ r / 2 % 4. Otherwise memory runs along the rows; K is the slow direction, chunk c of k lies at c ^ k % 8 (tf32: c ^ 2 (k % 4)).
template <class T, bool K_FAST, int EXTENT> struct Operand {
    static constexpr u32 SIZE = sizeof(T), PER = 16 / SIZE, STEP = ROW / SIZE;
    static constexpr u32 LINE = K_FAST ? ROW : EXTENT * SIZE, CHUNKS = LINE / 16;   // bytes and chunks of a line of shared memory
    static constexpr u32 BYTES = EXTENT * ROW, COPIES = BYTES / 16 / MMA_THREADS, LINES = MMA_THREADS / CHUNKS;
    static constexpr bool WORDS = !K_FAST && SIZE == 4;                             // matrix loads cannot transpose words
    const T* from;
    u32 slow, fast, extent, leading, to, line;   // this thread's first chunk: line and element in memory, byte in the tile
    bool aligned;

    static DEVICE u32 place(u32 line, u32 chunk) {
        return line * LINE + (chunk ^ (K_FAST ? line / 2 % 4 : WORDS ? line % 4 * 2 : line % 8)) * 16;
    }
    DEVICE Operand(const T* base, u32 leading, u32 tile, u32 extent) : extent(extent), leading(leading) {
        line = thread() / CHUNKS;
        const u32 chunk = thread() % CHUNKS;
        slow = (K_FAST ? tile : 0) + line;
        fast = (K_FAST ? 0 : tile) + chunk * PER;
        from = base + (u64)slow * leading + fast;
        to = place(line, chunk);
        aligned = ((u64)base & 15) == 0 && leading % PER == 0;
    }
    // Starts the copy of K from `k` into a stage; zeros past both edges.
    DEVICE void copy(u8* stage, u32 k, u32 end) const {
        UNROLL for (u32 q = 0; q < COPIES; ++q) {
            const u32 line = slow + q * LINES;
            const T* p = from + (K_FAST ? (u64)(q * LINES) * leading + k : (u64)(k + q * LINES) * leading);
            const u32 left = K_FAST ? (line < extent ? rest(end, k + fast) : 0) : (k + line < end ? rest(extent, fast) : 0);
            const u32 valid = smaller(left, PER);
            // Lines a thread copies are LINES apart: a multiple of the permutation's period.
            u8* chunk = stage + to + q * LINES * LINE;
            if (aligned) {
                copy_async16(chunk, p, valid * SIZE);
            } else {
                Pack<T> x;
                UNROLL for (u32 e = 0; e < PER; ++e) {
                    x.at[e] = T{};
                    if (e < valid) x.at[e] = p[e];
                }
                *(Pack<T>*)chunk = x;
            }
        }
    }
    // The lane's place for fragments from row `first` of the tile on.
    static DEVICE u32 start(u32 first, bool is_b) {
        const u32 l = lane();
        if (WORDS) return l % 4 * LINE + ((first + l / 4) ^ (l % 4 * 8)) * 4;
        // A: rows 0-7, rows 8-15, then the same of the next 16 bytes of K. B: rows 0-7 both halves of K, then rows 8-15.
        const u32 low = l / 8 % 2 * 8, high = l / 16 * 8;
        const u32 row = (is_b ? high : low), k_half = (is_b ? low : high);
        if (K_FAST) return place(first + row + l % 8, k_half / 8);
        return place(k_half + l % 8, (first + row) / PER);
    }
    // 16 rows from 16 i on, 32 bytes of K from 32 kk on. A: a0 to a3; B: b0 b1 of 8 rows, b0 b1 of the next 8.
    static DEVICE void fragment(u32 (&x)[4], const u8* stage, u32 start, u32 i, u32 kk, bool is_b) {
        if (WORDS) {
            UNROLL for (u32 e = 0; e < 4; ++e) {
                const u32 row = is_b ? e / 2 : e % 2, k_half = is_b ? e % 2 : e / 2;
                x[e] = *(const u32*)(stage + (start ^ ((2 * i + row) * 32)) + (kk * 8 + k_half * 4) * LINE);
            }
        } else if (K_FAST) {
            load_matrix4(x, stage + ((start + i * 16 * LINE) ^ (kk * 32)));
        } else {
            load_matrix4_transposed(x, stage + (start ^ (i * 16 * SIZE)) + kk * 16 * LINE);
        }
        Rounded<T>::apply(x);
    }
};

struct Place { u32 row, column; };
// Tiles in groups of 8 rows of tiles, down before across: blocks that run together share operands in L2.
DEVICE Place tile_of_block(u32 m, u32 n, u32 tile) {
    const u32 rows = ceil_div(m, tile), columns = ceil_div(n, tile), in_group = 8 * columns;
    const u32 first = block() / in_group * 8, height = smaller(rows - first, 8u), k = block() % in_group;
    return {(first + k % height) * tile, k / height * tile};
}

// Where a warp's slab holds a sum: no conflict for pairs by the fragments' lanes, nor for fours by lanes 4 or 8 columns apart.
template <int WIDE> DEVICE u32 slab_place(u32 row, u32 column) {
    return row * WIDE + (column ^ (row % 4 * 8) ^ ((column / 32 + row) % 2 * 4));
}

// A warp's sums of 32 rows by WIDE columns, from shared memory to `to`, 16 bytes a lane. `finish` makes an output of a sum and its place in the 16 bytes.
template <int WIDE, class TC, class Sum, class Finish>
DEVICE void store_rows(const Sum* slab, TC* to, u32 leading, Place first, u32 m, u32 n, Finish finish) {
    constexpr u32 PER = Pack<TC>::COUNT, LANES = WIDE / PER;   // lanes of a row
    const bool aligned = ((u64)to & 15) == 0 && leading % PER == 0;
    NO_UNROLL for (u32 base = 0; base < 32; base += 32 / LANES) {
        const u32 r = base + lane() / LANES, c = lane() % LANES * PER;
        const u32 row = first.row + r, column = first.column + c, valid = row < m ? smaller(rest(n, column), PER) : 0;
        Pack<TC> out;
        UNROLL for (u32 q = 0; q < PER; q += 4) {
            const Pack<Sum> x = *(const Pack<Sum>*)(slab + slab_place<WIDE>(r, c + q));
            UNROLL for (u32 e = 0; e < 4; ++e) out.at[q + e] = q + e < valid ? finish(x.at[e], q + e) : TC{};
        }
        TC* p = to + (u64)row * leading + column;
        if (aligned && valid == PER) {
            *(Pack<TC>*)p = out;
        } else {
            UNROLL for (u32 e = 0; e < PER; ++e) if (e < valid) p[e] = out.at[e];
        }
    }
}

// COUNT floats, the first `valid` of them from memory.
template <int COUNT> DEVICE void load_columns(float (&x)[COUNT], const float* p, u32 valid) {
    const bool aligned = p && ((u64)p & 15) == 0;
    UNROLL for (u32 q = 0; q < COUNT; q += 4) {
        if (aligned && q + 4 <= valid) {
            const Pack<float> four = *(const Pack<float>*)(p + q);
            UNROLL for (u32 e = 0; e < 4; ++e) x[q + e] = four.at[e];
        } else {
            UNROLL for (u32 e = 0; e < 4; ++e) x[q + e] = p && q + e < valid ? p[q + e] : 0.0f;
        }
    }
}

// An output of a sum, for the columns of C that a lane stores: the same ones in every row.
template <class TC, class Sum> struct Finish {
    float shift[Pack<TC>::COUNT], scales[Pack<TC>::COUNT], scale;
    u32 activation;
    template <class Arguments> DEVICE Finish(const Arguments& p, u32 column) : scale(1.0f), activation(p.activation) {
        load_columns(shift, p.bias ? p.bias + column : nullptr, rest(p.n, column));
        if (!is_float(Sum{})) {
            load_columns(scales, p.scales_b + column, rest(p.n, column));
            scale = *p.scale_a;
        }
    }
    static DEVICE bool is_float(float) { return true; }
    static DEVICE bool is_float(i32) { return false; }
    DEVICE TC operator()(float sum, u32 e) const { return from_f32<TC>(mma_activate(sum + shift[e], activation)); }
    DEVICE TC operator()(i32 sum, u32 e) const { return (*this)((float)sum * scale * scales[e], e); }
};
template <class Sum> struct Raw { DEVICE Sum operator()(Sum sum, u32) const { return sum; } };

template <class T, class TC, bool TRANSPOSE_A, bool TRANSPOSE_B, int TILE> DEVICE void gemm_mma(const GemmArguments<T, TC>& p) {
    constexpr int STAGES = TILE == 128 ? 3 : 4, WARP = TILE / 2, I = WARP / 16, J = WARP / 16, STAGE = 2 * TILE * (int)ROW;
    typedef typename SumOf<T>::Type Sum;
    typedef Operand<T, !TRANSPOSE_A, TILE> A;
    typedef Operand<T, TRANSPOSE_B, TILE> B;
    SHARED(u8, memory, STAGES * STAGE);
    const Place tile = tile_of_block(p.m, p.n, TILE);
    const u32 length = ceil_div(ceil_div(p.k, A::STEP), p.splits);   // steps a split
    const u32 first = block_y() * length, all = ceil_div(p.k, A::STEP);
    const u32 steps = smaller(rest(all, first), length);
    const A a(p.a + block_z() * p.stride_a, p.lda, tile.row, p.m);
    const B b(p.b + block_z() * p.stride_b, p.ldb, tile.column, p.n);
    const Place at = {warp() / 2 * WARP, warp() % 2 * WARP};
    const u32 start_a = A::start(at.row, false), start_b = TILE * ROW + B::start(at.column, true);

    Sum sums[I][2 * J][4];
    UNROLL for (int i = 0; i < I; ++i) UNROLL for (int j = 0; j < 2 * J; ++j) UNROLL for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
    u32 x[2][I][4], y[2][J][4];

    UNROLL for (u32 s = 0; s < STAGES - 1; ++s) {
        if (s < steps) {
            a.copy(memory + s * STAGE, (first + s) * A::STEP, p.k);
            b.copy(memory + s * STAGE + TILE * ROW, (first + s) * A::STEP, p.k);
        }
        copy_async_commit();
    }
    copy_async_wait<STAGES - 2>();
    block_sync();
    UNROLL for (int i = 0; i < I; ++i) A::fragment(x[0][i], memory, start_a, i, 0, false);
    UNROLL for (int j = 0; j < J; ++j) B::fragment(y[0][j], memory, start_b, j, 0, true);

    u32 now = 0, fill = (STAGES - 1) * STAGE;   // stages as byte offsets
    NO_UNROLL for (u32 step = 0; step < steps; ++step) {
        const u8* here = memory + now;
        // Every warp has read the stage to be filled: its last fragments were loaded before the barrier of the step before.
        if (step + STAGES - 1 < steps) {
            a.copy(memory + fill, (first + step + STAGES - 1) * A::STEP, p.k);
            b.copy(memory + fill + TILE * ROW, (first + step + STAGES - 1) * A::STEP, p.k);
        }
        copy_async_commit();
        fill = now;
        now = now + STAGE == STAGES * STAGE ? 0 : now + STAGE;
        UNROLL for (int kk = 0; kk < 2; ++kk) {
            if (kk == 1) {
                copy_async_wait<STAGES - 2>();
                block_sync();
                here = memory + now;   // after the last step: whatever lies there, never multiplied
            }
            UNROLL for (int i = 0; i < I; ++i) A::fragment(x[kk ^ 1][i], here, start_a, i, kk ^ 1, false);
            UNROLL for (int j = 0; j < J; ++j) B::fragment(y[kk ^ 1][j], here, start_b, j, kk ^ 1, true);
            UNROLL for (int i = 0; i < I; ++i)
                UNROLL for (int j = 0; j < 2 * J; ++j)
                    multiply(sums[i][j], x[kk][i], y[kk][j / 2][j % 2 * 2], y[kk][j / 2][j % 2 * 2 + 1], T{});
        }
    }
    copy_async_wait<0>();
    block_sync();

    // 32 rows at a time through the warp's own slab of shared memory: whole sectors out, and the activation's code only once a slab.
    Sum* slab = (Sum*)memory + warp() * (32 * WARP);
    const u32 g = lane() / 4, t = lane() % 4;
    UNROLL for (int half = 0; half < I / 2; ++half) {
        warp_sync();
        UNROLL for (int i = 0; i < 2; ++i)
            UNROLL for (int j = 0; j < 2 * J; ++j)
                UNROLL for (int d = 0; d < 2; ++d) {
                    struct alignas(8) { Sum low, high; } pair = {sums[half * 2 + i][j][2 * d], sums[half * 2 + i][j][2 * d + 1]};
                    *(decltype(pair)*)(slab + slab_place<WARP>(i * 16 + d * 8 + g, 8 * j + 2 * t)) = pair;
                }
        warp_sync();
        const Place to = {tile.row + at.row + half * 32, tile.column + at.column};
        if (p.splits > 1) {
            Sum* part = (Sum*)p.workspace + ((u64)block_y() * blocks_z() + block_z()) * p.m * p.n;
            store_rows<WARP>(slab, part, p.n, to, p.m, p.n, Raw<Sum>{});
        } else {
            const Finish<TC, Sum> finish(p, to.column + lane() % (WARP / Pack<TC>::COUNT) * Pack<TC>::COUNT);
            store_rows<WARP>(slab, p.c + block_z() * p.stride_c, p.ldc, to, p.m, p.n, finish);
        }
    }
}

// As gemm_reduce of gemm_f32.cu, of i32 sums.
KERNEL_OCCUPANCY(256, 4) gemm_reduce_i8(ARGUMENTS(GemmArguments<i8, float>) p) {
    const u64 area = (u64)p.m * p.n;
    const i32* from = (const i32*)p.workspace + block_z() * area;
    const float scale = *p.scale_a;
    for (u64 at = (u64)block() * threads() + thread(); at < area; at += (u64)blocks() * threads()) {
        const u32 row = area >> 32 ? (u32)(at / p.n) : (u32)at / p.n, column = (u32)(at - (u64)row * p.n);
        i32 sum = 0;
        for (u32 s = 0; s < p.splits; ++s) sum += from[s * area * blocks_z() + at];
        p.c[block_z() * p.stride_c + (u64)row * p.ldc + column] =
            mma_activate((float)sum * scale * p.scales_b[column] + (p.bias ? p.bias[column] : 0.0f), p.activation);
    }
}
EXPORT(gemm_reduce_i8)

// 128 x 128: two blocks an SM, 64 x 64: four.
#define ENTRY(name, T, TC, ta, tb)                                                                                   \
    KERNEL_OCCUPANCY(128, 2) name##_128(ARGUMENTS(GemmArguments<T, TC>) p) { gemm_mma<T, TC, ta, tb, 128>(p); }      \
    EXPORT(name##_128)                                                                                               \
    KERNEL_OCCUPANCY(128, 4) name##_64(ARGUMENTS(GemmArguments<T, TC>) p) { gemm_mma<T, TC, ta, tb, 64>(p); }        \
    EXPORT(name##_64)
#define ENTRY_F32OUT(name, T, ta, tb)                                                                                \
    KERNEL_OCCUPANCY(128, 2) name##_128_f32out(ARGUMENTS(GemmArguments<T, float>) p) { gemm_mma<T, float, ta, tb, 128>(p); } \
    EXPORT(name##_128_f32out)                                                                                        \
    KERNEL_OCCUPANCY(128, 4) name##_64_f32out(ARGUMENTS(GemmArguments<T, float>) p) { gemm_mma<T, float, ta, tb, 64>(p); } \
    EXPORT(name##_64_f32out)
#define LAYOUTS(name, T, TC) ENTRY(name##_nn, T, TC, false, false) ENTRY(name##_nt, T, TC, false, true) ENTRY(name##_tn, T, TC, true, false)
#define LAYOUTS_F32OUT(name, T)                                                                                      \
    ENTRY_F32OUT(name##_nn, T, false, false) ENTRY_F32OUT(name##_nt, T, false, true) ENTRY_F32OUT(name##_tn, T, true, false)

LAYOUTS(gemm_f16, f16, f16)
LAYOUTS_F32OUT(gemm_f16, f16)
LAYOUTS(gemm_bf16, bf16, bf16)
LAYOUTS_F32OUT(gemm_bf16, bf16)
LAYOUTS(gemm_tf32, float, float)
ENTRY(gemm_i8_nt, i8, float, false, true)
