// conv_small.cu: the first layers of small CNNs, convolution + bias + ReLU + 2x2 max pooling in one pass, and its gradient.
// Entries  conv_relu_pool_<dtype>: x, w, bias to pooled y and the winner's code (u8: 0..3 by row then column, 4 where ReLU is off).
//          conv_relu_pool_grad_<dtype>: x, dy, code to one row of partial sums (dw, then db) a block; conv_relu_pool_grad_sum adds them.
// Shapes   x [B, H, W, Cin], w [KH, KW, Cin, Cout], y and code [B, OH / 2, OW / 2, Cout]; stride 1, any padding.
//          Cin <= 4, Cout a multiple of 8 up to 64, KH and KW <= 5. Odd edges of the convolution are dropped. Other shapes: conv.cu.
// Tile     up to 8 x 8 pooled pixels and all channels a block; input and weights lie in shared memory as fp32.
//          Forward: 8 channels of one pooled pixel a thread, 32 sums in registers. Gradient: one channel pair (co, ci) a thread with the
//          whole window's sums in registers; threads beyond the pairs share the pixels out.
// Work     8 KH KW Cin FLOP an output forward, a quarter of it backward (winners only); one read of x (and its halo), dy and code.
// Numbers  fp32 sums in the order of the window; the partial sums depend on the number of blocks, on nothing else.
#include "common.cuh"

// The window stands in `rows` and `columns`; a tile is at most TILE x TILE pooled pixels, and the host shares the image out evenly.
struct Image {
    u32 batch, height, width, cin, out_height, out_width, cout;  // out_*: pooled
    u32 rows, columns, pad_h, pad_w, tile_h, tile_w;
    u32 unused;
};
template <class T> struct PoolArguments { const T* x; const T* w; const float* bias; T* y; u8* code; Image image; };
template <class T> struct PoolGradArguments { const T* x; const T* dy; const u8* code; float* partial; Image image; };
struct PoolSumArguments { const float* partial; float* dw; float* db; u32 parts; u32 weights; u32 channels; u32 unused; };

static constexpr u32 TILE = 8, MAX_WINDOW = 5, MAX_CIN = 4, MAX_COUT = 64;
// Of the input tile; 8 more words a plane put the four channels of one place into different banks.
static constexpr u32 ROW = 2 * TILE + MAX_WINDOW - 1, PLANE = ROW * ROW + 8;
static constexpr u32 DEAD_CODE = 4;

// One unit of work: a tile of one image. `height` and `width` are cut at the image's end.
struct Unit { u32 image, row, column, height, width; };
DEVICE u32 units_of(const Image& s) { return s.batch * ceil_div(s.out_height, s.tile_h) * ceil_div(s.out_width, s.tile_w); }
DEVICE Unit unit_of(const Image& s, u32 k) {
    const u32 across = ceil_div(s.out_width, s.tile_w), down = ceil_div(s.out_height, s.tile_h);
    const u32 column = k % across * s.tile_w, row = k / across % down * s.tile_h;
    return {k / (across * down), row, column, smaller(s.tile_h, s.out_height - row), smaller(s.tile_w, s.out_width - column)};
}

// Even columns of a tile's row first, then the odd ones: neighbouring pooled pixels read neighbouring words.
struct Apart { static DEVICE u32 of(u32 column) { return (column & 1) * (ROW / 2) + column / 2; } };
struct Plain { static DEVICE u32 of(u32 column) { return column; } };

// The part of x that a unit reads, [Cin][PLANE] of rows of ROW, zero outside the image.
template <class Order, class T> DEVICE void load_input(float* tile, const T* x, const Image& s, const Unit& u) {
    const u32 across = (2 * u.width + s.columns - 1) * s.cin, count = (2 * u.height + s.rows - 1) * across;
    const i32 top = (i32)(2 * u.row) - (i32)s.pad_h, left = (i32)(2 * u.column) - (i32)s.pad_w;
    for (u32 k = thread(); k < count; k += threads()) {
        const u32 row = k / across, within = k % across, column = within / s.cin, channel = within % s.cin;
        const i32 h = top + (i32)row, w = left + (i32)column;
        const bool inside = (u32)h < s.height && (u32)w < s.width;
        const u64 from = (((u64)u.image * s.height + (u32)h) * s.width + (u32)w) * s.cin + channel;
        tile[channel * PLANE + row * ROW + Order::of(column)] = inside ? to_f32(x[from]) : 0.0f;
    }
}

