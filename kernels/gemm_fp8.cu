// gemm_fp8.cu: C = act(A B^T / (s t) + bias) of 8-bit floats on the tensor cores of sm_90a; A holds numbers times s, B numbers times t.
// Architectures: sm_90a
// Entries  gemm_fp8_{e4m3_e4m3,e5m2_e4m3,e4m3_e5m2}: formats of A and B.
// Shapes   A [M, K], B [N, K], one byte an element; C [M, N] of bf16 or f32. Any M, N >= 1; K a multiple of 16 (TMA). bias f32 [N] or null.
// Tile     128 x 128 x 128 a block of 384 threads: warpgroup 0 is the producer, one thread of which asks TMA for boxes; warpgroups 1 and 2
//          multiply, 64 rows each. A ring of 6 stages of 32 KiB.
// Work     2 MNK FLOP over MK + KN + MN x size bytes; persistent grid, tiles in groups of rows as in gemm_wgmma.cu.
// Numbers  each 128 of K are summed by the tensor cores and added to sums in fp32, K in order within a split: the accumulators of 8-bit
//          products keep too few bits for a long K. While one consumer adds, the other multiplies. Scales are powers of two in device memory
//          (0: 1), so dividing by them is exact. With splits > 1, C is f32 [splits, M, N], to be added up by another kernel.
#include "hopper.cuh"
#include "hopper_narrow.cuh"

// Boxes of 128 rows of 128 bytes, either operand.
struct GemmFp8Arguments {
    TensorMap a, b;
    void* c;
    const float* bias;
    const float* scale_a;
    const float* scale_b;
    u32 m, n, k;
    u32 splits;      // of K; at most ceil(K / 128). More than 1: no bias, no activation, f32 output
    u32 group;       // rows of tiles that the order walks down before the next column
    u32 activation;  // 0 none, 1 ReLU, 2 GELU
    u32 output_f32;  // 0: C is bf16
    u32 unused;
};
static_assert(sizeof(GemmFp8Arguments) == 320, "no padding but the fields'");

constexpr u32 TILE = 128, TILE_K = 128, CONSUMERS = 2, STAGES = 6, COUNT = 64;
constexpr u32 OPERAND_BYTES = TILE * TILE_K, STAGE_BYTES = 2 * OPERAND_BYTES;

struct Ring {
    u8* shared;
    u32 stage = 0, parity;  // the producer begins with parity 1: all stages are empty

    DEVICE Ring(u8* shared, u32 parity) : shared(shared), parity(parity) {}
    DEVICE u8* a() const { return shared + stage * STAGE_BYTES; }
    DEVICE u8* b() const { return a() + OPERAND_BYTES; }
    DEVICE u64* full() const { return (u64*)(shared + STAGES * STAGE_BYTES) + stage; }
    DEVICE u64* empty() const { return full() + STAGES; }
    DEVICE void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

struct Task { u32 row, column, first, last, split; };  // of C, and its steps of K

DEVICE u32 count_tasks(const GemmFp8Arguments& p) { return ceil_div(p.m, TILE) * ceil_div(p.n, TILE) * p.splits; }
DEVICE Task task(const GemmFp8Arguments& p, u32 index) {
    const u32 rows = ceil_div(p.m, TILE), columns = ceil_div(p.n, TILE), steps = ceil_div(p.k, TILE_K);
    const u32 split = index / (rows * columns), tile = index % (rows * columns);
    const u32 top = tile / (p.group * columns) * p.group, height = smaller(p.group, rows - top), within = tile - top * columns;
    return {(top + within % height) * TILE, within / height * TILE, (u32)((u64)steps * split / p.splits),
            (u32)((u64)steps * (split + 1) / p.splits), split};
}

DEVICE void produce(const GemmFp8Arguments& p, u8* shared) {
    Ring ring(shared, 1);
    for (u32 index = block(); index < count_tasks(p); index += blocks()) {
        const Task t = task(p, index);
        NO_UNROLL for (u32 step = t.first; step < t.last; ++step) {
            mbarrier_wait(ring.empty(), ring.parity);
            // Whole boxes, also where they hang over the edge: the rest is filled with zeros and counts.
            mbarrier_arrive_expect(ring.full(), STAGE_BYTES);
            tma_load_2d(ring.a(), &p.a, ring.full(), (i32)(step * TILE_K), (i32)t.row);
            tma_load_2d(ring.b(), &p.b, ring.full(), (i32)(step * TILE_K), (i32)t.column);
            ring.advance();
        }
    }
}

// 1 over a scale of device memory.
DEVICE float inverse(const float* scale) { return divide(1.0f, *scale == 0.0f ? 1.0f : *scale); }

// The warpgroup's 64 rows from `row`. A lane stores 16 bytes at a time, a quad 64 consecutive ones, where rows of C are aligned.
DEVICE void store(const GemmFp8Arguments& p, float (&d)[COUNT], const Task& task, u32 row) {
    const u32 t = lane() & 3, first_row = row + (warp() & 3) * 16 + lane() / 4, first_column = task.column + 2 * t;
    // One after the other: their product may be out of range where the sums are not.
    const float back_a = inverse(p.scale_a), back_b = inverse(p.scale_b);
    UNROLL for (int i = 0; i < COUNT; ++i) d[i] = d[i] * back_a * back_b;
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
        bf16* const narrow = (bf16*)p.c + at;
        if (p.output_f32 && p.n % 4 == 0) {
            UNROLL for (int j = 0; j < COUNT / 4; j += 2) {
                const int o = j * 4 + half * 2;
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
                UNROLL for (int i = 0; i < 4; ++i) out.at[i] = pack_pair<bf16>(d[(j + i) * 4 + half * 2], d[(j + i) * 4 + half * 2 + 1]);
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
                    else narrow[c] = from_f32<bf16>(x);
                }
            }
        }
    }
}

