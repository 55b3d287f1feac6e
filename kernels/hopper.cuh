// hopper.cuh: what only sm_90a has: TMA boxes, mbarriers, wgmma, registers moved between warpgroups. For kernels named *_wgmma.
// Like common.cuh it has two readers; emulator/hopper.h is the CPU's. PTX ISA 8.0, sections "wgmma", "mbarrier", "cp.async.bulk.tensor".
//
// Tiles of 16-bit elements in shared memory, as both TMA and wgmma read them here: rows of 64 elements (128 bytes), one below the
// other, 128-byte swizzle (the 16-byte chunk c of row r lies at chunk c ^ r % 8), each tile at a multiple of 1024 bytes.
//   rows along M or N, elements along K   "K-major": one box for all rows
//   rows along K, elements along M or N   "MN-major": one box of 64 rows for every 64 of M or N, boxes 8192 bytes apart
// Boxes of images (convolutions) are the same: their pixels, one after the other, are the rows.
#pragma once
#include "common.cuh"

#ifdef ADVISOR_EMULATED
#include "emulator/hopper.h"
#else
// CUtensorMap: the host fills it by cuTensorMapEncodeTiled, or for the CPU as emulated::HostMap. First in the argument struct, by value;
// that struct is then a multiple of 64 bytes, by fields.
struct alignas(64) TensorMap { u64 words[16]; };

// An mbarrier completes a phase when `count` threads have arrived and all bytes expected in it have landed.
DEVICE void mbarrier_init(u64* b, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
// Before the block_sync after which others, the copy engine too, use the barriers.
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(u64* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
DEVICE void mbarrier_arrive_expect(u64* b, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
// Waits until the phase of this parity is complete; parity 1 of a fresh barrier is.
DEVICE void mbarrier_wait(u64* b, u32 parity) {
    asm volatile("{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra AGAIN; }"
                 ::"r"(shared_address(b)), "r"(parity) : "memory");
}

// What this thread stored to shared memory is seen by wgmma and the copy engine after the block_sync that follows.
DEVICE void shared_fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The box of the map whose first element is (x, y), x innermost; outside the tensor it is zero. The barrier gets all bytes of the box.
DEVICE void tma_load_2d(void* shared, const TensorMap* map, u64* barrier, i32 x, i32 y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y) : "memory");
}
// The same of three and four dimensions; coordinates may be negative.
DEVICE void tma_load_3d(void* shared, const TensorMap* map, u64* barrier, i32 x, i32 y, i32 z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z) : "memory");
}
DEVICE void tma_load_4d(void* shared, const TensorMap* map, u64* barrier, i32 x, i32 y, i32 z, i32 w) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
                 ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
DEVICE void tma_prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// Registers a thread of this warpgroup may use from here; all its four warps call it, and the block's sum stays within 64 K.
template <int COUNT> DEVICE void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEVICE void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Before the first wgmma after other instructions touched the accumulators.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `KEPT` committed groups are under way.
template <int KEPT> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(KEPT) : "memory"); }
// Waits for all; only then, and in the eyes of the compiler too, does `d` hold the sums.
template <int COUNT> DEVICE void wgmma_wait_for(float (&d)[COUNT]) {
    wgmma_wait<0>();
    UNROLL for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// The same for several sums, which one wait must give back: it would be serialised if a second came after the first were touched.
template <int UNITS, int COUNT> DEVICE void wgmma_wait_for(float (&d)[UNITS][COUNT]) {
    wgmma_wait<0>();
    UNROLL for (int u = 0; u < UNITS; ++u) {
        UNROLL for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[u][i])::"memory");
    }
}

