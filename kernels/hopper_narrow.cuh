// hopper_narrow.cuh: products by warpgroups whose operands are narrower than those of hopper.cuh: 8-bit floats, and 16-bit numbers of which
// two of four are kept. PTX ISA 8.0, sections "wgmma", "wgmma.mma_async.sp", "cvt". Its twins are in emulator/hopper.h. Tiles are those of hopper.cuh in bytes: rows of 128 bytes, so 128 elements, along K.
#pragma once
#include "hopper.cuh"

// The formats of OFP8, revision 1.0.
struct e4m3 { u8 bits; };
struct e5m2 { u8 bits; };

#ifndef ADVISOR_EMULATED
// D[64, N] = A[64, 32] B[N, 32]^T (+ D), both K-major, as `wgmma` of hopper.cuh otherwise. The sums that the hardware keeps on the way have
// some 14 bits: whoever wants fp32 adds the results of few products up by himself (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
template <int COUNT, class A, class B> struct WgmmaNarrow;
#define TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define TO_64 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63"
#define EIGHT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define OUT_64 EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
#define WGMMA(A, B)                                                                                                            \
    template <> struct WgmmaNarrow<64, A, B> {                                                                                 \
        static DEVICE void run(float (&d)[64], u64 a, u64 b, bool accumulate) {                                                \
            asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k32.f32." #A "." #B       \
                         " {" TO_64 "}, %64, %65, p, 1, 1; }" : OUT_64 : "l"(a), "l"(b), "r"((u32)accumulate));                \
        }                                                                                                                      \
    };
WGMMA(e4m3, e4m3)
WGMMA(e5m2, e4m3)
WGMMA(e4m3, e5m2)
#undef WGMMA

// D[64, 128] = A[64, 32] B[128, 32]^T (+ D), both K-major, of A in each row two of every four numbers, 16 of 32. `places` of the lanes
// 2 SELECTED and 2 SELECTED + 1 of each quad say which, as kernels/gemm_two_four.cu has it.
template <int SELECTED, class T> struct WgmmaTwoFour;
#define WGMMA(T, selected)                                                                                                     \
    template <> struct WgmmaTwoFour<selected, T> {                                                                             \
        static DEVICE void run(float (&d)[64], u64 a, u64 b, u32 places, bool accumulate) {                                    \
            asm volatile("{ .reg .pred p; setp.ne.b32 p, %67, 0; wgmma.mma_async.sp.sync.aligned.m64n128k32.f32." #T "." #T    \
                         " {" TO_64 "}, %64, %65, %66, " #selected ", p, 1, 1, 0, 0; }"                                        \
                         : OUT_64 : "l"(a), "l"(b), "r"(places), "r"((u32)accumulate));                                        \
        }                                                                                                                      \
    };
WGMMA(bf16, 0)
WGMMA(bf16, 1)
WGMMA(f16, 0)
WGMMA(f16, 1)
#undef WGMMA
#undef TEN
#undef TO_64
#undef EIGHT
#undef OUT_64
template <int SELECTED, class T> DEVICE void wgmma_two_four(float (&d)[64], u64 a, u64 b, u32 places, bool accumulate) {
    WgmmaTwoFour<SELECTED, T>::run(d, a, b, places, accumulate);
}
template <class A, class B, int COUNT> DEVICE void wgmma_narrow(float (&d)[COUNT], u64 a, u64 b, bool accumulate) {
    WgmmaNarrow<COUNT, A, B>::run(d, a, b, accumulate);
}

// Two codes, `low` in the low byte: to the nearest, ties to even; beyond the largest number, the largest.
template <class T> DEVICE u16 pack_codes(float low, float high);
template <> DEVICE u16 pack_codes<e4m3>(float low, float high) {
    u16 y;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(high), "f"(low));
    return y;
}
template <> DEVICE u16 pack_codes<e5m2>(float low, float high) {
    u16 y;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(y) : "f"(high), "f"(low));
    return y;
}
#else
template <class T> struct CodeOf;
template <> struct CodeOf<e4m3> { static constexpr emulated::Numbers numbers = emulated::E4M3; };
template <> struct CodeOf<e5m2> { static constexpr emulated::Numbers numbers = emulated::E5M2; };
template <class A, class B, int COUNT> DEVICE void wgmma_narrow(float (&d)[COUNT], u64 a, u64 b, bool accumulate) {
    static_assert(COUNT == 64, "one of the shapes above");
    emulated::wgmma(d, COUNT, emulated::Product{a, b, accumulate, false, false, CodeOf<A>::numbers, CodeOf<B>::numbers, nullptr, -1, {}});
}
template <int SELECTED, class T> DEVICE void wgmma_two_four(float (&d)[64], u64 a, u64 b, u32 places, bool accumulate) {
    constexpr emulated::Numbers NUMBERS = NumbersOf<T>::value;
    emulated::wgmma(d, 64, emulated::Product{a, b, accumulate, false, false, NUMBERS, NUMBERS, nullptr, SELECTED, {}}, places);
}
template <class T> DEVICE u16 pack_codes(float low, float high) {
    return (u16)(emulated::code_of(low, CodeOf<T>::numbers) | emulated::code_of(high, CodeOf<T>::numbers) << 8);
}
#endif

// What to add to a descriptor for the next 32 of K: 32 bytes along a row.
constexpr u64 WGMMA_STEP_NARROW = 32 >> 4;
