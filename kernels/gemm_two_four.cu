// gemm_two_four.cu: C = act(X W + bias) where at most two of every four weights along K are not zero, on the sparse tensor cores of sm_90a.
// Architectures: sm_90a
// Entries  gemm_two_four_{bf16,f16}
// Shapes   X [M, K], C [M, N] of X's type or f32; any M, N >= 1, K a multiple of 16 (TMA). bias f32 [N] or null. The kernel makes C^T, for
//          the sparse operand is the left one: W^T is given as its kept numbers, [N, K / 2], and their places (`metadata`):
//          a word for each of [64 rows of W^T][128 of K][thread of a warpgroup][2]. Instruction i of a step takes the words i / 2 of the lanes
//          whose number in their quad is 2 (i % 2) or one more: of the lower lane, places in 16 of K of row g and, above bit 16, of row
//          g + 8; of the higher one, in the next 16. A place in four has two bits, that of the first kept number below that of the second.
// Tile     128 x 128 of C^T by 128 of K a block of 384 threads: warpgroup 0 is the producer, one thread of which asks TMA for boxes;
//          warpgroups 1 and 2 multiply, 64 rows each. A ring of 4 stages of 48 KiB; each lane fetches its own words.
// Work     MNK FLOP of 2 MNK over (MK + NK (1/2 + 1/16) + MN) x 2 bytes; persistent grid, tiles in groups of rows.
// Numbers  f32 accumulator, K in order.
#include "hopper.cuh"
#include "hopper_narrow.cuh"

// Boxes of 128 rows of 64 elements, either operand.
struct GemmTwoFourArguments {
    TensorMap a, b;  // kept weights; X
    void* c;
    const float* bias;
    const Two32* metadata;
    u32 m, n, k;
    u32 group;       // rows of tiles that the order walks down before the next column
    u32 activation;  // 0 none, 1 ReLU, 2 GELU
    u32 output_f32;  // 0: C has the operands' type
    u32 unused[4];
};
static_assert(sizeof(GemmTwoFourArguments) == 320, "no padding but the fields'");

constexpr u32 TILE = 128, TILE_K = 128, CONSUMERS = 2, STAGES = 4, COUNT = 64;
constexpr u32 A_BYTES = TILE * 128, BOX_BYTES = TILE * 128, STAGE_BYTES = A_BYTES + 2 * BOX_BYTES;

