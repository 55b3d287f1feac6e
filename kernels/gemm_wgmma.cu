// gemm_wgmma.cu: C = act(op(A) op(B) + bias) on the tensor cores of sm_90a, for large matrices.
// Architectures: sm_90a
// Entries  gemm_wgmma_{bf16,f16}_{nn,nt,tn}_{256,128}; the last number is the width of the tile.
// Shapes   nn: A [M, K], B [K, N]; nt: A [M, K], B [N, K]; tn: A [K, M], B [K, N]; C [M, N] of the operands' type or f32. Any
//          M, N, K >= 1, but the stored rows of A and B must be multiples of 8 elements (TMA). bias f32 [N] or null.
// Tile     128 x 256 x 64 (or 128 x 128 x 64) a block of 384 threads: warpgroup 0 is the producer, one thread of which asks TMA for
//          boxes; warpgroups 1 and 2 multiply, 64 rows each, 128 (or 64) accumulators a thread. A ring of 4 (or 6) stages, 192 KiB.
// Work     2 MNK FLOP over (MK + KN) x 2 + MN x size bytes; persistent grid, tiles ordered in groups of rows so that the blocks under
//          way at one time share their operands in L2.
// Numbers  f32 accumulator, K in order within a split. With splits > 1, C is f32 [splits, M, N], to be added up by another kernel.
#include "hopper.cuh"

// Maps: see emulator/hopper.h. A: K-major box {64, 128}; B: K-major box {64, tile width}; MN-major, either: box {64, 64}.
struct GemmWgmmaArguments {
    TensorMap a, b;
    void* c;
    const float* bias;
    u32 m, n, k;
    u32 splits;      // of K; at most ceil(K / 64). More than 1: no bias, no activation, f32 output
    u32 group;       // rows of tiles that the order walks down before the next column; 16 for width 256, 12 for 128
    u32 activation;  // 0 none, 1 ReLU, 2 GELU
    u32 output_f32;  // 0: C has the operands' type
    u32 unused[5];
};
static_assert(sizeof(GemmWgmmaArguments) == 320, "no padding but the fields'");

constexpr u32 TILE_M = 128, TILE_K = 64, CONSUMERS = 2;