// D[64, N] = A[64, 16] B[16, N] (+ D) by the 128 threads of a warpgroup, N = 2 COUNT. Thread l of its warp w, g = l / 4, t = l % 4:
// d[4 j + e] is row 16 w + g (+ 8 for e >= 2), column 8 j + 2 t (+ 1 for odd e). A and B by descriptors, which all threads give alike.
template <bool MN_MAJOR_A, bool MN_MAJOR_B, int COUNT, class T> struct Wgmma;
#define TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define TO_32 TEN() TEN(1) TEN(2) "%30, %31"
#define TO_60 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5)
#define TO_64 TO_60 "%60, %61, %62, %63"
#define TO_128 TO_60 TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127"
#define EIGHT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define OUT_32(i) EIGHT(i), EIGHT(i + 8), EIGHT(i + 16), EIGHT(i + 24)
#define OUT_64(i) EIGHT(i), EIGHT(i + 8), EIGHT(i + 16), EIGHT(i + 24), EIGHT(i + 32), EIGHT(i + 40), EIGHT(i + 48), EIGHT(i + 56)
#define WGMMA(T, count, n, registers, a0, a1, a2, a3, a4, ...)                                                                 \
    template <bool MN_MAJOR_A, bool MN_MAJOR_B> struct Wgmma<MN_MAJOR_A, MN_MAJOR_B, count, T> {                               \
        static DEVICE void run(float (&d)[count], u64 a, u64 b, bool accumulate) {                                             \
            asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #a2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #T "." #T \
                         " {" registers "}, %" #a0 ", %" #a1 ", p, 1, 1, %" #a3 ", %" #a4 "; }"                                \
                         : __VA_ARGS__                                                                                         \
                         : "l"(a), "l"(b), "r"((u32)accumulate), "n"((int)MN_MAJOR_A), "n"((int)MN_MAJOR_B));                  \
        }                                                                                                                      \
    };
WGMMA(bf16, 128, 256, TO_128, 128, 129, 130, 131, 132, OUT_64(0), OUT_64(64))
WGMMA(f16, 128, 256, TO_128, 128, 129, 130, 131, 132, OUT_64(0), OUT_64(64))
WGMMA(bf16, 64, 128, TO_64, 64, 65, 66, 67, 68, OUT_64(0))
WGMMA(f16, 64, 128, TO_64, 64, 65, 66, 67, 68, OUT_64(0))
WGMMA(bf16, 32, 64, TO_32, 32, 33, 34, 35, 36, OUT_32(0))
WGMMA(f16, 32, 64, TO_32, 32, 33, 34, 35, 36, OUT_32(0))
#undef TEN
#undef TO_32
#undef TO_60
#undef TO_64
#undef TO_128
#undef EIGHT
#undef OUT_32
#undef OUT_64
#undef WGMMA
template <bool MN_MAJOR_A, bool MN_MAJOR_B, class T, int COUNT> DEVICE void wgmma(float (&d)[COUNT], u64 a, u64 b, bool accumulate) {
    Wgmma<MN_MAJOR_A, MN_MAJOR_B, COUNT, T>::run(d, a, b, accumulate);
}

// Two elements in a register, `low` in the low half.
template <class T> DEVICE u32 pack_pair(float low, float high);
template <> DEVICE u32 pack_pair<f16>(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> DEVICE u32 pack_pair<bf16>(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#endif

// Descriptor of a tile as above, for 16 of K: bits 0-13 address / 16, 16-29 leading offset / 16, 32-45 stride offset / 16, 62 swizzle.
// Stride offset: to the next 8 rows, so 8 x 128 bytes. Leading offset: to the next box, read for MN-major tiles only.
DEVICE u64 wgmma_descriptor(const void* tile) {
    return (u64)((shared_address(tile) & 0x3ffff) >> 4) | (u64)(8192 >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
// What to add to a descriptor for the next 16 of K: 32 bytes along a row, or 16 rows.
constexpr u64 WGMMA_STEP_K_MAJOR = 32 >> 4, WGMMA_STEP_MN_MAJOR = 16 * 128 >> 4;

// For results on their way out of the accumulators.
DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// Lane t of a quad gives word i of its four and gets word t of the lanes' in their order.
DEVICE void transpose_quad(u32 (&w)[4]) {
    const bool odd = lane() & 1, high = lane() & 2;
    const u32 x = shuffle_xor(odd ? w[0] : w[1], 1), y = shuffle_xor(odd ? w[2] : w[3], 1);
    const u32 a0 = odd ? x : w[0], a1 = odd ? w[1] : x, a2 = odd ? y : w[2], a3 = odd ? w[3] : y;
    const u32 z0 = shuffle_xor(high ? a0 : a2, 2), z1 = shuffle_xor(high ? a1 : a3, 2);
    w[0] = high ? z0 : a0;
    w[1] = high ? z1 : a1;
    w[2] = high ? a2 : z0;
    w[3] = high ? a3 : z1;
}
