// gemm_f32.cu: C = op(A) op(B) + bias, activation, on CUDA cores in fp32; a skinny path; the second step of a split over K.
// Entries  gemm_f32_{nn,nt,tn,tt}_{128,64,32}, gemv_f32_{nn,nt}, gemm_reduce_{f32,f16,bf16}.
// Shapes   A [M, K] (t: stored [K, M]), B [K, N] (t: stored [N, K]), C [M, N], bias [N] f32 or null; any M, N, K >= 1, any leading
//          dimension and batch stride (0 too); gemv: M <= 8. activation: 0 none, 1 relu, 2 gelu.
// Grid     gemm: (ceil(M / height) ceil(N / width), splits, batch) of 128 threads; gemv_nn: x = ceil(N / 128); gemv_nt: x = ceil(N / 32), of 256.
//          splits > 1: partial sums go to workspace [splits, batch, M, N]; then gemm_reduce_T with the same argument,
//          (about ceil(M N / 1024), 1, batch) of 256 threads, a stride over the rest.
// Tile     64 x 128 x 16, 8 x 8 outputs a thread; 64 x 64 x 16, 4 x 8; 32 x 32 x 64, 8 x 4, for products of few outputs: each warp takes
//          a quarter of a step's K, and their sums are added at the end (the last number of a name is the width). Two buffers of shared
//          memory, one barrier a step. Operands lie as [k][row], with 4 numbers between the rows of one that is turned on its way there;
//          what a thread multiplies next is read while it multiplies. Tiles that lie inside C, of aligned operands, are read unguarded.
// Work     2MNK FLOP; gemv reads B once: memory-bound at K N 4 bytes.
// Numbers  fp32, K in order within a split (gemv_nn: 8 interleaved sums, gemv_nt: 128), splits in order: the same bits every time.
#include "common.cuh"

// gemm_mma.cu has the same; the scales are its int8 entries' business.
template <class T, class TC> struct GemmArguments {
    const T* a; const T* b; const float* bias; TC* c; float* workspace; const float* scale_a; const float* scales_b;
    u64 stride_a, stride_b, stride_c;
    u32 m, n, k, lda, ldb, ldc, splits, activation;
};
typedef GemmArguments<float, float> GemmF32;

DEVICE float gemm_activate(float x, u32 activation) {
    if (activation == 1) return larger(x, 0.0f);
    if (activation == 2) return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    return x;
}

DEVICE bool aligned16(const float* p, u32 leading) { return ((u64)p & 15) == 0 && leading % 4 == 0; }
DEVICE u32 remaining(u32 end, u32 at) { return at < end ? end - at : 0; }

// Four floats, the first `valid` of them from memory, the rest zero.
DEVICE Pack<float> load4(const float* p, bool aligned, u32 valid) {
    if (aligned && valid >= 4) return *(const Pack<float>*)p;
    Pack<float> x;
    UNROLL for (u32 e = 0; e < 4; ++e) x.at[e] = e < valid ? p[e] : 0.0f;
    return x;
}
DEVICE void store4(float* p, const Pack<float>& x, bool aligned, u32 valid) {
    if (aligned && valid >= 4) {
        *(Pack<float>*)p = x;
    } else {
        UNROLL for (u32 e = 0; e < 4; ++e) if (e < valid) p[e] = x.at[e];
    }
}

struct Range { u32 first, last; };
// This block's part of K, a multiple of `step` but at the end of K.
DEVICE Range range_of_split(const GemmF32& p, u32 step) {
    const u32 length = ceil_div(ceil_div(p.k, step), p.splits) * step;
    const u64 first = (u64)block_y() * length;
    return {(u32)smaller<u64>(first, p.k), (u32)smaller<u64>(first + length, p.k)};
}

