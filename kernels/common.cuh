// common.cuh: the one header of every kernel. Types, and the only inline PTX; a kernel calls functions, never PTX.
// Two compilers read a kernel: NVRTC (this file), and a host C++ compiler with -DADVISOR_EMULATED, for which
// emulator/emulator.h gives the same names a meaning on the CPU.
//
// A kernel takes ONE argument, a struct by value, whose fields stand in src/backend/cuda/ in the same order:
//     struct AddArguments { const float* a; const float* b; float* y; u64 n; };
//     KERNEL(256) add_f32(ARGUMENTS(AddArguments) p) { ... }
//     EXPORT(add_f32)
// Pointers come first, then 8-byte, then 4-byte fields, so that no compiler adds padding between them.
#pragma once
#ifdef ADVISOR_EMULATED
#include "emulator/emulator.h"
#else
typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define KERNEL_OCCUPANCY(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define ARGUMENTS(...) const __grid_constant__ __VA_ARGS__
#define EXPORT(name)
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
// The one dynamic array; its size is given at the launch.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) u8 name[]
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#define INFINITE __int_as_float(0x7f800000)

DEVICE u32 thread() { return threadIdx.x; }
DEVICE u32 block() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 blocks() { return gridDim.x; }
DEVICE u32 blocks_y() { return gridDim.y; }
DEVICE u32 blocks_z() { return gridDim.z; }
DEVICE u32 threads() { return blockDim.x; }
DEVICE u32 lane() { return threadIdx.x & 31; }
DEVICE u32 warp() { return threadIdx.x >> 5; }
DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
DEVICE float to_f32(bf16 x) { return __int_as_float((u32)x.bits << 16); }
template <class T> DEVICE T from_f32(float x);
template <> DEVICE float from_f32<float>(float x) { return x; }
template <> DEVICE f16 from_f32<f16>(float x) { f16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
template <> DEVICE bf16 from_f32<bf16>(float x) { bf16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }

DEVICE u32 bits_of(float x) { return (u32)__float_as_int(x); }
DEVICE float float_of(u32 bits) { return __int_as_float((int)bits); }

template <class T> DEVICE T shuffle(T value, u32 source) { return __shfl_sync(0xffffffffu, value, source); }
template <class T> DEVICE T shuffle_xor(T value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
template <class T> DEVICE T shuffle_down(T value, u32 by) { return __shfl_down_sync(0xffffffffu, value, by); }
DEVICE u32 ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }
DEVICE u32 count_bits(u32 x) { return __popc(x); }

DEVICE void atomic_add(float* to, float value) { atomicAdd(to, value); }
DEVICE u32 atomic_add(u32* to, u32 value) { return atomicAdd(to, value); }
DEVICE void atomic_max(u32* to, u32 value) { atomicMax(to, value); }
// A plain store that other threads may make as well, with the same value.
DEVICE void store_same(float* to, float value) { *to = value; }
// All that this thread wrote is seen by every block before what it writes afterwards.
DEVICE void fence_device() { __threadfence(); }

// fp32 with one rounding, and the fast ones; each states its error against the exact function.
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float exp_fast(float x) { return __expf(x); }            // 2 + floor(|1.173 x|) ulp
DEVICE float reciprocal_root(float x) { return rsqrtf(x); }     // 2 ulp
DEVICE float square_root(float x) { return __fsqrt_rn(x); }     // exact
DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }  // exact
DEVICE float round_even(float x) { return rintf(x); }

// Four products of signed bytes added to an i32.
DEVICE i32 dot4(u32 a, u32 b, i32 c) { i32 d; asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// 16 bytes from global to shared memory without a register; lands by the wait. `bytes` below 16 fills the rest with zeros.
DEVICE void copy_async16(void* shared, const void* global, u32 bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
DEVICE void copy_async4(void* shared, const void* global, u32 bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `N` of this thread's groups are under way.
template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
DEVICE void load_matrix4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrix4_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// Tensor cores, sm_80 and later: D += A B of one warp. Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k*":
// lane l, g = l / 4, t = l % 4. D: d0 d1 at (g, 2t..), d2 d3 at (g + 8, 2t..).
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// fp32 rounded to 10 bits of mantissa, to the nearest, ties away from zero.
DEVICE u32 to_tf32(float x) { u32 y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_m16n8k32_i8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// From here on one text for both compilers.

struct alignas(16) Four32 { u32 x, y, z, w; };
struct alignas(8) Two32 { u32 x, y; };

template <class T> DEVICE T smaller(T a, T b) { return b < a ? b : a; }
template <class T> DEVICE T larger(T a, T b) { return a < b ? b : a; }
DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// 16 bytes as `COUNT` elements of T; one load or store instruction each way.
template <class T> struct alignas(16) Pack {
    static constexpr int COUNT = 16 / (int)sizeof(T);
    T at[COUNT];
};

DEVICE float warp_sum(float x) {
    UNROLL for (u32 by = 16; by > 0; by >>= 1) x += shuffle_xor(x, by);
    return x;
}
DEVICE float warp_max(float x) {
    UNROLL for (u32 by = 16; by > 0; by >>= 1) x = larger(x, shuffle_xor(x, by));
    return x;
}
