// conformance_hopper.cu: the functions of hopper.cuh alone, as conformance.cu has those of common.cuh.
// Architectures: sm_90a
// Entries  conform_pack_{f16,bf16}, conform_mbarrier, conform_registers, conform_wgmma_{f16,bf16}_{nn,nt,tn}_{64,128,256}, conform_tma,
//          conform_tma_{3d,4d}
// Shapes   wgmma: x holds the bytes of shared memory as they are to lie there: the tile of A (64 x 64, 8192 bytes), then that of B
//          (64 x N). Tiles come by ordinary stores, so that descriptor, swizzle and majorness are tested without TMA. Accumulator i of
//          thread t goes to y[128 i + t].
//          tma_3d, tma_4d: boxes of a tensor, one after the other, as they lie in shared memory.
//          tma: boxes of 64 columns of a matrix, row of boxes by row, each as it lies in shared memory (128 bytes a row of it, swizzled).
// Numbers  inputs of wgmma are small integers: sums are exact in every order.
#include "hopper.cuh"

struct ConformanceArguments { const u32* x; u32* y; u64 count; };

template <class T> DEVICE void pack(const ConformanceArguments& p) {
    const u64 i = (u64)block() * threads() + thread();
    if (i < p.count) p.y[i] = pack_pair<T>(float_of(p.x[i]), float_of(p.x[p.count + i]));
}
KERNEL(128) conform_pack_f16(ARGUMENTS(ConformanceArguments) p) { pack<f16>(p); }
EXPORT(conform_pack_f16)
KERNEL(128) conform_pack_bf16(ARGUMENTS(ConformanceArguments) p) { pack<bf16>(p); }
EXPORT(conform_pack_bf16)

// Warp 0 fills a ring of two slots, warps 1 to 3 empty it: count rounds, each of 32 words of x. Warp w writes what it read, rotated by
// w lanes, to y[96 round + 32 (w - 1) + lane].
KERNEL(128) conform_mbarrier(ARGUMENTS(ConformanceArguments) p) {
    DYNAMIC_SHARED(memory);
    u64* const full = (u64*)memory;
    u64* const empty = full + 2;
    u32* const slots = (u32*)(memory + 64);
    const u32 l = lane(), w = warp();
    if (thread() == 0) {
        UNROLL for (u32 k = 0; k < 2; ++k) {
            mbarrier_init(full + k, 32);
            mbarrier_init(empty + k, 96);
        }
        mbarrier_init_fence();
    }
    block_sync();
    for (u32 round = 0; round < (u32)p.count; ++round) {
        const u32 slot = round % 2, parity = round / 2 % 2;
        if (w == 0) {
            mbarrier_wait(empty + slot, parity ^ 1);
            slots[32 * slot + l] = p.x[32 * round + l];
            if (round % 3 == 0) mbarrier_arrive_expect(full + slot, 0);
            else mbarrier_arrive(full + slot);
        } else {
            mbarrier_wait(full + slot, parity);
            p.y[96 * round + 32 * (w - 1) + l] = slots[32 * slot + (l + w) % 32];
            mbarrier_arrive(empty + slot);
        }
    }
}
EXPORT(conform_mbarrier)

// Warpgroup 0 gives registers up, 1 and 2 take them; values live across the change.
KERNEL(384) conform_registers(ARGUMENTS(ConformanceArguments) p) {
    const u32 i = thread(), a = p.x[i];
    if (i < 128) {
        registers_shrink<40>();
        p.y[i] = a * 3;
    } else {
        registers_grow<232>();
        p.y[i] = a * 5;
    }
}
EXPORT(conform_registers)

