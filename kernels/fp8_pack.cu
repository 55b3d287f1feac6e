// fp8_pack.cu: numbers to 8-bit codes, as they lie and turned, for gemm_fp8.cu, which reads K-major operands alone.
// Architectures: sm_90a
// Entries  pack_{e4m3,e5m2}_{f32,bf16}: the codes of round(s x), and the largest |x|; s is a power of two in device memory (0: 1). On numbers
//          that fp8.cu has rounded by the same s it is exact.
// Shapes   x [rows, columns]; `natural` [rows, columns] or null, then columns are a multiple of 16; `turned` [columns, rows] or null, then
//          rows are a multiple of 16. `largest` starts at zero and takes the bits of |x|; null where nobody asks.
// Tile     128 x 128 a block of 256 threads. A thread takes 4 rows of 8 columns; a lane's 4 rows are one word of the turned tile in shared
//          memory, whose pitch of 33 words keeps 4 x 8 lanes on 32 banks, both ways.
// Work     reads each number once and writes a byte for each form: memory-bound.
// Numbers  those of fp8.cu: to the nearest, ties to even, subnormal numbers kept, beyond the largest: the largest.
#include "hopper.cuh"
#include "hopper_narrow.cuh"

template <class From> struct PackArguments { const From* x; const float* scale; u8* natural; u8* turned; u32* largest; u32 rows, columns; };

constexpr u32 TILE = 128, PITCH = 33;

template <class Format, class From> DEVICE void pack(const PackArguments<From>& p) {
    SHARED(u32, tile, TILE * PITCH);
    struct alignas(8 * sizeof(From) < 16 ? 8 * sizeof(From) : 16) Eight { From at[8]; };
    const u32 across = ceil_div(p.columns, TILE), top = block() / across * TILE, left = block() % across * TILE;
    const float given = *p.scale, scale = given == 0.0f ? 1.0f : given;
    u32 most = 0;
    NO_UNROLL for (u32 round = 0; round < 2; ++round) {
        // A warp: 32 rows of 32 columns.
        const u32 part = warp() + 8 * round, chunk = part % 4 * 4 + lane() % 4, four = part / 4 * 8 + lane() / 4;
        const u32 column = left + chunk * 8, row = top + four * 4;
        float x[4][8];
        UNROLL for (u32 i = 0; i < 4; ++i) {
            const From* const from = p.x + (u64)(row + i) * p.columns + column;
            UNROLL for (u32 j = 0; j < 8; ++j) x[i][j] = 0.0f;
            if (row + i >= p.rows || column >= p.columns) continue;
            if (p.columns % 8 == 0) {
                const Eight eight = *(const Eight*)from;
                UNROLL for (u32 j = 0; j < 8; ++j) x[i][j] = to_f32(eight.at[j]);
            } else {
                UNROLL for (u32 j = 0; j < 8; ++j) x[i][j] = column + j < p.columns ? to_f32(from[j]) : 0.0f;
            }
            UNROLL for (u32 j = 0; j < 8; ++j) {
                most = larger(most, bits_of(x[i][j]) & 0x7fffffffu);
                x[i][j] *= scale;
            }
        }
        if (p.natural) {
            UNROLL for (u32 i = 0; i < 4; ++i) {
                const Two32 out{pack_codes<Format>(x[i][0], x[i][1]) | (u32)pack_codes<Format>(x[i][2], x[i][3]) << 16,
                                pack_codes<Format>(x[i][4], x[i][5]) | (u32)pack_codes<Format>(x[i][6], x[i][7]) << 16};
                if (row + i < p.rows && column < p.columns) *(Two32*)(p.natural + (u64)(row + i) * p.columns + column) = out;
            }
        }
        if (p.turned) {
            UNROLL for (u32 j = 0; j < 8; ++j)
                tile[(chunk * 8 + j) * PITCH + four] =
                    pack_codes<Format>(x[0][j], x[1][j]) | (u32)pack_codes<Format>(x[2][j], x[3][j]) << 16;
        }
    }
    if (p.largest) {
        UNROLL for (u32 by = 16; by > 0; by >>= 1) most = larger(most, shuffle_xor(most, by));
        if (lane() == 0) atomic_max(p.largest, most);
    }
    if (!p.turned) return;
    block_sync();
    UNROLL for (u32 i = 0; i < 4; ++i) {
        const u32 c = thread() / 8 + 32 * i, words = thread() % 8 * 4, row = top + words * 4;
        const u32* const from = tile + c * PITCH + words;
        const Four32 out{from[0], from[1], from[2], from[3]};
        if (left + c < p.columns && row < p.rows) *(Four32*)(p.turned + (u64)(left + c) * p.rows + row) = out;
    }
}

#define PACK(Format, From, name)                                                               \
    KERNEL(256) pack_##Format##_##name(ARGUMENTS(PackArguments<From>) p) { pack<Format>(p); }   \
    EXPORT(pack_##Format##_##name)
PACK(e4m3, float, f32)
PACK(e4m3, bf16, bf16)
PACK(e5m2, float, f32)
PACK(e5m2, bf16, bf16)