struct alignas(16) Quad { float at[4]; };

// Where a channel's weight lies in a row of Cout: a thread's 8 channels are two quads half a row apart, so that the threads of a pixel
// read quads side by side. In 2-byte types its channels are neighbours (one store), in fp32 its two stores are each contiguous.
template <class T> DEVICE u32 weight_place(u32 channel, u32 cout) {
    if (sizeof(T) == 4) return channel;
    return (channel & 4 ? cout / 2 : 0) + channel / 8 * 4 + channel % 4;
}

// Sums of the four convolution outputs behind one pooled pixel; COLUMNS 0: any window.
template <int ROWS, int COLUMNS>
DEVICE void window_sums(float (&z)[4][8], const float* input, const float* weights, const Image& s, u32 row, u32 column, u32 group) {
    const u32 rows = ROWS ? ROWS : s.rows, columns = COLUMNS ? COLUMNS : s.columns, half = s.cout / 2;
    NO_UNROLL for (u32 channel = 0; channel < s.cin; ++channel) {
        NO_UNROLL for (u32 i = 0; i < rows; ++i) {
            const float* line = input + channel * PLANE + (2 * row + i) * ROW;
            float patch[2][(COLUMNS ? COLUMNS : MAX_WINDOW) + 1];
            UNROLL for (u32 j = 0; j <= (COLUMNS ? COLUMNS : MAX_WINDOW); ++j) {
                if (j > columns) break;
                patch[0][j] = line[Apart::of(2 * column + j)];
                patch[1][j] = line[ROW + Apart::of(2 * column + j)];
            }
            UNROLL for (u32 j = 0; j < (COLUMNS ? COLUMNS : MAX_WINDOW); ++j) {
                if (j >= columns) break;
                const float* w = weights + ((i * columns + j) * s.cin + channel) * s.cout + group * 4;
                const Quad low = *(const Quad*)w, high = *(const Quad*)(w + half);
                UNROLL for (u32 e = 0; e < 4; ++e) {
                    UNROLL for (u32 q = 0; q < 4; ++q) {
                        const float x = patch[q / 2][j + q % 2];
                        z[q][e] = fused(x, low.at[e], z[q][e]);
                        z[q][4 + e] = fused(x, high.at[e], z[q][4 + e]);
                    }
                }
            }
        }
    }
}

// The first of the largest, as reference.rs has it.
template <class T> DEVICE void pool_and_store(const float (&z)[4][8], const PoolArguments<T>& p, u64 pixel, u32 group) {
    constexpr u32 COUNT = Pack<T>::COUNT;  // channels a store
    const u32 half = p.image.cout / 2;
    UNROLL for (u32 part = 0; part < 8 / COUNT; ++part) {
        const u64 to = pixel * p.image.cout + (COUNT == 8 ? group * 8 : part * half + group * 4);
        Pack<T> out;
        struct alignas(COUNT) Codes { u8 at[COUNT]; } codes;
        UNROLL for (u32 e = 0; e < COUNT; ++e) {
            const u32 c = part * COUNT + e;
            float best = z[0][c];
            u32 winner = 0;
            UNROLL for (u32 q = 1; q < 4; ++q) {
                winner = z[q][c] > best ? q : winner;
                best = z[q][c] > best ? z[q][c] : best;
            }
            out.at[e] = from_f32<T>(larger(best, 0.0f));
            codes.at[e] = (u8)(best > 0.0f ? winner : DEAD_CODE);
        }
        *(Pack<T>*)(p.y + to) = out;
        *(Codes*)(p.code + to) = codes;
    }
}