// Where this block's outputs go: C, or its part of the workspace.
struct Output {
    float* to;
    const float* bias;
    u32 leading, activation;
    DEVICE explicit Output(const GemmF32& p) {
        const bool whole = p.splits == 1;
        to = whole ? p.c + block_z() * p.stride_c : p.workspace + ((u64)block_y() * blocks_z() + block_z()) * p.m * p.n;
        bias = whole ? p.bias : nullptr;
        leading = whole ? p.ldc : p.n;
        activation = whole ? p.activation : 0;
    }
    DEVICE float finish(float sum, u32 column) const { return gemm_activate(bias ? sum + bias[column] : sum, activation); }
};

constexpr u32 GEMM_THREADS = 128;

// One thread's share of an operand's tile, EXTENT rows by BK of K. K_FAST: memory runs along K.
template <bool K_FAST, int EXTENT, int BK> struct TileLoader {
    static constexpr u32 STEP = BK;
    static constexpr u32 CHUNKS = (K_FAST ? BK : EXTENT) / 4;   // of 16 bytes along the fast direction
    static constexpr u32 COPIES = EXTENT * BK / 4 / GEMM_THREADS, LINES = GEMM_THREADS / CHUNKS;
    static constexpr u32 LINE = EXTENT + (K_FAST ? 4 : 0), SIZE = BK * LINE;   // numbers of a row of the tile, and of all
    // Of long steps a warp takes a quarter of 8 rows: turned, whole rows of one bank would meet.
    static constexpr bool SPREAD = K_FAST && BK == 64;
    static_assert(!SPREAD || LINES == 8, "4 warps side by side");
    const float* from;
    u32 slow, fast, rows_left, leading;   // place in the tile; rows of the operand from this thread's first on
    bool aligned;
    Pack<float> next[COPIES];
    DEVICE TileLoader(const float* base, u32 leading, u32 tile, u32 extent)
        : slow(SPREAD ? lane() / 4 : thread() / CHUNKS), fast(4 * (SPREAD ? warp() * 4 + lane() % 4 : thread() % CHUNKS)), leading(leading),
          aligned(aligned16(base, leading)) {
        const u32 row = tile + (K_FAST ? slow : fast);
        rows_left = remaining(extent, row);
        from = K_FAST ? base + (u64)row * leading + fast : base + (u64)slow * leading + row;
    }
    template <bool WHOLE> DEVICE void load(u32 k, u32 end) {
        const float* at = from + (K_FAST ? (u64)k : (u64)k * leading);
        UNROLL for (u32 q = 0; q < COPIES; ++q, at += (u64)LINES * leading) {
            if (WHOLE) {
                next[q] = *(const Pack<float>*)at;
            } else {
                const u32 line = q * LINES, k_left = remaining(end, k + (K_FAST ? fast : slow + line));
                if (K_FAST) next[q] = load4(at, aligned, line < rows_left ? k_left : 0);
                else next[q] = load4(at, aligned, k_left ? rows_left : 0);
            }
        }
    }
    DEVICE void store(float* tile) const {
        UNROLL for (u32 q = 0; q < COPIES; ++q) {
            const u32 line = slow + q * LINES;
            if (K_FAST) {
                UNROLL for (u32 e = 0; e < 4; ++e) tile[(fast + e) * LINE + line] = next[q].at[e];
            } else {
                *(Pack<float>*)(tile + line * LINE + fast) = next[q];
            }
        }
    }
};

struct Place { u32 row, column; };
// Tiles in groups of 8 rows of tiles, down before across: blocks that run together share operands in L2.
DEVICE Place tile_of_block(u32 m, u32 n, u32 height, u32 width) {
    const u32 rows = ceil_div(m, height), columns = ceil_div(n, width), in_group = 8 * columns;
    const u32 first = block() / in_group * 8, down = smaller(rows - first, 8u), k = block() % in_group;
    return {(first + k % down) * height, k / down * width};
}

