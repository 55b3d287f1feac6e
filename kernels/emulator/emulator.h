// The CPU's reading of the names in common.cuh: every CUDA thread is a fiber that gives way only at a barrier or a collective of its
// warp, blocks run one after another, and whatever the hardware does later happens here as late as it may.
// What is checked while a kernel runs stands in emulator.cpp.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if !defined(__F16C__)
#error "compile with -mf16c"
#endif
#include <immintrin.h>

typedef int8_t i8;
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int32_t i32;
typedef unsigned long long u64;
typedef long long i64;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

namespace emulated {
struct Three { u32 x, y, z; };
extern Three thread_index, block_index, block_size, grid_size;

enum Collective { BLOCK_BARRIER = 1, WARP_SYNC, SHUFFLE, BALLOT, LOAD_MATRIX, MMA };

// Ends the launch with this reason.
[[noreturn]] void fail(const char* what);
void block_barrier(const void* site);
// Puts `mine` up, waits until every lane of the warp that has not left is here, and gives all lanes' pointers.
const void* const* meet(Collective what, const void* mine);
// The lanes part: peers' variables stay alive until all have read them.
void part(Collective what);
void order_warp();
void order_device();
void* static_shared(const void* key, size_t bytes);
void* dynamic_shared();
void copy_async(void* shared, const void* global, u32 bytes, u32 whole);
void copy_async_commit();
void copy_async_wait(int keep);
void atomic_access(void* address, u32 bytes);
// Reads that the hooks of the compiler do not see, as one access of the warp's lane.
void shared_read(const void* address, u32 bytes);

// For what works beside the threads of a block (hopper.h): the fiber waits for something but stays ready; whoever changes what
// others may wait for says `progress`. A block that only gives way for a few hundred rounds hangs.
void give_way();
void progress();
// Until the block ends: `round` after each round of its fibers, `end` once all have left. Each gives null, or why the launch fails.
typedef const char* (*Beside)();
void beside(Beside round, Beside end);
// Differs for every block of every launch.
u64 block_serial();
// Times that block_sync has let the block's threads pass.
u32 block_syncs();
u64 random_number();
// The block orders its warps by mbarriers, which the race check does not follow: from here it looks inside a warp only.
void ordered_by_mbarriers();
bool shared_holds(const void* address, size_t bytes);
// A copy engine's access to one run of global memory: checked and counted, not looked at for races of blocks.
void bulk_access(const void* address, u32 bytes, bool write);

typedef void (*Thunk)(const void* kernel, const void* arguments);
int run(const char* name, const u32* grid, const u32* block, size_t dynamic_bytes, Thunk thunk, const void* kernel, const void* arguments, size_t argument_bytes);

template <class Arguments> int launch(const char* name, void (*kernel)(Arguments), const u32* grid, const u32* block, size_t dynamic_bytes, const void* arguments) {
    return run(name, grid, block, dynamic_bytes, [](const void* kernel, const void* arguments) {
        ((void (*)(Arguments))kernel)(*(const Arguments*)arguments);
    }, (const void*)kernel, arguments, sizeof(Arguments));
}
template <class Arguments> constexpr size_t size_of(void (*)(Arguments)) { return sizeof(Arguments); }
}  // namespace emulated

#define DEVICE inline __attribute__((always_inline))
#define KERNEL(threads) static void
#define KERNEL_OCCUPANCY(threads, blocks) static void
#define ARGUMENTS(...) const __VA_ARGS__
// What a test calls instead of the driver, and the size of the argument struct, which the host's must have.
#define EXPORT(name)                                                                                                              \
    extern "C" int emulate_##name(const u32* grid, const u32* block, size_t dynamic_bytes, const void* arguments) {              \
        return emulated::launch(#name, name, grid, block, dynamic_bytes, arguments);                                             \
    }                                                                                                                             \
    extern "C" const u64 arguments_of_##name = emulated::size_of(name);
