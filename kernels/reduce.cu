// reduce.cu: sums along one axis, whether all numbers are finite, the largest of a row.
// Entries  sum_middle_<dtype> (result as the operand), sum_middle_<dtype>_f32, sum_parts_<dtype>; clear_flag_<dtype>; argmax_f32.
// Shapes   sum_middle: x [O, E, I] to y [O, I] times a factor. A thread a result (of 16 bits and an even I: two results) and part, any
//          grid (x, y, parts); with parts > 1
//          the sums of each part go to `workspace` [parts, O, I] in fp32 and sum_parts_<type of y> adds them in order.
//          clear_flag: any number of elements, grid-stride; a flag of 1.0 becomes 0.0 where one is not finite.
//          argmax: [R, C], a warp a row; the first of equals.
// Work     every operand read once: memory-bound. Neighbouring threads read neighbouring numbers.
// Numbers  fp32, in the order of the axis within a part, then part by part.
#include "common.cuh"

template <class T, class Y> struct SumArguments {
    const T* x; Y* y; float* workspace;
    u32 outer; u32 extent; u32 inner; u32 parts; float factor; u32 unused;
};
template <class T> struct FlagArguments { const T* x; float* flag; u64 n; };
struct ArgmaxArguments { const float* x; i32* y; u32 rows; u32 columns; };
struct SetArguments { float* to; float value; u32 unused; };

template <int W, class T> struct alignas(W * sizeof(T)) Neighbours { T at[W]; };

// ROWS loads under way at once, into four sums that wait for none of the others.
template <int ROWS, int W, class T> DEVICE void add_rows(float (&sum)[W][4], const T* x, u32 first, u32 inner) {
    Neighbours<W, T> row[ROWS];
    UNROLL for (u32 k = 0; k < ROWS; ++k) row[k] = *(const Neighbours<W, T>*)(x + (u64)(first + k) * inner);
    UNROLL for (u32 k = 0; k < ROWS; ++k)
        UNROLL for (int w = 0; w < W; ++w) sum[w][k % 4] += to_f32(row[k].at[w]);
}

// W neighbouring results a thread.
template <int W, class T, class Y> DEVICE void sum_middle(const SumArguments<T, Y>& p) {
    const u32 length = ceil_div(p.extent, p.parts), first = block_z() * length, last = smaller(first + length, p.extent);
    for (u32 o = block_y(); o < p.outer; o += blocks_y()) {
        for (u32 i = (block() * 256 + thread()) * W; i < p.inner; i += blocks() * 256 * W) {
            const T* x = p.x + (u64)o * p.extent * p.inner + i;
            float sum[W][4] = {};
            u32 e = first;
            for (; e + 16 <= last; e += 16) add_rows<16>(sum, x, e, p.inner);
            for (; e + 4 <= last; e += 4) add_rows<4>(sum, x, e, p.inner);
            for (; e < last; ++e) add_rows<1>(sum, x, e, p.inner);
            const u64 at = (u64)o * p.inner + i;
            Neighbours<W, float> all;
            UNROLL for (int w = 0; w < W; ++w) all.at[w] = (sum[w][0] + sum[w][1]) + (sum[w][2] + sum[w][3]);
            if (p.parts == 1) {
                Neighbours<W, Y> y;
                UNROLL for (int w = 0; w < W; ++w) y.at[w] = from_f32<Y>(all.at[w] * p.factor);
                *(Neighbours<W, Y>*)(p.y + at) = y;
            } else {
                *(Neighbours<W, float>*)(p.workspace + (u64)block_z() * p.outer * p.inner + at) = all;
            }
        }
    }
}
template <class T, class Y> DEVICE void sum_middle(const SumArguments<T, Y>& p) {
    if (sizeof(T) == 2 && p.inner % 2 == 0) sum_middle<2>(p);
    else sum_middle<1>(p);
}

template <class Y> DEVICE void sum_parts(const SumArguments<Y, Y>& p) {
    const u64 all = (u64)p.outer * p.inner;
    for (u64 at = (u64)block() * 256 + thread(); at < all; at += (u64)blocks() * 256) {
        float sum = 0.0f;
        for (u32 part = 0; part < p.parts; ++part) sum += p.workspace[part * all + at];
        p.y[at] = from_f32<Y>(sum * p.factor);
    }
}

template <class T> DEVICE void clear_flag(const FlagArguments<T>& p) {
    constexpr u32 COUNT = Pack<T>::COUNT;
    bool finite = true;
    const u64 step = (u64)blocks() * threads() * COUNT;
    for (u64 first = ((u64)block() * threads() + thread()) * COUNT; first < p.n; first += step) {
        if (first + COUNT <= p.n) {
            const Pack<T> x = *(const Pack<T>*)(p.x + first);
            UNROLL for (u32 e = 0; e < COUNT; ++e) finite = finite && (bits_of(to_f32(x.at[e])) & 0x7f800000u) != 0x7f800000u;
        } else {
            for (u64 k = first; k < p.n; ++k) finite = finite && (bits_of(to_f32(p.x[k])) & 0x7f800000u) != 0x7f800000u;
        }
    }
    // All who write, write the same.
    if (!finite) store_same(p.flag, 0.0f);
}

KERNEL(32) set_f32(ARGUMENTS(SetArguments) p) {
    if (block() == 0 && thread() == 0) *p.to = p.value;
}
EXPORT(set_f32)

KERNEL(256) argmax_f32(ARGUMENTS(ArgmaxArguments) p) {
    for (u32 row = block() * 8 + warp(); row - warp() < p.rows; row += blocks() * 8) {
        const float* x = p.x + (u64)smaller(row, p.rows - 1) * p.columns;
        float best = -INFINITE;
        u32 at = 0xffffffffu;
        for (u32 c = lane(); c < p.columns; c += 32) {
            if (at == 0xffffffffu || x[c] > best) {
                best = x[c];
                at = c;
            }
        }
        UNROLL for (u32 by = 16; by > 0; by >>= 1) {
            const float other = shuffle_xor(best, by);
            const u32 place = shuffle_xor(at, by);
            if (place != 0xffffffffu && (at == 0xffffffffu || other > best || (other == best && place < at))) {
                best = other;
                at = place;
            }
        }
        if (lane() == 0 && row < p.rows) p.y[row] = (i32)at;
    }
}
EXPORT(argmax_f32)

#define SUM(T, Y, name)                                                                                              \
    KERNEL(256) name(ARGUMENTS(SumArguments<T, Y>) p) { sum_middle(p); }                                             \
    EXPORT(name)
#define ALL(T, suffix)                                                                                               \
    SUM(T, T, sum_middle_##suffix)                                                                                   \
    KERNEL(256) sum_parts_##suffix(ARGUMENTS(SumArguments<T, T>) p) { sum_parts(p); }                                \
    EXPORT(sum_parts_##suffix)                                                                                       \
    KERNEL(256) clear_flag_##suffix(ARGUMENTS(FlagArguments<T>) p) { clear_flag(p); }                                \
    EXPORT(clear_flag_##suffix)

ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
SUM(f16, float, sum_middle_f16_f32)
SUM(bf16, float, sum_middle_bf16_f32)