template <class A, class B> DEVICE void consume(const GemmFp8Arguments& p, u8* shared, u32 consumer) {
    Ring ring(shared, 0);
    const bool speaker = thread() % 128 == 0;
    for (u32 index = block(); index < count_tasks(p); index += blocks()) {
        const Task t = task(p, index);
        float sum[COUNT];
        UNROLL for (int i = 0; i < COUNT; ++i) sum[i] = 0.0f;
        NO_UNROLL for (u32 step = t.first; step < t.last; ++step) {
            float d[COUNT];
            mbarrier_wait(ring.full(), ring.parity);
            const u64 a = wgmma_descriptor(ring.a() + consumer * 64 * 128), b = wgmma_descriptor(ring.b());
            wgmma_fence();
            UNROLL for (u32 k = 0; k < TILE_K / 32; ++k)
                wgmma_narrow<A, B>(d, a + k * WGMMA_STEP_NARROW, b + k * WGMMA_STEP_NARROW, k != 0);
            wgmma_commit();
            wgmma_wait_for(d);
            if (speaker) mbarrier_arrive(ring.empty());
            ring.advance();
            UNROLL for (int i = 0; i < COUNT; ++i) sum[i] += d[i];
        }
        store(p, sum, t, t.row + consumer * 64);
    }
}

template <class A, class B> DEVICE void gemm(const GemmFp8Arguments& p, u8* shared) {
    // From one lane, so that the compiler knows that it is the same in the whole warp.
    const u32 warpgroup = shuffle(thread() / 128, 0);
    if (thread() == 0) {
        tma_prefetch_map(&p.a);
        tma_prefetch_map(&p.b);
        Ring ring(shared, 0);
        for (u32 i = 0; i < STAGES; ++i, ring.advance()) {
            mbarrier_init(ring.full(), 1);
            mbarrier_init(ring.empty(), CONSUMERS);
        }
        mbarrier_init_fence();
    }
    block_sync();
    if (warpgroup == 0) {
        registers_shrink<40>();
        if (thread() == 0) produce(p, shared);
    } else {
        registers_grow<232>();
        consume<A, B>(p, shared, warpgroup - 1);
    }
}

#define GEMM(A, B)                                                          \
    KERNEL(384) gemm_fp8_##A##_##B(ARGUMENTS(GemmFp8Arguments) p) {         \
        DYNAMIC_SHARED(shared);                                             \
        gemm<A, B>(p, shared);                                              \
    }                                                                       \
    EXPORT(gemm_fp8_##A##_##B)
GEMM(e4m3, e4m3)
GEMM(e5m2, e4m3)
GEMM(e4m3, e5m2)
