// fp8.cu: rounding to the 8-bit floating-point formats of the Open Compute Project (OFP8, revision 1.0), and delayed scaling.
// Entries  round_{e4m3,e5m2}_{f32,f32_bf16,bf16}: y = round(s x) / s, and the largest |x|; s is a power of two in device memory (0: 1).
//          move_fp8_scale: the largest |x| of a step into the history, and the scale of the next step from that.
// Shapes   any number of elements; `largest` starts at zero and takes the bits of |x|, which order as the numbers do.
// Work     one read and one write of 16 bytes a thread and access, one shuffle tree and one atomic a warp: memory-bound.
// Numbers  to the nearest, ties to even, subnormal numbers kept, beyond the largest: the largest. All in fp32 and exact, for s and the
//          results' ulps are powers of two; a bf16 holds every result.
#include "common.cuh"

template <class From, class To> struct RoundFp8Arguments { const From* x; const float* scale; To* y; u32* largest; u64 n; };
struct MoveFp8Arguments { float* scale; float* history; const float* largest; u32 window; u32 first; u32 last; u32 margin; float most; u32 unused; };

// Exponent of the smallest normal number, bits of the fraction, largest number.
struct E4m3 { static constexpr i32 LEAST = -6, FRACTION = 3; static constexpr float MOST = 448.0f; };
struct E5m2 { static constexpr i32 LEAST = -14, FRACTION = 2; static constexpr float MOST = 57344.0f; };

// Adding 2^23 ulps of the format makes fp32 round there; subnormal numbers share the ulp of the smallest normal one.
template <class Format> DEVICE float round_fp8(float x) {
    const u32 magnitude = bits_of(x) & 0x7fffffffu, sign = bits_of(x) & 0x80000000u;
    if (magnitude > 0x7f800000u) return x;
    if (magnitude >= bits_of(Format::MOST)) return float_of(bits_of(Format::MOST) | sign);
    const u32 exponent = larger(magnitude & 0x7f800000u, (u32)(Format::LEAST + 127) << 23);
    const float magic = float_of(exponent + ((u32)(23 - Format::FRACTION) << 23));
    const float rounded = (float_of(magnitude) + magic) - magic;
    return float_of(bits_of(rounded) | sign);
}

template <class Format, class From, class To> DEVICE void round_all(const RoundFp8Arguments<From, To>& p) {
    constexpr int COUNT = Pack<To>::COUNT, BYTES = COUNT * (int)sizeof(From);
    struct alignas(BYTES < 16 ? BYTES : 16) Block { From at[COUNT]; };
    const float given = *p.scale, scale = given == 0.0f ? 1.0f : given, back = divide(1.0f, scale);
    u32 most = 0;
    const u64 step = (u64)blocks() * threads() * COUNT;
    for (u64 first = ((u64)block() * threads() + thread()) * COUNT; first < p.n; first += step) {
        if (first + COUNT <= p.n) {
            const Block x = *(const Block*)(p.x + first);
            Pack<To> out;
            UNROLL for (int e = 0; e < COUNT; ++e) {
                const float value = to_f32(x.at[e]);
                most = larger(most, bits_of(value) & 0x7fffffffu);
                out.at[e] = from_f32<To>(round_fp8<Format>(value * scale) * back);
            }
            *(Pack<To>*)(p.y + first) = out;
        } else {
            for (u64 k = first; k < p.n; ++k) {
                const float value = to_f32(p.x[k]);
                most = larger(most, bits_of(value) & 0x7fffffffu);
                p.y[k] = from_f32<To>(round_fp8<Format>(value * scale) * back);
            }
        }
    }
    UNROLL for (u32 by = 16; by > 0; by >>= 1) most = larger(most, shuffle_xor(most, by));
    if (lane() == 0) atomic_max(p.largest, most);
}

// Launched once for each largest number of the step: the first makes room in the history, the last decides the scale. Nothing finite
// and positive in the history: the scale stays.
KERNEL(32) move_fp8_scale(ARGUMENTS(MoveFp8Arguments) p) {
    if (block() != 0 || thread() != 0) return;
    u32 now = bits_of(*p.largest);
    if (p.first) {
        NO_UNROLL for (u32 k = p.window - 1; k > 0; --k) p.history[k] = p.history[k - 1];
    } else {
        now = larger(now, bits_of(p.history[0]));
    }
    p.history[0] = float_of(now);
    if (!p.last) return;
    u32 all = 0;
    NO_UNROLL for (u32 k = 0; k < p.window; ++k) all = larger(all, bits_of(p.history[k]));
    if (all == 0 || all >= 0x7f800000u) return;
    // The largest power of two that leaves room for it and for `margin` doublings.
    const i32 exponent = (i32)(bits_of(divide(p.most, float_of(all))) >> 23) - 127 - (i32)p.margin;
    *p.scale = float_of((u32)(smaller(larger(exponent, -100), 100) + 127) << 23);
}
EXPORT(move_fp8_scale)

#define ROUND(Format, From, To, name)                                                                                \
    KERNEL(256) name(ARGUMENTS(RoundFp8Arguments<From, To>) p) { round_all<Format>(p); }                              \
    EXPORT(name)
#define ALL(Format, format)                                                                                          \
    ROUND(Format, float, float, round_##format##_f32)                                                                \
    ROUND(Format, float, bf16, round_##format##_f32_bf16)                                                            \
    ROUND(Format, bf16, bf16, round_##format##_bf16)

ALL(E4m3, e4m3)
ALL(E5m2, e5m2)
