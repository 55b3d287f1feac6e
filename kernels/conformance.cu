// conformance.cu: each function of common.cuh that stands for an instruction, alone, so that a device can be held against its twin of
// emulator/emulator.h on the same words.
// Entries  conform_*: no program calls them; src/backend/cuda/conformance.rs does, and knows the shape of each one's input.
// Shapes   x: words in, y: words out. Functions of single words: thread i of the grid takes x[i] (second operand x[count + i], third
//          x[2 count + i]) and writes y[i]. Functions of a warp: one block of 32, lane l takes word r of its registers from x[32 r + l].
// Numbers  as each function states; inputs of products are chosen so that the sums are exact, or so that no digits cancel.
#include "common.cuh"

struct ConformanceArguments { const u32* x; u32* y; u64 count; };

#define OF_ONE(name, expression)                                                                                        \
    KERNEL(128) conform_##name(ARGUMENTS(ConformanceArguments) p) {                                                     \
        const u64 i = (u64)block() * threads() + thread();                                                              \
        if (i >= p.count) return;                                                                                       \
        const u32 a = p.x[i];                                                                                           \
        p.y[i] = expression;                                                                                            \
    }                                                                                                                   \
    EXPORT(conform_##name)
#define OF_TWO(name, expression)                                                                                      \
    KERNEL(128) conform_##name(ARGUMENTS(ConformanceArguments) p) {                                                     \
        const u64 i = (u64)block() * threads() + thread();                                                              \
        if (i >= p.count) return;                                                                                       \
        const u32 a = p.x[i], b = p.x[p.count + i];                                                                     \
        p.y[i] = expression;                                                                                            \
    }                                                                                                                   \
    EXPORT(conform_##name)
#define OF_THREE(name, expression)                                                                                      \
    KERNEL(128) conform_##name(ARGUMENTS(ConformanceArguments) p) {                                                     \
        const u64 i = (u64)block() * threads() + thread();                                                              \
        if (i >= p.count) return;                                                                                       \
        const u32 a = p.x[i], b = p.x[p.count + i], c = p.x[2 * p.count + i];                                           \
        p.y[i] = expression;                                                                                            \
    }                                                                                                                   \
    EXPORT(conform_##name)

OF_ONE(f16_to_f32, bits_of(to_f32(f16{(u16)a})))
OF_ONE(bf16_to_f32, bits_of(to_f32(bf16{(u16)a})))
OF_ONE(f32_to_f16, from_f32<f16>(float_of(a)).bits)
OF_ONE(f32_to_bf16, from_f32<bf16>(float_of(a)).bits)
// A tensor core reads the upper 19 bits.
OF_ONE(f32_to_tf32, to_tf32(float_of(a)) & 0xffffe000u)
OF_ONE(exp_fast, bits_of(exp_fast(float_of(a))))
OF_ONE(reciprocal_root, bits_of(reciprocal_root(float_of(a))))
OF_ONE(square_root, bits_of(square_root(float_of(a))))
OF_ONE(round_even, bits_of(round_even(float_of(a))))
OF_ONE(count_bits, count_bits(a))
OF_THREE(fused, bits_of(fused(float_of(a), float_of(b), float_of(c))))
OF_TWO(divide, bits_of(divide(float_of(a), float_of(b))))
OF_THREE(dot4, (u32)dot4(a, b, (i32)c))

// y[32 k + l] for k = 0..6: shuffle, xor, down, ballot, sum, maximum, and shuffle of what is not a word.
KERNEL(32) conform_warp(ARGUMENTS(ConformanceArguments) p) {
    const u32 l = lane(), a = p.x[l], b = p.x[32 + l];
    p.y[l] = shuffle(a, b & 31);
    p.y[32 + l] = shuffle_xor(a, 5);
    p.y[64 + l] = shuffle_down(a, 7);
    p.y[96 + l] = ballot((a & 1) != 0);
    p.y[128 + l] = bits_of(warp_sum((float)(i32)(a & 1023)));
    p.y[160 + l] = bits_of(warp_max((float)(i32)(a & 0xfffff) - 500000.0f));
    p.y[192 + l] = (u32)shuffle((i32)a, 31 - l);
}
EXPORT(conform_warp)

// y[0]: a sum of small integers by atomic_add on floats. y[1]: the counter. y[2 + k]: how often the counter was found at k, which must
// be once. Then, by the block that comes last, the sum of what all blocks wrote before their fence, and a word that all threads store.
KERNEL(64) conform_atomics(ARGUMENTS(ConformanceArguments) p) {
    SHARED(u32, turn, 1);
    const u32 i = block() * threads() + thread(), all = blocks() * threads();
    atomic_add((float*)p.y, (float)(p.x[i] & 255));
    const u32 found = atomic_add(p.y + 1, 1);
    atomic_add(p.y + 2 + found, 1);
    u32* const tail = p.y + 2 + all;
    store_same((float*)tail, 3.0f);
    // One word of each block, then its turn.
    if (thread() == 0) {
        tail[3 + block()] = p.x[block()] & 0xffff;
        fence_device();
        turn[0] = atomic_add(tail + 1, 1);
        fence_device();
    }
    block_sync();
    if (turn[0] + 1 == blocks() && thread() == 0) {
        u32 sum = 0;
        for (u32 k = 0; k < blocks(); ++k) sum += tail[3 + k];
        tail[2] = sum;
    }
}
EXPORT(conform_atomics)

// Thread i copies min(i % 32, 16) bytes of its 16 and min(i % 8, 4) of its 4, in two groups, and reads a neighbour's.
KERNEL(128) conform_copy_async(ARGUMENTS(ConformanceArguments) p) {
    SHARED(u32, wide, 512);
    SHARED(u32, narrow, 128);
    const u32 i = thread(), other = (i + 37) % 128;
    copy_async16(wide + 4 * i, p.x + 4 * i, smaller(i % 32, 16u));
    copy_async_commit();
    copy_async4(narrow + i, p.x + 512 + i, smaller(i % 8, 4u));
    copy_async_commit();
    copy_async_wait<1>();
    block_sync();
    UNROLL for (u32 k = 0; k < 4; ++k) p.y[4 * i + k] = wide[4 * other + k];
    copy_async_wait<0>();
    block_sync();
    p.y[512 + i] = narrow[other];
}
EXPORT(conform_copy_async)

// x: 32 rows of 16 bytes, then for each lane which row it names.
template <bool TRANSPOSED> DEVICE void load_matrix(const ConformanceArguments& p) {
    SHARED(u32, rows, 128);
    const u32 l = lane();
    UNROLL for (u32 k = 0; k < 4; ++k) rows[32 * k + l] = p.x[32 * k + l];
    block_sync();
    u32 r[4];
    const u32* const row = rows + 4 * (p.x[128 + l] & 31);
    if (TRANSPOSED) load_matrix4_transposed(r, row);
    else load_matrix4(r, row);
    UNROLL for (u32 k = 0; k < 4; ++k) p.y[32 * k + l] = r[k];
}
KERNEL(32) conform_load_matrix(ARGUMENTS(ConformanceArguments) p) { load_matrix<false>(p); }
EXPORT(conform_load_matrix)
KERNEL(32) conform_load_matrix_transposed(ARGUMENTS(ConformanceArguments) p) { load_matrix<true>(p); }
EXPORT(conform_load_matrix_transposed)

// Registers of a lane in x: four of A, two of B, four of the sum.
#define MMA(name, Sum, to_sum, of_sum, call)                                                                            \
    KERNEL(32) conform_mma_##name(ARGUMENTS(ConformanceArguments) p) {                                                  \
        const u32 l = lane();                                                                                           \
        u32 a[4], b[2];                                                                                                 \
        Sum d[4];                                                                                                       \
        UNROLL for (u32 k = 0; k < 4; ++k) {                                                                            \
            a[k] = p.x[32 * k + l];                                                                                     \
            d[k] = to_sum(p.x[32 * (6 + k) + l]);                                                                       \
        }                                                                                                               \
        b[0] = p.x[128 + l];                                                                                            \
        b[1] = p.x[160 + l];                                                                                            \
        call;                                                                                                           \
        UNROLL for (u32 k = 0; k < 4; ++k) p.y[32 * k + l] = of_sum(d[k]);                                              \
    }                                                                                                                   \
    EXPORT(conform_mma_##name)
MMA(f16, float, float_of, bits_of, mma_m16n8k16(d, a, b[0], b[1], f16{}))
MMA(bf16, float, float_of, bits_of, mma_m16n8k16(d, a, b[0], b[1], bf16{}))
MMA(tf32, float, float_of, bits_of, mma_m16n8k8_tf32(d, a, b[0], b[1]))
MMA(i8, i32, (i32), (u32), mma_m16n8k32_i8(d, a, b[0], b[1]))