template <bool MN_MAJOR_A, bool MN_MAJOR_B, int COUNT, class T> DEVICE void product(const ConformanceArguments& p) {
    DYNAMIC_SHARED(tiles);
    constexpr u32 WORDS = (8192 + 128 * 2 * COUNT) / 4;
    for (u32 i = thread(); i < WORDS; i += 128) ((u32*)tiles)[i] = p.x[i];
    shared_fence_async();
    block_sync();
    // What the sums start from, which the first product must forget where count is 0.
    float d[COUNT];
    UNROLL for (int i = 0; i < COUNT; ++i) d[i] = (float)((thread() + i) % 61);
    const u64 a = wgmma_descriptor(tiles), b = wgmma_descriptor(tiles + 8192);
    wgmma_fence();
    UNROLL for (u32 k = 0; k < 4; ++k)
        wgmma<MN_MAJOR_A, MN_MAJOR_B, T>(d, a + k * (MN_MAJOR_A ? WGMMA_STEP_MN_MAJOR : WGMMA_STEP_K_MAJOR),
                                         b + k * (MN_MAJOR_B ? WGMMA_STEP_MN_MAJOR : WGMMA_STEP_K_MAJOR), k > 0 || p.count > 0);
    wgmma_commit();
    wgmma_wait_for(d);
    UNROLL for (int i = 0; i < COUNT; ++i) p.y[128 * i + thread()] = bits_of(d[i]);
}
#define PRODUCT(T, layout, mn_major_a, mn_major_b, n)                                                                   \
    KERNEL(128) conform_wgmma_##T##_##layout##_##n(ARGUMENTS(ConformanceArguments) p) {                                 \
        product<mn_major_a, mn_major_b, n / 2, T>(p);                                                                   \
    }                                                                                                                   \
    EXPORT(conform_wgmma_##T##_##layout##_##n)
#define PRODUCTS(T, n)                                                                                                  \
    PRODUCT(T, nn, false, true, n) PRODUCT(T, nt, false, false, n) PRODUCT(T, tn, true, true, n)
PRODUCTS(f16, 128)
PRODUCTS(bf16, 128)
PRODUCTS(f16, 256)
PRODUCTS(bf16, 256)
PRODUCTS(f16, 64)
PRODUCTS(bf16, 64)

// `rows` of a box; `across` boxes beside each other, `down` below each other, the last of each reaching beyond the matrix. Two stages,
// so that each barrier sees both parities.
struct TmaArguments { TensorMap map; u32* y; u32 rows, across, down; u32 unused[11]; };
KERNEL(128) conform_tma(ARGUMENTS(TmaArguments) p) {
    DYNAMIC_SHARED(memory);
    const u32 bytes = p.rows * 128;
    u64* const full = (u64*)(memory + 2 * bytes);
    if (thread() == 0) {
        tma_prefetch_map(&p.map);
        UNROLL for (u32 k = 0; k < 2; ++k) mbarrier_init(full + k, 1);
        mbarrier_init_fence();
    }
    block_sync();
    const u32 boxes = p.across * p.down;
    for (u32 box = 0; box < boxes; box += 2) {
        UNROLL for (u32 k = 0; k < 2; ++k) {
            if (thread() != 0 || box + k >= boxes) continue;
            mbarrier_arrive_expect(full + k, bytes);
            tma_load_2d(memory + k * bytes, &p.map, full + k, (i32)(64 * ((box + k) % p.across)), (i32)(p.rows * ((box + k) / p.across)));
        }
        for (u32 k = 0; k < 2 && box + k < boxes; ++k) {
            mbarrier_wait(full + k, box / 2 % 2);
            for (u32 i = thread(); i < bytes / 4; i += threads()) p.y[(box + k) * (bytes / 4) + i] = ((const u32*)(memory + k * bytes))[i];
        }
        block_sync();
    }
}
EXPORT(conform_tma)

// `count` boxes of `bytes`, the first at `first`, each next one `step` further; some begin before the tensor, some end beyond it.
struct TmaTensorArguments { TensorMap map; u32* y; u32 bytes, count; i32 first[4], step[4]; u32 unused[4]; };
template <int RANK> DEVICE void boxes(const TmaTensorArguments& p) {
    DYNAMIC_SHARED(memory);
    u64* const full = (u64*)(memory + p.bytes);
    if (thread() == 0) {
        tma_prefetch_map(&p.map);
        mbarrier_init(full, 1);
        mbarrier_init_fence();
    }
    block_sync();
    for (u32 k = 0; k < p.count; ++k) {
        if (thread() == 0) {
            i32 at[4];
            UNROLL for (int d = 0; d < 4; ++d) at[d] = p.first[d] + (i32)k * p.step[d];
            mbarrier_arrive_expect(full, p.bytes);
            if (RANK == 3) tma_load_3d(memory, &p.map, full, at[0], at[1], at[2]);
            else tma_load_4d(memory, &p.map, full, at[0], at[1], at[2], at[3]);
        }
        mbarrier_wait(full, k % 2);
        for (u32 i = thread(); i < p.bytes / 4; i += threads()) p.y[k * (p.bytes / 4) + i] = ((const u32*)memory)[i];
        block_sync();
    }
}
KERNEL(128) conform_tma_3d(ARGUMENTS(TmaTensorArguments) p) { boxes<3>(p); }
EXPORT(conform_tma_3d)
KERNEL(128) conform_tma_4d(ARGUMENTS(TmaTensorArguments) p) { boxes<4>(p); }
EXPORT(conform_tma_4d)