struct Ring {
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

struct Task { u32 weight, row; };  // of W^T, and of X

DEVICE u32 count_tasks(const GemmTwoFourArguments& p) { return ceil_div(p.n, TILE) * ceil_div(p.m, TILE); }
DEVICE Task task(const GemmTwoFourArguments& p, u32 index) {
    const u32 rows = ceil_div(p.n, TILE), columns = ceil_div(p.m, TILE);
    const u32 top = index / (p.group * columns) * p.group, height = smaller(p.group, rows - top), within = index - top * columns;
    return {(top + within % height) * TILE, within / height * TILE};
}

DEVICE void produce(const GemmTwoFourArguments& p, u8* shared) {
    Ring ring(shared, 1);
    for (u32 index = block(); index < count_tasks(p); index += blocks()) {
        const Task t = task(p, index);
        NO_UNROLL for (u32 step = 0; step < ceil_div(p.k, TILE_K); ++step) {
            const i32 k = (i32)(step * TILE_K);
            mbarrier_wait(ring.empty(), ring.parity);
            // Whole boxes, also where they hang over the edge: the rest is filled with zeros and counts.
            mbarrier_arrive_expect(ring.full(), STAGE_BYTES);
            tma_load_2d(ring.a(), &p.a, ring.full(), k / 2, (i32)t.weight);
            tma_load_2d(ring.b(), &p.b, ring.full(), k, (i32)t.row);
            tma_load_2d(ring.b() + BOX_BYTES, &p.b, ring.full(), k + 64, (i32)t.row);
            ring.advance();
        }
    }
}

// An 8 x 8 matrix of 16-bit elements, of which lane l has row l / 4, columns 2 (l % 4) and one more, turned.
DEVICE u32 turn_8x8(u32 x) {
    const u32 from = (lane() & 3) * 8 + lane() / 8, low = shuffle(x, from), high = shuffle(x, from + 4);
    return lane() & 4 ? low >> 16 | (high & 0xffff0000u) : (low & 0xffffu) | high << 16;
}

// The warpgroup's 64 columns of C from `first`, and the tile's rows. A lane stores 16 bytes at a time where rows of C are aligned.
template <class T> DEVICE void store(const GemmTwoFourArguments& p, float (&d)[COUNT], const Task& task, u32 first) {
    const u32 t = lane() & 3, g = lane() / 4, base = first + (warp() & 3) * 16;
    if (p.bias) {
        const float b0 = base + g < p.n ? p.bias[base + g] : 0.0f, b1 = base + g + 8 < p.n ? p.bias[base + g + 8] : 0.0f;
        UNROLL for (int i = 0; i < COUNT; ++i) d[i] += i & 2 ? b1 : b0;
    }
    if (p.activation == 1) {
        UNROLL for (int i = 0; i < COUNT; ++i) d[i] = larger(d[i], 0.0f);
    } else if (p.activation == 2) {
        UNROLL for (int i = 0; i < COUNT; ++i) d[i] = gelu(d[i]);
    }
    if (!p.output_f32 && p.n % 8 == 0) {
        T* const c = (T*)p.c;
        UNROLL for (int j = 0; j < COUNT / 4; j += 2) {
            Pack<u32> out;
            UNROLL for (int i = 0; i < 4; ++i) {
                const int o = (j + i / 2) * 4 + (i & 1) * 2;
                out.at[i] = turn_8x8(pack_pair<T>(d[o], d[o + 1]));
            }
            // Lanes 0 and 1 of a quad get 8 columns each of row g of the first 8 rows, 2 and 3 of the next.
            transpose_quad(out.at);
            const u32 row = task.row + ((u32)j + t / 2) * 8 + g, column = base + (t & 1) * 8;
            if (row < p.m && column < p.n) *(Pack<u32>*)(c + (u64)row * p.n + column) = out;
        }
        return;
    }
    UNROLL for (int i = 0; i < COUNT; ++i) {
        const u32 row = task.row + (u32)(i / 4) * 8 + 2 * t + (u32)(i & 1), column = base + g + (i & 2 ? 8u : 0u);
        if (row >= p.m || column >= p.n) continue;
        if (p.output_f32) ((float*)p.c)[(u64)row * p.n + column] = d[i];
        else ((T*)p.c)[(u64)row * p.n + column] = from_f32<T>(d[i]);
    }
}

template <class T> DEVICE void consume(const GemmTwoFourArguments& p, u8* shared, u32 consumer) {
    Ring ring(shared, 0);
    const bool speaker = thread() % 128 == 0;
    const u32 steps = ceil_div(p.k, TILE_K);
    for (u32 index = block(); index < count_tasks(p); index += blocks()) {
        const Task t = task(p, index);
        const Two32* const places = p.metadata + (u64)(t.weight / 64 + consumer) * steps * 128 + thread() % 128;
        float d[COUNT];  // of one tile, as in gemm_wgmma.cu
        u64* used = nullptr;
        NO_UNROLL for (u32 step = 0; step < steps; ++step) {
            const Two32 words = places[(u64)step * 128];
            mbarrier_wait(ring.full(), ring.parity);
            const u64 a = wgmma_descriptor(ring.a() + consumer * 64 * 128), b = wgmma_descriptor(ring.b());
            constexpr u64 NEXT = 64 >> 4, NEXT_BOX = BOX_BYTES >> 4;
            wgmma_fence();
            wgmma_two_four<0, T>(d, a, b, words.x, step != 0);
            wgmma_two_four<1, T>(d, a + WGMMA_STEP_K_MAJOR, b + NEXT, words.x, true);
            wgmma_two_four<0, T>(d, a + 2 * WGMMA_STEP_K_MAJOR, b + NEXT_BOX, words.y, true);
            wgmma_two_four<1, T>(d, a + 3 * WGMMA_STEP_K_MAJOR, b + NEXT_BOX + NEXT, words.y, true);
            wgmma_commit();
            // The step before is done; this one keeps the tensor cores busy while the next is prepared.
            wgmma_wait<1>();
            if (used && speaker) mbarrier_arrive(used);
            used = ring.empty();
            ring.advance();
        }
        wgmma_wait_for(d);
        if (speaker) mbarrier_arrive(used);
        store<T>(p, d, t, t.weight + consumer * 64);
    }
}

template <class T> DEVICE void gemm(const GemmTwoFourArguments& p, u8* shared) {
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
        consume<T>(p, shared, warpgroup - 1);
    }
}

#define GEMM(T)                                                             \
    KERNEL(384) gemm_two_four_##T(ARGUMENTS(GemmTwoFourArguments) p) {      \
        DYNAMIC_SHARED(shared);                                             \
        gemm<T>(p, shared);                                                 \
    }                                                                       \
    EXPORT(gemm_two_four_##T)
GEMM(bf16)
GEMM(f16)