// A tile's sums over its part of K, of which this warp takes slice `slice` of SLICES of every step: the next step is on its way from memory
// while this one is multiplied from shared memory.
template <bool WHOLE, int SLICES, class LoaderA, class LoaderB, int I, int J>
DEVICE void sum_tile(LoaderA& a, LoaderB& b, Range range, float* tiles, u32 row, u32 column, u32 slice, float (&sums)[4 * I][4 * J]) {
    constexpr u32 STAGE = LoaderA::SIZE + LoaderB::SIZE, BK = LoaderA::STEP, DEPTH = BK / SLICES;
    Pack<float> x[2][I], y[2][J];
    auto fetch = [&](u32 k) {
        a.template load<WHOLE>(k, range.last);
        b.template load<WHOLE>(k, range.last);
    };
    auto keep = [&](float* stage) {
        a.store(stage);
        b.store(stage + LoaderA::SIZE);
    };
    const float* const from_a = tiles + slice * DEPTH * LoaderA::LINE + row;
    const float* const from_b = tiles + LoaderA::SIZE + slice * DEPTH * LoaderB::LINE + column;
    auto read = [&](u32 into, u32 stage, u32 k) {
        UNROLL for (u32 i = 0; i < I; ++i) x[into][i] = *(const Pack<float>*)(from_a + stage + k * LoaderA::LINE + 16 * i);
        UNROLL for (u32 j = 0; j < J; ++j) y[into][j] = *(const Pack<float>*)(from_b + stage + k * LoaderB::LINE + 32 * j);
    };
    fetch(range.first);
    keep(tiles);
    block_sync();
    read(0, 0, 0);
    u32 stage = 0;
    for (u32 k = range.first; k < range.last; k += BK) {
        const bool more = k + BK < range.last;
        if (more) fetch(k + BK);
        UNROLL for (u32 kk = 0; kk < DEPTH; ++kk) {
            if (kk + 1 < DEPTH) {
                read((kk + 1) % 2, stage, kk + 1);
            } else {
                // The other stage was last read before the barrier that ended the step before.
                stage = STAGE - stage;
                if (more) keep(tiles + stage);
                block_sync();
                if (more) read(0, stage, 0);
            }
            UNROLL for (int r = 0; r < 4 * I; ++r)
                UNROLL for (int c = 0; c < 4 * J; ++c)
                    sums[r][c] = fused(x[kk % 2][r / 4].at[r % 4], y[kk % 2][c / 4].at[c % 4], sums[r][c]);
        }
    }
}