template <class T> DEVICE void conv_relu_pool(const PoolArguments<T>& p) {
    SHARED(float, input, MAX_CIN * PLANE);
    SHARED(float, weights, MAX_WINDOW * MAX_WINDOW * MAX_CIN * MAX_COUT);
    SHARED(float, bias, MAX_COUT);
    const Image& s = p.image;
    const Unit u = unit_of(s, block());
    load_input<Apart>(input, p.x, s, u);
    const u32 taps = s.rows * s.columns * s.cin;
    for (u32 k = thread(); k < taps * s.cout; k += threads()) {
        weights[k / s.cout * s.cout + weight_place<T>(k % s.cout, s.cout)] = to_f32(p.w[k]);
    }
    for (u32 k = thread(); k < s.cout; k += threads()) bias[weight_place<T>(k, s.cout)] = p.bias ? p.bias[k] : 0.0f;
    block_sync();
    const u32 groups = s.cout / 8, items = u.height * u.width * groups;
    for (u32 item = thread(); item < items; item += threads()) {
        const u32 group = item % groups, pixel = item / groups, row = pixel / u.width, column = pixel % u.width;
        float z[4][8];
        UNROLL for (u32 e = 0; e < 8; ++e) {
            UNROLL for (u32 q = 0; q < 4; ++q) z[q][e] = bias[(e < 4 ? 0 : s.cout / 2) + group * 4 + e % 4];
        }
        if (s.rows == 3 && s.columns == 3) window_sums<3, 3>(z, input, weights, s, row, column, group);
        else if (s.rows == 5 && s.columns == 5) window_sums<5, 5>(z, input, weights, s, row, column, group);
        else window_sums<0, 0>(z, input, weights, s, row, column, group);
        pool_and_store(z, p, ((u64)u.image * s.out_height + u.row + row) * s.out_width + u.column + column, group);
    }
}

// dy as fp32 and the place in the input tile where each winner's window begins, [pixel][Cout].
template <class T> DEVICE void load_winners(float* gradient, u16* place, const PoolGradArguments<T>& p, const Unit& u) {
    constexpr u32 COUNT = Pack<T>::COUNT;
    struct alignas(COUNT) Codes { u8 at[COUNT]; };
    struct alignas(2 * COUNT) Places { u16 at[COUNT]; };
    const u32 packs = p.image.cout / COUNT;
    for (u32 k = thread(); k < u.height * u.width * packs; k += threads()) {
        const u32 pixel = k / packs, row = pixel / u.width, column = pixel % u.width;
        const u64 image_row = (u64)u.image * p.image.out_height + u.row + row;
        const u64 from = (image_row * p.image.out_width + u.column + column) * p.image.cout + k % packs * COUNT;
        const Pack<T> dy = *(const Pack<T>*)(p.dy + from);
        const Codes codes = *(const Codes*)(p.code + from);
        Places places;
        Quad out[COUNT / 4];
        UNROLL for (u32 e = 0; e < COUNT; ++e) {
            const u32 code = codes.at[e];
            places.at[e] = (u16)((2 * row + (code >> 1 & 1)) * ROW + 2 * column + (code & 1));
            out[e / 4].at[e % 4] = code < DEAD_CODE ? to_f32(dy.at[e]) : 0.0f;
        }
        UNROLL for (u32 q = 0; q < COUNT / 4; ++q) *(Quad*)(gradient + k * COUNT + q * 4) = out[q];
        *(Places*)(place + k * COUNT) = places;
    }
}