#define SHARED(type, name, count)                                                                                                 \
    type(&name)[count] = *(type(*)[count])emulated::static_shared([] { static char key; return &key; }(), sizeof(type) * (count))
#define DYNAMIC_SHARED(name) u8* name = (u8*)emulated::dynamic_shared()
#define UNROLL
#define NO_UNROLL
#define INFINITE __builtin_inff()

DEVICE u32 thread() { return emulated::thread_index.x; }
DEVICE u32 block() { return emulated::block_index.x; }
DEVICE u32 block_y() { return emulated::block_index.y; }
DEVICE u32 block_z() { return emulated::block_index.z; }
DEVICE u32 blocks() { return emulated::grid_size.x; }
DEVICE u32 blocks_y() { return emulated::grid_size.y; }
DEVICE u32 blocks_z() { return emulated::grid_size.z; }
DEVICE u32 threads() { return emulated::block_size.x; }
DEVICE u32 lane() { return emulated::thread_index.x & 31; }
DEVICE u32 warp() { return emulated::thread_index.x >> 5; }
#define block_sync() ([] { static char site; emulated::block_barrier(&site); }())
DEVICE void warp_sync() { emulated::order_warp(); }

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(f16 x) { return _cvtsh_ss(x.bits); }
DEVICE float to_f32(bf16 x) { u32 u = (u32)x.bits << 16; float y; memcpy(&y, &u, 4); return y; }
template <class T> inline T from_f32(float x);
template <> inline float from_f32<float>(float x) { return x; }
template <> inline f16 from_f32<f16>(float x) { return f16{x != x ? (u16)0x7fff : (u16)_cvtss_sh(x, 0)}; }
template <> inline bf16 from_f32<bf16>(float x) {
    u32 u;
    memcpy(&u, &x, 4);
    return bf16{x != x ? (u16)0x7fff : (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
DEVICE u32 bits_of(float x) { u32 u; memcpy(&u, &x, 4); return u; }
DEVICE float float_of(u32 u) { float x; memcpy(&x, &u, 4); return x; }

template <class T> inline T shuffle(T value, u32 source) {
    const void* const* all = emulated::meet(emulated::SHUFFLE, &value);
    const void* from = all[source & 31];
    T got = from ? *(const T*)from : value;
    emulated::part(emulated::SHUFFLE);
    return got;
}
template <class T> inline T shuffle_xor(T value, u32 mask) { return shuffle(value, lane() ^ mask); }
template <class T> inline T shuffle_down(T value, u32 by) { return shuffle(value, lane() + by > 31 ? lane() : lane() + by); }
inline u32 ballot(bool yes) {
    const void* const* all = emulated::meet(emulated::BALLOT, &yes);
    u32 mask = 0;
    for (int l = 0; l < 32; ++l) mask |= all[l] && *(const bool*)all[l] ? 1u << l : 0;
    emulated::part(emulated::BALLOT);
    return mask;
}
DEVICE u32 count_bits(u32 x) { return (u32)__builtin_popcount(x); }

// Blocks and fibers share one thread of the host: a plain read, change and write is atomic.
DEVICE void atomic_add(float* to, float value) { emulated::atomic_access(to, 4); *(volatile float*)to = *(volatile float*)to + value; }
DEVICE u32 atomic_add(u32* to, u32 value) { emulated::atomic_access(to, 4); u32 old = *(volatile u32*)to; *(volatile u32*)to = old + value; return old; }
DEVICE void atomic_max(u32* to, u32 value) { emulated::atomic_access(to, 4); if (value > *(volatile u32*)to) *(volatile u32*)to = value; }
DEVICE void store_same(float* to, float value) { emulated::atomic_access(to, 4); *(volatile float*)to = value; }
DEVICE void fence_device() { emulated::order_device(); }

DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float exp_fast(float x) { return expf(x); }
DEVICE float reciprocal_root(float x) { return 1.0f / sqrtf(x); }
DEVICE float square_root(float x) { return sqrtf(x); }
DEVICE float divide(float a, float b) { return a / b; }
DEVICE float round_even(float x) { return nearbyintf(x); }
DEVICE i32 dot4(u32 a, u32 b, i32 c) {
    for (int k = 0; k < 32; k += 8) c += (i32)(i8)(a >> k) * (i32)(i8)(b >> k);
    return c;
}

DEVICE void copy_async16(void* shared, const void* global, u32 bytes = 16) { emulated::copy_async(shared, global, bytes, 16); }
DEVICE void copy_async4(void* shared, const void* global, u32 bytes = 4) { emulated::copy_async(shared, global, bytes, 4); }
DEVICE void copy_async_commit() { emulated::copy_async_commit(); }
template <int N> DEVICE void copy_async_wait() { emulated::copy_async_wait(N); }

inline void load_matrix4(u32 (&r)[4], const void* row, bool transposed) {
    if ((uintptr_t)row & 15) emulated::fail("a row address of a matrix load is not a multiple of 16");
    emulated::shared_read(row, 16);
    const u16* const* rows = (const u16* const*)emulated::meet(emulated::LOAD_MATRIX, row);
    const u32 l = lane(), g = l / 4, t = l % 4;
    for (u32 m = 0; m < 4; ++m) {
        const u16 low = transposed ? rows[m * 8 + 2 * t][g] : rows[m * 8 + g][2 * t];
        const u16 high = transposed ? rows[m * 8 + 2 * t + 1][g] : rows[m * 8 + g][2 * t + 1];
        r[m] = low | (u32)high << 16;
    }
    emulated::part(emulated::LOAD_MATRIX);
}
inline void load_matrix4(u32 (&r)[4], const void* row) { load_matrix4(r, row, false); }
inline void load_matrix4_transposed(u32 (&r)[4], const void* row) { load_matrix4(r, row, true); }

// Fragments: A holds rows g and g + 8, B and D as common.cuh says; `PER` elements a register, K of 4 registers' columns.
template <class Sum, class Get> inline void multiply_fragments(Sum (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int per, int halves, Get get) {
    struct Registers { u32 a[4], b[2]; } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const Registers* const* all = (const Registers* const*)emulated::meet(emulated::MMA, &mine);
    const u32 l = lane(), g = l / 4, t = l % 4;
    for (int half = 0; half < halves; ++half)
        for (u32 q = 0; q < 4; ++q)
            for (int e = 0; e < per; ++e) {
                const Sum x0 = get(all[g * 4 + q]->a[half * 2], e), x1 = get(all[g * 4 + q]->a[half * 2 + 1], e);
                const Sum y0 = get(all[2 * t * 4 + q]->b[half], e), y1 = get(all[(2 * t + 1) * 4 + q]->b[half], e);
                d[0] += x0 * y0; d[1] += x0 * y1; d[2] += x1 * y0; d[3] += x1 * y1;
            }
    emulated::part(emulated::MMA);
}
inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    multiply_fragments(d, a, b0, b1, 2, 2, [](u32 r, int e) { return to_f32(f16{(u16)(r >> 16 * e)}); });
}
inline void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    multiply_fragments(d, a, b0, b1, 2, 2, [](u32 r, int e) { return to_f32(bf16{(u16)(r >> 16 * e)}); });
}
// The hardware drops the low 13 bits; rounding before is the kernel's business.
DEVICE u32 to_tf32(float x) { return x != x ? 0x7fffffffu : (bits_of(x) + 0x1000) & 0xffffe000u; }
inline void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_fragments(d, a, b0, b1, 1, 2, [](u32 r, int) { return float_of(r & 0xffffe000u); });
}
inline void mma_m16n8k32_i8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_fragments(d, a, b0, b1, 4, 2, [](u32 r, int e) { return (i32)(i8)(r >> 8 * e); });
}