// 4 warps, of which ACROSS lie side by side and SLICES share a place; a warp is 4 x 8 lanes, a lane has I x J pieces of 4 x 4, 16 rows and 32
// columns apart.
template <bool TRANSPOSE_A, bool TRANSPOSE_B, int HEIGHT, int WIDTH, int BK, int SLICES> DEVICE void gemm_f32(const GemmF32& p) {
    constexpr int J = WIDTH == 32 ? 1 : 2;
    constexpr u32 ACROSS = WIDTH / (32 * J), DOWN = 4 / SLICES / ACROSS;
    constexpr int I = HEIGHT / 16 / DOWN;
    typedef TileLoader<!TRANSPOSE_A, HEIGHT, BK> LoaderA;
    typedef TileLoader<TRANSPOSE_B, WIDTH, BK> LoaderB;
    SHARED(float, tiles, 2 * (LoaderA::SIZE + LoaderB::SIZE));
    const Place tile = tile_of_block(p.m, p.n, HEIGHT, WIDTH);
    const Range range = range_of_split(p, BK);
    LoaderA a(p.a + block_z() * p.stride_a, p.lda, tile.row, p.m);
    LoaderB b(p.b + block_z() * p.stride_b, p.ldb, tile.column, p.n);
    const u32 slice = SLICES == 1 ? 0 : warp() % SLICES, place = warp() / SLICES;
    const u32 row = place / ACROSS * (16 * I) + lane() / 8 * 4, column = place % ACROSS * (32 * J) + lane() % 8 * 4;

    float sums[4 * I][4 * J];
    UNROLL for (int r = 0; r < 4 * I; ++r) UNROLL for (int c = 0; c < 4 * J; ++c) sums[r][c] = 0.0f;
    const bool inside = tile.row + HEIGHT <= p.m && tile.column + WIDTH <= p.n && (range.last - range.first) % BK == 0;
    if (inside && a.aligned && b.aligned && range.first < range.last) {
        sum_tile<true, SLICES, LoaderA, LoaderB, I, J>(a, b, range, tiles, row, column, slice, sums);
    } else {
        sum_tile<false, SLICES, LoaderA, LoaderB, I, J>(a, b, range, tiles, row, column, slice, sums);
    }

    const Output output(p);
    const bool aligned = aligned16(output.to, output.leading);
    if (SLICES > 1) {
        // All warps' sums into shared memory; then a thread adds up and stores two pieces of four, warp by warp.
        UNROLL for (int r = 0; r < 4 * I; ++r) {
            UNROLL for (int j = 0; j < J; ++j) {
                Pack<float> x;
                UNROLL for (int e = 0; e < 4; ++e) x.at[e] = sums[r][4 * j + e];
                const u32 at_row = row + r / 4 * 16 + r % 4;
                *(Pack<float>*)(tiles + (slice * HEIGHT + at_row) * WIDTH + column + 32 * j) = x;
            }
        }
        block_sync();
        NO_UNROLL for (u32 at = thread() * 4; at < HEIGHT * WIDTH; at += GEMM_THREADS * 4) {
            Pack<float> x = *(const Pack<float>*)(tiles + at);
            UNROLL for (u32 s = 1; s < SLICES; ++s) {
                const Pack<float> other = *(const Pack<float>*)(tiles + s * HEIGHT * WIDTH + at);
                UNROLL for (u32 e = 0; e < 4; ++e) x.at[e] += other.at[e];
            }
            const u32 to_row = tile.row + at / WIDTH, to_column = tile.column + at % WIDTH;
            const u32 valid = to_row < p.m ? remaining(p.n, to_column) : 0;
            UNROLL for (u32 e = 0; e < 4; ++e) if (e < valid) x.at[e] = output.finish(x.at[e], to_column + e);
            store4(output.to + (u64)to_row * output.leading + to_column, x, aligned, valid);
        }
        return;
    }
    // Through four slots of shared memory that are this thread's own, so that the loop need not be unrolled: gelu is long.
    UNROLL for (u32 g = 0; g < 2 * I; ++g) {
        UNROLL for (u32 q = 0; q < 4; ++q) {
            Pack<float> x;
            UNROLL for (u32 e = 0; e < 4; ++e) x.at[e] = sums[g * 2 + q / 2][q % 2 * 4 + e];
            *(Pack<float>*)(tiles + (q * GEMM_THREADS + thread()) * 4) = x;
        }
        NO_UNROLL for (u32 q = 0; q < 4; ++q) {
            const u32 r = g * 2 + q / 2, to_row = tile.row + row + r / 4 * 16 + r % 4;
            const u32 to_column = tile.column + column + 32 * (q % 2), valid = to_row < p.m ? remaining(p.n, to_column) : 0;
            Pack<float> x = *(const Pack<float>*)(tiles + (q * GEMM_THREADS + thread()) * 4);
            UNROLL for (u32 e = 0; e < 4; ++e) if (e < valid) x.at[e] = output.finish(x.at[e], to_column + e);
            store4(output.to + (u64)to_row * output.leading + to_column, x, aligned, valid);
        }
    }
}

