// conformance_narrow.cu: the functions of hopper_narrow.cuh alone, as conformance_hopper.cu has those of hopper.cuh.
// Architectures: sm_90a
// Entries  conform_codes_{e4m3,e5m2}, conform_wgmma_{e4m3_e4m3,e5m2_e4m3,e4m3_e5m2}, conform_wgmma_two_four_{bf16,f16}
// Shapes   codes: x holds `count` numbers, then as many again; y[i] the codes of x[i] and x[count + i].
//          wgmma: x holds the bytes of shared memory as they are to lie there: the tile of A (64 rows of 128 bytes), then that of B (128
//          rows). Accumulator i of thread t goes to y[128 i + t].
//          two_four: the same, of two instructions that take the places of other lanes; then a word of places for each thread.
// Numbers  inputs of wgmma are small integers: sums are exact in every order, and in the few bits that 8-bit products keep.
#include "hopper.cuh"
#include "hopper_narrow.cuh"

struct ConformanceArguments { const u32* x; u32* y; u64 count; };

template <class T> DEVICE void codes(const ConformanceArguments& p) {
    const u64 i = (u64)block() * threads() + thread();
    if (i < p.count) p.y[i] = pack_codes<T>(float_of(p.x[i]), float_of(p.x[p.count + i]));
}
KERNEL(128) conform_codes_e4m3(ARGUMENTS(ConformanceArguments) p) { codes<e4m3>(p); }
EXPORT(conform_codes_e4m3)
KERNEL(128) conform_codes_e5m2(ARGUMENTS(ConformanceArguments) p) { codes<e5m2>(p); }
EXPORT(conform_codes_e5m2)

template <class A, class B> DEVICE void product(const ConformanceArguments& p) {
    DYNAMIC_SHARED(tiles);
    for (u32 i = thread(); i < (8192 + 16384) / 4; i += 128) ((u32*)tiles)[i] = p.x[i];
    shared_fence_async();
    block_sync();
    // What the sums start from, which the first product must forget where count is 0.
    float d[64];
    UNROLL for (int i = 0; i < 64; ++i) d[i] = (float)((thread() + i) % 61);
    const u64 a = wgmma_descriptor(tiles), b = wgmma_descriptor(tiles + 8192);
    wgmma_fence();
    UNROLL for (u32 k = 0; k < 4; ++k)
        wgmma_narrow<A, B>(d, a + k * WGMMA_STEP_NARROW, b + k * WGMMA_STEP_NARROW, k > 0 || p.count > 0);
    wgmma_commit();
    wgmma_wait_for(d);
    UNROLL for (int i = 0; i < 64; ++i) p.y[128 * i + thread()] = bits_of(d[i]);
}
#define PRODUCT(A, B)                                                                                    \
    KERNEL(128) conform_wgmma_##A##_##B(ARGUMENTS(ConformanceArguments) p) { product<A, B>(p); }         \
    EXPORT(conform_wgmma_##A##_##B)

template <class T> DEVICE void sparse_product(const ConformanceArguments& p) {
    DYNAMIC_SHARED(tiles);
    constexpr u32 WORDS = (8192 + 16384) / 4;
    for (u32 i = thread(); i < WORDS; i += 128) ((u32*)tiles)[i] = p.x[i];
    const u32 places = p.x[WORDS + thread()];
    shared_fence_async();
    block_sync();
    float d[64];
    UNROLL for (int i = 0; i < 64; ++i) d[i] = (float)((thread() + i) % 61);
    const u64 a = wgmma_descriptor(tiles), b = wgmma_descriptor(tiles + 8192);
    wgmma_fence();
    wgmma_two_four<0, T>(d, a, b, places, p.count > 0);
    wgmma_two_four<1, T>(d, a + WGMMA_STEP_K_MAJOR, b + (64 >> 4), places, true);
    wgmma_commit();
    wgmma_wait_for(d);
    UNROLL for (int i = 0; i < 64; ++i) p.y[128 * i + thread()] = bits_of(d[i]);
}
KERNEL(128) conform_wgmma_two_four_bf16(ARGUMENTS(ConformanceArguments) p) { sparse_product<bf16>(p); }
EXPORT(conform_wgmma_two_four_bf16)
KERNEL(128) conform_wgmma_two_four_f16(ARGUMENTS(ConformanceArguments) p) { sparse_product<f16>(p); }
EXPORT(conform_wgmma_two_four_f16)
PRODUCT(e4m3, e4m3)
PRODUCT(e5m2, e4m3)
PRODUCT(e4m3, e5m2)