// ROWS x COLUMNS sums a thread; EXACT: that is the window, otherwise it is the most that a window may be.
template <int ROWS, int COLUMNS, bool EXACT, class T> DEVICE void pool_grad(const PoolGradArguments<T>& p, float* input, float* gradient, u16* place) {
    const Image& s = p.image;
    const u32 pairs = s.cin * s.cout, slices = threads() / pairs;
    const u32 pair = thread() % pairs, slice = thread() / pairs, channel = pair / s.cout, to = pair % s.cout;
    float dw[ROWS * COLUMNS], db = 0.0f;
    UNROLL for (int k = 0; k < ROWS * COLUMNS; ++k) dw[k] = 0.0f;
    for (u32 k = block(); k < units_of(s); k += blocks()) {
        const Unit u = unit_of(s, k);
        block_sync();
        load_input<Plain>(input, p.x, s, u);
        load_winners(gradient, place, p, u);
        block_sync();
        const u32 pixels = slice < slices ? u.height * u.width : 0;
        for (u32 pixel = slice; pixel < pixels; pixel += slices) {
            const float d = gradient[pixel * s.cout + to];
            const float* x = input + channel * PLANE + place[pixel * s.cout + to];
            db += d;
            UNROLL for (u32 i = 0; i < ROWS; ++i) {
                UNROLL for (u32 j = 0; j < COLUMNS; ++j) {
                    if (EXACT || (i < s.rows && j < s.columns)) dw[i * COLUMNS + j] = fused(d, x[i * ROW + j], dw[i * COLUMNS + j]);
                }
            }
        }
    }
    // The slices' sums meet in shared memory, one tap at a time, and are added in the order of the slices.
    float* meeting = gradient;
    const u32 weights = s.rows * s.columns * pairs;
    float* row = p.partial + (u64)block() * (weights + s.cout);
    UNROLL for (u32 k = 0; k <= ROWS * COLUMNS; ++k) {
        const u32 i = k / COLUMNS, j = k % COLUMNS;
        if (!EXACT && k < ROWS * COLUMNS && (i >= s.rows || j >= s.columns)) continue;
        block_sync();
        meeting[thread()] = k < ROWS * COLUMNS ? dw[k < ROWS * COLUMNS ? k : 0] : db;
        block_sync();
        if (thread() < pairs && (k < ROWS * COLUMNS || channel == 0)) {
            float sum = 0.0f;
            NO_UNROLL for (u32 other = 0; other < slices; ++other) sum += meeting[other * pairs + thread()];
            row[k < ROWS * COLUMNS ? ((i * s.columns + j) * s.cin + channel) * s.cout + to : weights + to] = sum;
        }
    }
}

template <class T> DEVICE void conv_relu_pool_grad(const PoolGradArguments<T>& p) {
    SHARED(float, input, MAX_CIN * PLANE);
    SHARED(float, gradient, TILE * TILE * MAX_COUT);
    SHARED(u16, place, TILE * TILE * MAX_COUT);
    if (p.image.rows == 3 && p.image.columns == 3) pool_grad<3, 3, true>(p, input, gradient, place);
    else pool_grad<MAX_WINDOW, MAX_WINDOW, false>(p, input, gradient, place);
}

// 32 sums a block: its 16 warps take the parts in turn, then meet in the order of the warps.
KERNEL(512) conv_relu_pool_grad_sum(ARGUMENTS(PoolSumArguments) p) {
    SHARED(float, meeting, 512);
    const u32 count = p.weights + p.channels, k = block() * 32 + lane();
    float sum = 0.0f;
    if (k < count) {
        UNROLL for (u32 part = warp(); part < p.parts; part += 16) sum += p.partial[(u64)part * count + k];
    }
    meeting[thread()] = sum;
    block_sync();
    if (warp() == 0 && k < count) {
        UNROLL for (u32 other = 1; other < 16; ++other) sum += meeting[other * 32 + lane()];
        if (k < p.weights) p.dw[k] = sum;
        else p.db[k - p.weights] = sum;
    }
}
EXPORT(conv_relu_pool_grad_sum)

#define ALL(T, suffix)                                                                                               \
    KERNEL(256) conv_relu_pool_##suffix(ARGUMENTS(PoolArguments<T>) p) { conv_relu_pool(p); }                        \
    EXPORT(conv_relu_pool_##suffix)                                                                                  \
    KERNEL_OCCUPANCY(256, 3) conv_relu_pool_grad_##suffix(ARGUMENTS(PoolGradArguments<T>) p) { conv_relu_pool_grad(p); } \
    EXPORT(conv_relu_pool_grad_##suffix)

ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