// B [K, N]: a block has 128 columns, 4 a lane; its 8 warps take every 8th row of B and are summed at the end.
DEVICE void gemv_f32_along_n(const GemmF32& p) {
    constexpr u32 DEPTH = 512;
    SHARED(float, staged, 8 * DEPTH);   // A as [k][8 rows]; later the warps' sums, 4 rows at a time
    const float* a = p.a + block_z() * p.stride_a;
    const float* b = p.b + block_z() * p.stride_b;
    const bool aligned = aligned16(b, p.ldb);
    const Range range = range_of_split(p, 8);
    const u32 column = block() * 128 + lane() * 4, columns = remaining(p.n, column);
    float sums[8][4];
    UNROLL for (int r = 0; r < 8; ++r) UNROLL for (int c = 0; c < 4; ++c) sums[r][c] = 0.0f;
    for (u32 first = range.first; first < range.last; first += DEPTH) {
        const u32 count = smaller(DEPTH, range.last - first);
        block_sync();
        const u32 row = thread() % 8;
        for (u32 k = thread() / 8; k < DEPTH; k += 32)
            staged[k * 8 + row] = row < p.m && k < count ? a[(u64)row * p.lda + first + k] : 0.0f;
        block_sync();
        for (u32 base = warp(); base < count; base += 32) {
            Pack<float> w[4];
            UNROLL for (u32 u = 0; u < 4; ++u) {
                const u32 k = base + 8 * u;
                w[u] = load4(b + (u64)(first + k) * p.ldb + column, aligned, k < count ? columns : 0);
            }
            UNROLL for (u32 u = 0; u < 4; ++u) {
                UNROLL for (u32 half = 0; half < 2; ++half) {
                    const Pack<float> x = *(const Pack<float>*)(staged + (base + 8 * u) * 8 + half * 4);
                    UNROLL for (int r = 0; r < 4; ++r)
                        UNROLL for (int c = 0; c < 4; ++c) sums[half * 4 + r][c] = fused(x.at[r], w[u].at[c], sums[half * 4 + r][c]);
                }
            }
        }
    }
    const Output output(p);
    UNROLL for (u32 half = 0; half < 2; ++half) {
        block_sync();
        UNROLL for (u32 r = 0; r < 4; ++r) {
            Pack<float> x;
            UNROLL for (int c = 0; c < 4; ++c) x.at[c] = sums[half * 4 + r][c];
            *(Pack<float>*)(staged + (warp() * 4 + r) * 128 + lane() * 4) = x;
        }
        block_sync();
        UNROLL for (u32 q = 0; q < 2; ++q) {
            const u32 place = thread() + 256 * q, to_row = half * 4 + place / 128, to_column = block() * 128 + place % 128;
            float sum = 0.0f;
            UNROLL for (u32 w = 0; w < 8; ++w) sum += staged[w * 512 + place];
            if (to_row < p.m && to_column < p.n) output.to[(u64)to_row * output.leading + to_column] = output.finish(sum, to_column);
        }
    }
}

// B [N, K]: a warp has 4 columns and reads along K; the 32 sums meet in 31 shuffles, one to a lane.
DEVICE void gemv_f32_along_k(const GemmF32& p) {
    const float* a = p.a + block_z() * p.stride_a;
    const float* b = p.b + block_z() * p.stride_b;
    const bool aligned_a = aligned16(a, p.lda), aligned_b = aligned16(b, p.ldb);
    const Range range = range_of_split(p, 8);
    const u32 column = (block() * 8 + warp()) * 4;
    float sums[32];
    UNROLL for (int s = 0; s < 32; ++s) sums[s] = 0.0f;
    for (u32 k = range.first + lane() * 4; k < range.last; k += 128) {
        const u32 left = range.last - k;
        Pack<float> w[4];
        UNROLL for (u32 c = 0; c < 4; ++c) w[c] = load4(b + (u64)(column + c) * p.ldb + k, aligned_b, column + c < p.n ? left : 0);
        UNROLL for (u32 r = 0; r < 8; ++r) {
            if (r < p.m) {
                const Pack<float> x = load4(a + (u64)r * p.lda + k, aligned_a, left);
                UNROLL for (int c = 0; c < 4; ++c)
                    UNROLL for (int e = 0; e < 4; ++e) sums[r * 4 + c] = fused(x.at[e], w[c].at[e], sums[r * 4 + c]);
            }
        }
    }
    // Each round a lane keeps the half of the sums that its bit names, and gives the other half away.
    UNROLL for (u32 by = 16; by > 0; by >>= 1) {
        const bool upper = lane() & by;
        UNROLL for (u32 s = 0; s < by; ++s) {
            const float keep = upper ? sums[s + by] : sums[s], give = upper ? sums[s] : sums[s + by];
            sums[s] = keep + shuffle_xor(give, by);
        }
    }
    const Output output(p);
    const u32 to_row = lane() / 4, to_column = column + lane() % 4;
    if (to_row < p.m && to_column < p.n) output.to[(u64)to_row * output.leading + to_column] = output.finish(sums[0], to_column);
}