template <u32 TILE_N> struct Ring {
    static constexpr u32 STAGES = TILE_N == 256 ? 4 : 6;
    static constexpr u32 A_BYTES = TILE_M * TILE_K * 2, B_BYTES = TILE_N * TILE_K * 2, STAGE_BYTES = A_BYTES + B_BYTES;
    u8* shared;
    u32 stage = 0, parity;  // the producer begins with parity 1: all stages are empty

    DEVICE Ring(u8* shared, u32 parity) : shared(shared), parity(parity) {}
    DEVICE u8* a() const { return shared + stage * STAGE_BYTES; }
    DEVICE u8* b() const { return a() + A_BYTES; }
    DEVICE u64* full() const { return (u64*)(shared + STAGES * STAGE_BYTES) + stage; }
    DEVICE u64* empty() const { return full() + STAGES; }
    DEVICE void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

struct Task { u32 row, column, first, last, split; };  // of C, and its steps of K

DEVICE u32 count_tasks(const GemmWgmmaArguments& p, u32 tile_n) { return ceil_div(p.m, TILE_M) * ceil_div(p.n, tile_n) * p.splits; }
DEVICE Task task(const GemmWgmmaArguments& p, u32 tile_n, u32 index) {
    const u32 rows = ceil_div(p.m, TILE_M), columns = ceil_div(p.n, tile_n), steps = ceil_div(p.k, TILE_K);
    const u32 split = index / (rows * columns), tile = index % (rows * columns);
    const u32 top = tile / (p.group * columns) * p.group, height = smaller(p.group, rows - top), within = tile - top * columns;
    return {(top + within % height) * TILE_M, within / height * tile_n, (u32)((u64)steps * split / p.splits),
            (u32)((u64)steps * (split + 1) / p.splits), split};
}

template <u32 TILE_N, bool MN_MAJOR_A, bool MN_MAJOR_B> DEVICE void produce(const GemmWgmmaArguments& p, u8* shared) {
    typedef Ring<TILE_N> R;
    R ring(shared, 1);
    for (u32 index = block(); index < count_tasks(p, TILE_N); index += blocks()) {
        const Task t = task(p, TILE_N, index);
        NO_UNROLL for (u32 step = t.first; step < t.last; ++step) {
            const i32 k = (i32)(step * TILE_K), row = (i32)t.row, column = (i32)t.column;
            mbarrier_wait(ring.empty(), ring.parity);
            // Whole boxes, also where they hang over the edge: the rest is filled with zeros and counts.
            mbarrier_arrive_expect(ring.full(), R::STAGE_BYTES);
            if constexpr (MN_MAJOR_A) {
                UNROLL for (u32 i = 0; i < TILE_M; i += 64) tma_load_2d(ring.a() + i * 128, &p.a, ring.full(), row + (i32)i, k);
            } else {
                tma_load_2d(ring.a(), &p.a, ring.full(), k, row);
            }
            if constexpr (MN_MAJOR_B) {
                UNROLL for (u32 i = 0; i < TILE_N; i += 64) tma_load_2d(ring.b() + i * 128, &p.b, ring.full(), column + (i32)i, k);
            } else {
                tma_load_2d(ring.b(), &p.b, ring.full(), k, column);
            }
            ring.advance();
        }
    }
}

// The warpgroup's 64 rows from `row`. A lane stores 16 bytes at a time, a quad 64 consecutive ones, where rows of C are aligned.
template <class T, int COUNT> DEVICE void store(const GemmWgmmaArguments& p, float (&d)[COUNT], const Task& task, u32 row) {
    const u32 t = lane() & 3, first_row = row + (warp() & 3) * 16 + lane() / 4, first_column = task.column + 2 * t;
    if (p.bias) {
        UNROLL for (int j = 0; j < COUNT / 4; ++j) {
            const u32 c = first_column + (u32)j * 8;
            const float b0 = c < p.n ? p.bias[c] : 0.0f, b1 = c + 1 < p.n ? p.bias[c + 1] : 0.0f;
            d[j * 4] += b0;
            d[j * 4 + 1] += b1;
            d[j * 4 + 2] += b0;
            d[j * 4 + 3] += b1;
        }
    }
    if (p.activation == 1) {
        UNROLL for (int i = 0; i < COUNT; ++i) d[i] = larger(d[i], 0.0f);
    } else if (p.activation == 2) {
        UNROLL for (int i = 0; i < COUNT; ++i) d[i] = gelu(d[i]);
    }
    UNROLL for (int half = 0; half < 2; ++half) {
        const u32 r = first_row + (u32)half * 8;
        const bool inside = r < p.m;
        const u64 at = ((u64)task.split * p.m + r) * p.n;
        float* const wide = (float*)p.c + at;
        T* const narrow = (T*)p.c + at;
        if (p.output_f32 && p.n % 4 == 0) {
            UNROLL for (int j = 0; j < COUNT / 4; j += 2) {
                const int o = j * 4 + half * 2;
                // Through a pointer into d, the compiler makes integers of the accumulators and moves them in the main loop.
                const float x0 = d[o], x1 = d[o + 1], x4 = d[o + 4], x5 = d[o + 5];
                const bool odd = t & 1;
                const float y0 = shuffle_xor(odd ? x0 : x4, 1), y1 = shuffle_xor(odd ? x1 : x5, 1);
                const u32 c = task.column + ((u32)j + (t & 1)) * 8 + (t & 2) * 2;
                const Pack<float> out{{odd ? y0 : x0, odd ? y1 : x1, odd ? x4 : y0, odd ? x5 : y1}};
                if (inside && c < p.n) *(Pack<float>*)(wide + c) = out;
            }
        } else if (!p.output_f32 && p.n % 8 == 0) {
            UNROLL for (int j = 0; j < COUNT / 4; j += 4) {
                Pack<u32> out;
                UNROLL for (int i = 0; i < 4; ++i) out.at[i] = pack_pair<T>(d[(j + i) * 4 + half * 2], d[(j + i) * 4 + half * 2 + 1]);
                transpose_quad(out.at);
                const u32 c = task.column + ((u32)j + t) * 8;
                if (inside && c < p.n) *(Pack<u32>*)(narrow + c) = out;
            }
        } else {
            UNROLL for (int i = 0; i < COUNT / 2; ++i) {
                const u32 c = first_column + (u32)(i / 2) * 8 + (u32)(i & 1);
                const float x = d[i / 2 * 4 + half * 2 + (i & 1)];
                if (inside && c < p.n) {
                    if (p.output_f32) wide[c] = x;
                    else narrow[c] = from_f32<T>(x);
                }
            }
        }
    }
}

template <class T, u32 TILE_N, bool MN_MAJOR_A, bool MN_MAJOR_B>
DEVICE void consume(const GemmWgmmaArguments& p, u8* shared, u32 consumer) {
    constexpr u64 STEP_A = MN_MAJOR_A ? WGMMA_STEP_MN_MAJOR : WGMMA_STEP_K_MAJOR;
    constexpr u64 STEP_B = MN_MAJOR_B ? WGMMA_STEP_MN_MAJOR : WGMMA_STEP_K_MAJOR;
    Ring<TILE_N> ring(shared, 0);
    const bool speaker = thread() % 128 == 0;
    for (u32 index = block(); index < count_tasks(p, TILE_N); index += blocks()) {
        const Task t = task(p, TILE_N, index);
        float d[TILE_N / 2];  // of one tile: were it older, the compiler would carry the epilogue's values into the first product
        u64* used = nullptr;
        NO_UNROLL for (u32 step = t.first; step < t.last; ++step) {
            mbarrier_wait(ring.full(), ring.parity);
            // Both layouts put a consumer's 64 rows of A at the same place: 64 rows of 128 bytes, or a box of its own.
            const u64 a = wgmma_descriptor(ring.a() + consumer * 64 * 128), b = wgmma_descriptor(ring.b());
            wgmma_fence();
            UNROLL for (u32 k = 0; k < TILE_K / 16; ++k)
                wgmma<MN_MAJOR_A, MN_MAJOR_B, T>(d, a + k * STEP_A, b + k * STEP_B, step != t.first || k != 0);
            wgmma_commit();
            // The step before is done; this one keeps the tensor cores busy while the next is prepared.
            wgmma_wait<1>();
            if (used && speaker) mbarrier_arrive(used);
            used = ring.empty();
            ring.advance();
        }
        wgmma_wait_for(d);
        if (speaker) mbarrier_arrive(used);
        store<T>(p, d, t, t.row + consumer * 64);
    }
}

template <class T, u32 TILE_N, bool MN_MAJOR_A, bool MN_MAJOR_B> DEVICE void gemm(const GemmWgmmaArguments& p, u8* shared) {
    // From one lane, so that the compiler knows that it is the same in the whole warp.
    const u32 warpgroup = shuffle(thread() / 128, 0);
    if (thread() == 0) {
        tma_prefetch_map(&p.a);
        tma_prefetch_map(&p.b);
        Ring<TILE_N> ring(shared, 0);
        for (u32 i = 0; i < Ring<TILE_N>::STAGES; ++i, ring.advance()) {
            mbarrier_init(ring.full(), 1);
            mbarrier_init(ring.empty(), CONSUMERS);
        }
        mbarrier_init_fence();
    }
    block_sync();
    if (warpgroup == 0) {
        registers_shrink<40>();
        if (thread() == 0) produce<TILE_N, MN_MAJOR_A, MN_MAJOR_B>(p, shared);
    } else {
        registers_grow<232>();
        consume<T, TILE_N, MN_MAJOR_A, MN_MAJOR_B>(p, shared, warpgroup - 1);
    }
}

#define GEMM(T, layout, MN_MAJOR_A, MN_MAJOR_B, width)                                           \
    KERNEL(384) gemm_wgmma_##T##_##layout##_##width(ARGUMENTS(GemmWgmmaArguments) p) {           \
        DYNAMIC_SHARED(shared);                                                                  \
        gemm<T, width, MN_MAJOR_A, MN_MAJOR_B>(p, shared);                                       \
    }                                                                                            \
    EXPORT(gemm_wgmma_##T##_##layout##_##width)
#define ALL(T, width) GEMM(T, nn, false, true, width) GEMM(T, nt, false, false, width) GEMM(T, tn, true, true, width)
ALL(bf16, 256)
ALL(bf16, 128)
ALL(f16, 256)
ALL(f16, 128)