// C from the workspace: parts in order, then bias and activation. 4 outputs a thread where rows divide by 4.
template <class T> DEVICE void gemm_reduce(const GemmArguments<T, T>& p) {
    constexpr u32 COUNT = 4;
    struct alignas(COUNT * sizeof(T)) Block { T at[COUNT]; };
    const u64 area = (u64)p.m * p.n, part = area * blocks_z();
    const float* from = p.workspace + block_z() * area;
    T* c = p.c + block_z() * p.stride_c;
    const bool aligned = p.n % COUNT == 0 && p.ldc % COUNT == 0 && (u64)c % sizeof(Block) == 0;
    const u32 count = aligned ? COUNT : 1;
    for (u64 at = ((u64)block() * threads() + thread()) * count; at < area; at += (u64)blocks() * threads() * count) {
        const u32 row = area >> 32 ? (u32)(at / p.n) : (u32)at / p.n, column = (u32)(at - (u64)row * p.n);
        T* to = c + (u64)row * p.ldc + column;
        if (aligned) {
            Pack<float> sum = *(const Pack<float>*)(from + at);
            for (u32 s = 1; s < p.splits; ++s) {
                const Pack<float> x = *(const Pack<float>*)(from + s * part + at);
                UNROLL for (u32 e = 0; e < COUNT; ++e) sum.at[e] += x.at[e];
            }
            Block out;
            UNROLL for (u32 e = 0; e < COUNT; ++e)
                out.at[e] = from_f32<T>(gemm_activate(p.bias ? sum.at[e] + p.bias[column + e] : sum.at[e], p.activation));
            *(Block*)to = out;
        } else {
            float sum = from[at];
            for (u32 s = 1; s < p.splits; ++s) sum += from[s * part + at];
            *to = from_f32<T>(gemm_activate(p.bias ? sum + p.bias[column] : sum, p.activation));
        }
    }
}

#define TILE(name, resident, ...)                                                                                    \
    KERNEL_OCCUPANCY(128, resident) name(ARGUMENTS(GemmF32) p) { gemm_f32<__VA_ARGS__>(p); }                         \
    EXPORT(name)
#define GEMM(op, ta, tb)                                                                                             \
    TILE(gemm_f32_##op##_128, 3, ta, tb, 64, 128, 16, 1)                                                             \
    TILE(gemm_f32_##op##_64, 4, ta, tb, 64, 64, 16, 1)                                                               \
    TILE(gemm_f32_##op##_32, 3, ta, tb, 32, 32, 64, 4)
#define REDUCE(T, suffix)                                                                                            \
    KERNEL_OCCUPANCY(256, 4) gemm_reduce_##suffix(ARGUMENTS(GemmArguments<T, T>) p) { gemm_reduce<T>(p); }                        \
    EXPORT(gemm_reduce_##suffix)

GEMM(nn, false, false)
GEMM(nt, false, true)
GEMM(tn, true, false)
GEMM(tt, true, true)
KERNEL(256) gemv_f32_nn(ARGUMENTS(GemmF32) p) { gemv_f32_along_n(p); }
EXPORT(gemv_f32_nn)
KERNEL(256) gemv_f32_nt(ARGUMENTS(GemmF32) p) { gemv_f32_along_k(p); }
EXPORT(gemv_f32_nt)
REDUCE(float, f32)
REDUCE(f16, f16)
REDUCE(bf16, bf16)
