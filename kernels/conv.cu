// conv.cu: two-dimensional convolution and its gradients as implicit matrix products: no patch matrix is ever written.
// Entries  conv2d_<dtype>, conv2d_grad_input_<dtype>, each also as <op>_tall_<dtype>: the same with twice the rows a block.
//          conv2d_grad_weight_<dtype>: one partial sum (fp32) a split of the pixels; conv2d_reduce_<dtype> adds the splits up.
//          <dtype> tf32: fp32 storage, products on tensor cores of operands rounded to tf32; its partial sums go to conv2d_reduce_f32.
//          conv2d_i8: quantised operands, i32 sums, fp32 out. quantize_i8: fp32 to i8. Both take the size of a step of x, or where its
//          largest magnitude lies, which is then 127 steps.
// Shapes   x [B, H, W, Cin], w [KH, KW, Cin, Cout], y [B, OH, OW, Cout], bias fp32 [Cout] or null; any window, stride, padding; fewer
//          than 2^31 pixels. 16-byte asynchronous copies where the channels fill them (a multiple of 4 fp32, 8 f16, 16 i8); otherwise
//          that operand comes element by element.
// Tile     64 (tall: 128) x 64 x 64 bytes of k a block of 128 threads, a ring of 3 in shared memory, 16-byte chunks swizzled.
//          fp32: CUDA cores, 4 (8) x 8 sums a thread. f16, bf16, tf32, i8: tensor cores, a warp 32 (64) x 32.
// Work     2 M N K FLOP, M = B OH OW, N = Cout, K = KH KW Cin (gradients: the same three exchanged): compute-bound from about 64 channels.
//          Gradient by the input: one product for each residue of the stride, so no multiplication by zero; gathers, so no atomics.
// Numbers  fp32 (i32) sums, k in order (weights' gradient: splits in order); rounded once, after bias and activation.
#include "common.cuh"

struct Shape {
    u32 batch, height, width, cin, out_height, out_width, cout;
    u32 rows, columns, stride_h, stride_w, pad_h, pad_w;  // the window
    u32 activation;                                       // 0 none, 1 ReLU, 2 GELU
};
template <class T> struct ConvArguments { const T* x; const T* w; const float* bias; T* y; Shape shape; };
template <class T> struct ConvGradInputArguments { const T* dy; const T* w; T* dx; Shape shape; };
template <class T> struct ConvGradWeightArguments { const T* x; const T* dy; float* partial; Shape shape; };
template <class T> struct ConvReduceArguments { const float* partial; T* y; u64 n; u32 splits; u32 unused; };
struct ConvInt8Arguments { const i8* x; const i8* w; const float* scales; const float* bias; const float* largest; float* y; Shape shape; float scale; u32 unused; };
struct QuantizeArguments { const float* x; const float* largest; i8* y; u64 n; float scale; u32 unused; };

// An fp32 number that enters products rounded to tf32.
struct tf32 { float value; };
// What results are stored as.
template <class T> DEVICE T* stored(T* y) { return y; }
DEVICE float* stored(tf32* y) { return (float*)y; }
template <class T> struct IsTf32 { static constexpr bool YES = false; };
template <> struct IsTf32<tf32> { static constexpr bool YES = true; };

static constexpr u32 STAGES = 3, WIDE = 64, LINE = 64;  // columns of a tile; bytes of k in it
static constexpr u32 PITCH = WIDE + 8;                  // words a row of sums: eight rows of a fragment fall into different banks

// A number in a mixed base: (image, row, column) or (row of the window, column of it, channel), without divisions in the loop.
struct Digits { u32 high, middle, low; };
DEVICE Digits digits_of(u32 k, u32 middle, u32 low) { return {k / low / middle, k / low % middle, k % low}; }
DEVICE void advance(Digits& d, const Digits& by, u32 middle, u32 low) {
    d.low += by.low;
    const bool wraps = d.low >= low;
    d.low -= wraps ? low : 0;
    d.middle += by.middle + wraps;
    const bool carries = d.middle >= middle;
    d.middle -= carries ? middle : 0;
    d.high += by.high + carries;
}

// Where chunk `chunk` of 16 bytes lies. Of a tile whose rows run along k (64 bytes each), and of one whose rows run across it
// (64 elements each). Eight rows at one chunk, as matrix loads take them, are in different banks.
DEVICE u32 along_slot(u32 row, u32 chunk) { return row * LINE + (chunk ^ (row >> 1 & 3)) * 16; }
template <class T> DEVICE u32 across_slot(u32 row, u32 chunk) {
    return row * (WIDE * (u32)sizeof(T)) + (sizeof(T) == 2 ? chunk ^ (row & 7) : IsTf32<T>::YES ? chunk ^ (row & 3) * 2 : chunk) * 16;
}
template <class T> struct Step {
    static constexpr u32 K = LINE / (u32)sizeof(T), COUNT = Pack<T>::COUNT;
    static constexpr u32 CHUNKS = WIDE / COUNT, ROWS = 128 / CHUNKS;  // a row across k: its chunks, and rows that 128 threads fill
};

// 16 bytes of a tile from `at(digits)`, null where there is nothing. Where the channels fill the 16 bytes, they have one address.
template <class T, class At> DEVICE void fill_chunk(u8* slot, const T* any, Digits d, u32 middle, u32 low, At at) {
    if (low % Step<T>::COUNT == 0) {
        const T* from = at(d);
        copy_async16(slot, from ? from : any, from ? 16 : 0);
        return;
    }
    Pack<T> out;
    UNROLL for (u32 e = 0; e < Step<T>::COUNT; ++e) {
        const T* from = at(d);
        out.at[e] = from ? *from : T{};
        advance(d, {0, 0, 1}, middle, low);
    }
    *(Pack<T>*)slot = out;
}

// What stands for the rows of the product: places (image, i, j) of a grid [.., across_h, across_w], whose window begins at
// (i scale + shift) of the image and goes forward (SIGN 1) or backward.
struct Window { u32 height, width, channels, taps_h, taps_w, across_h, across_w, scale_h, scale_w; i32 shift_h, shift_w; };

template <class T, i32 SIGN, u32 TALL> struct Patches {
    static constexpr u32 COUNT = TALL / 32;
    const T* x;
    const Window v;
    Digits k, by;
    i64 base[COUNT];
    i32 h[COUNT], w[COUNT];

    DEVICE Patches(const T* from, const Window& window, u32 first, u32 end) : x(from), v(window) {
        k = digits_of(thread() % 4 * Step<T>::COUNT, v.taps_w, v.channels);
        by = digits_of(Step<T>::K, v.taps_w, v.channels);
        UNROLL for (u32 r = 0; r < COUNT; ++r) {
            const u32 m = first + thread() / 4 + r * 32;
            const Digits at = digits_of(m, v.across_h, v.across_w);
            h[r] = m < end ? (i32)(at.middle * v.scale_h) + v.shift_h : -(1 << 30);  // a row too many lies outside of every image
            w[r] = (i32)(at.low * v.scale_w) + v.shift_w;
            base[r] = (((i64)at.high * v.height + h[r]) * v.width + w[r]) * v.channels;
        }
    }
    DEVICE void fill(u8* tile) {
        UNROLL for (u32 r = 0; r < COUNT; ++r) {
            fill_chunk(tile + along_slot(thread() / 4 + r * 32, thread() % 4), x, k, v.taps_w, v.channels, [&](const Digits& d) -> const T* {
                const i32 below = SIGN * (i32)d.high, right = SIGN * (i32)d.middle;
                const bool in = d.high < v.taps_h && (u32)(h[r] + below) < v.height && (u32)(w[r] + right) < v.width;
                return in ? x + (base[r] + ((below * (i32)v.width + right) * (i32)v.channels + (i32)d.low)) : nullptr;
            });
        }
        advance(k, by, v.taps_w, v.channels);
    }
};

// x for the gradient by the weights: k runs over the pixels of dy, a thread's columns (row, column, channel) of the window stay.
template <class T> struct Pixels {
    const T* x;
    const Shape& s;
    const u32 end;
    Digits tap, by, pixel[2];
    u32 k;

    DEVICE Pixels(const T* from, const Shape& shape, u32 first, u32 begin, u32 last) : x(from), s(shape), end(last) {
        tap = digits_of(first + thread() % Step<T>::CHUNKS * Step<T>::COUNT, s.columns, s.cin);
        by = digits_of(Step<T>::K, s.out_height, s.out_width);
        k = begin + thread() / Step<T>::CHUNKS;
        UNROLL for (u32 r = 0; r < 2; ++r) pixel[r] = digits_of(k + r * Step<T>::ROWS, s.out_height, s.out_width);
    }
    DEVICE void fill(u8* tile) {
        UNROLL for (u32 r = 0; r < 2; ++r) {
            u8* slot = tile + across_slot<T>(thread() / Step<T>::CHUNKS + r * Step<T>::ROWS, thread() % Step<T>::CHUNKS);
            const bool live = k + r * Step<T>::ROWS < end;
            const u32 top = pixel[r].middle * s.stride_h - s.pad_h, left = pixel[r].low * s.stride_w - s.pad_w;
            fill_chunk(slot, x, tap, s.columns, s.cin, [&](const Digits& d) -> const T* {
                const u32 h = top + d.high, w = left + d.middle;
                const bool in = live && d.high < s.rows && h < s.height && w < s.width;
                return in ? x + ((((u64)pixel[r].high * s.height + h) * s.width + w) * s.cin + d.low) : nullptr;
            });
            advance(pixel[r], by, s.out_height, s.out_width);
        }
        k += Step<T>::K;
    }
};

// A plain matrix [end, columns], k down its rows.
template <class T> struct Matrix {
    const T* x;
    u32 k, column;
    const u32 end, columns;

    DEVICE Matrix(const T* from, u32 first, u32 begin, u32 last, u32 width) : x(from), end(last), columns(width) {
        k = begin + thread() / Step<T>::CHUNKS;
        column = first + thread() % Step<T>::CHUNKS * Step<T>::COUNT;
    }
    DEVICE void fill(u8* tile) {
        UNROLL for (u32 r = 0; r < 2; ++r) {
            u8* slot = tile + across_slot<T>(thread() / Step<T>::CHUNKS + r * Step<T>::ROWS, thread() % Step<T>::CHUNKS);
            const u32 row = k + r * Step<T>::ROWS;
            fill_chunk(slot, x, {row, 0, column}, 1, columns, [&](const Digits& d) -> const T* {
                return d.high == row && row < end && d.low < columns ? x + ((u64)row * columns + d.low) : nullptr;
            });
        }
        k += Step<T>::K;
    }
};

// i8 weights [end, columns]: squares of 4 x 4 are turned, so that the tile's rows run along k.
template <> struct Matrix<i8> {
    const i8* x;
    u32 k, column;
    const u32 end, columns;

    DEVICE Matrix(const i8* from, u32 first, u32 begin, u32 last, u32 width) : x(from), end(last), columns(width) {
        k = begin + (lane() / 8 + warp() / 2 * 4) * 4;
        column = first + (lane() % 8 + warp() % 2 * 8) * 4;
    }
    DEVICE u32 word(u32 row) const {
        const i8* from = x + ((u64)row * columns + column);
        if (row >= end) return 0;
        if (columns % 4 == 0) return column < columns ? *(const u32*)from : 0;
        u32 all = 0;
        UNROLL for (u32 e = 0; e < 4; ++e) all |= column + e < columns ? (u32)(u8)from[e] << 8 * e : 0;
        return all;
    }
    DEVICE void fill(u8* tile) {
        UNROLL for (u32 r = 0; r < 2; ++r) {
            u32 in[4], out[4], swapped[4];
            UNROLL for (u32 e = 0; e < 4; ++e) in[e] = word(k + r * 32 + e);
            UNROLL for (u32 e = 0; e < 4; ++e) {
                out[e] = 0;
                UNROLL for (u32 row = 0; row < 4; ++row) out[e] |= (in[row] >> 8 * e & 255) << 8 * row;
            }
            // Lanes begin at different rows of their squares: then the rows that a warp writes at once lie in different banks.
            const u32 group = lane() / 8 + warp() / 2 * 4 + r * 8, turn = lane() >> 1 & 3;
            UNROLL for (u32 e = 0; e < 4; ++e) swapped[e] = turn & 1 ? out[e ^ 1] : out[e];
            UNROLL for (u32 e = 0; e < 4; ++e) {
                const u32 row = (lane() % 8 + warp() % 2 * 8) * 4 + (e ^ turn);
                *(u32*)(tile + along_slot(row, group / 4) + group % 4 * 4) = turn & 2 ? swapped[e ^ 2] : swapped[e];
            }
        }
        k += Step<i8>::K;
    }
};

// w for the gradient by the input: rows are input channels, k runs over (taps of one residue, Cout).
template <class T> struct Turned {
    const T* w;
    const Shape& s;
    const u32 taps_h, taps_w, begin_h, begin_w, first;
    Digits k, by;

    DEVICE Turned(const T* from, const Shape& shape, u32 th, u32 tw, u32 bh, u32 bw, u32 row)
        : w(from), s(shape), taps_h(th), taps_w(tw), begin_h(bh), begin_w(bw), first(row + thread() / 4) {
        k = digits_of(thread() % 4 * Step<T>::COUNT, taps_w, s.cout);
        by = digits_of(Step<T>::K, taps_w, s.cout);
    }
    DEVICE void fill(u8* tile) {
        UNROLL for (u32 r = 0; r < 2; ++r) {
            const u32 row = first + r * 32;
            fill_chunk(tile + along_slot(thread() / 4 + r * 32, thread() % 4), w, k, taps_w, s.cout, [&](const Digits& d) -> const T* {
                const u32 tap = (d.high * s.stride_h + begin_h) * s.columns + d.middle * s.stride_w + begin_w;
                return row < s.cin && d.high < taps_h ? w + (((u64)tap * s.cin + row) * s.cout + d.low) : nullptr;
            });
        }
        advance(k, by, taps_w, s.cout);
    }
};

struct alignas(16) Quad { float at[4]; };

// One tile on tensor cores. A_ALONG, B_ALONG: the operand's rows in shared memory run along k.
template <class T> struct Sum { typedef float Type; static constexpr u32 ROWS = 32, SIDE = 4; };
template <> struct Sum<i8> { typedef i32 Type; static constexpr u32 ROWS = 32, SIDE = 4; };
template <> struct Sum<float> { typedef float Type; static constexpr u32 ROWS = 16, SIDE = 2; };

template <class T> DEVICE void fragment_product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_m16n8k16(d, a, b0, b1, T()); }
template <> DEVICE void fragment_product<tf32>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_m16n8k8_tf32(d, a, b0, b1); }
template <class T> DEVICE void fragment_product(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_m16n8k32_i8(d, a, b0, b1); }

// A fragment's four registers as the multiplication takes them.
template <class T> DEVICE void round_fragment(u32 (&x)[4]) {
    if (IsTf32<T>::YES) UNROLL for (u32 e = 0; e < 4; ++e) x[e] = to_tf32(float_of(x[e]));
}
// The word of `column` in row `k` of a tile whose rows run across k: matrix loads cannot transpose words.
template <class T> DEVICE u32 across_word(const u8* tile, u32 k, u32 column) {
    return *(const u32*)(tile + across_slot<T>(k, column / 4) + column % 4 * 4);
}

template <class T, bool A_ALONG, bool B_ALONG> struct Multiply {
    template <class S, int R> static DEVICE void tile(S (&sums)[R][4][4], const u8* a, const u8* b) {
        const u32 l = lane(), top = warp() / 2 * (R * 16), left = warp() % 2 * 32;
        UNROLL for (u32 half = 0; half < 2; ++half) {
            u32 x[R][4], y[2][4];
            UNROLL for (u32 i = 0; i < R; ++i) {
                const u32 row = top + i * 16;
                if (A_ALONG) load_matrix4(x[i], a + along_slot(row + l % 16, half * 2 + l / 16));
                else if (IsTf32<T>::YES) UNROLL for (u32 e = 0; e < 4; ++e) x[i][e] = across_word<T>(a, half * 8 + e / 2 * 4 + l % 4, row + e % 2 * 8 + l / 4);
                else load_matrix4_transposed(x[i], a + across_slot<T>(half * 16 + l / 16 * 8 + l % 8, row / 8 + l / 8 % 2));
                round_fragment<T>(x[i]);
            }
            UNROLL for (u32 j = 0; j < 2; ++j) {
                const u32 column = left + j * 16;
                if (B_ALONG) load_matrix4(y[j], b + along_slot(column + l / 16 * 8 + l % 8, half * 2 + l / 8 % 2));
                else if (IsTf32<T>::YES) UNROLL for (u32 e = 0; e < 4; ++e) y[j][e] = across_word<T>(b, half * 8 + e % 2 * 4 + l % 4, column + e / 2 * 8 + l / 4);
                else load_matrix4_transposed(y[j], b + across_slot<T>(half * 16 + l % 16, column / 8 + l / 16));
                round_fragment<T>(y[j]);
            }
            UNROLL for (u32 i = 0; i < R; ++i) {
                UNROLL for (u32 j = 0; j < 4; ++j) fragment_product<T>(sums[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
    // The sums, row by row in shared memory.
    template <class S, int R> static DEVICE void lay_out(const S (&sums)[R][4][4], S* to) {
        struct alignas(8) Pair { S at[2]; };
        const u32 top = warp() / 2 * (R * 16) + lane() / 4, left = warp() % 2 * 32 + lane() % 4 * 2;
        UNROLL for (u32 i = 0; i < R; ++i) {
            UNROLL for (u32 j = 0; j < 4; ++j) {
                UNROLL for (u32 below = 0; below < 2; ++below) {
                    Pair out;
                    UNROLL for (u32 e = 0; e < 2; ++e) out.at[e] = sums[i][j][below * 2 + e];
                    *(Pair*)(to + (top + i * 16 + below * 8) * PITCH + left + j * 8) = out;
                }
            }
        }
    }
};

// The same on CUDA cores: a thread has every 16th row (or quads of rows) and two quads (or every 8th) of the columns.
template <bool A_ALONG, bool B_ALONG> struct Multiply<float, A_ALONG, B_ALONG> {
    template <int R> static DEVICE void tile(float (&sums)[R][2][4], const u8* a, const u8* b) {
        const u32 row = thread() / 8, column = thread() % 8;
        NO_UNROLL for (u32 q = 0; q < 4; ++q) {  // unrolled it takes twice the registers
            float x[R][4], y[8][4];               // [..][k]
            UNROLL for (u32 i = 0; i < R; ++i) {
                const u32 slot = A_ALONG ? along_slot(row + i * 16, q) : across_slot<float>(q * 4 + i % 4, row + i / 4 * 16);
                const Quad in = *(const Quad*)(a + slot);
                UNROLL for (u32 e = 0; e < 4; ++e) (A_ALONG ? x[i][e] : x[i / 4 * 4 + e][i % 4]) = in.at[e];
            }
            UNROLL for (u32 j = 0; j < 8; ++j) {
                const u32 slot = B_ALONG ? along_slot(column + j * 8, q) : across_slot<float>(q * 4 + j % 4, column + j / 4 * 8);
                const Quad in = *(const Quad*)(b + slot);
                UNROLL for (u32 e = 0; e < 4; ++e) (B_ALONG ? y[j][e] : y[j / 4 * 4 + e][j % 4]) = in.at[e];
            }
            UNROLL for (u32 e = 0; e < 4; ++e) {
                UNROLL for (u32 i = 0; i < R; ++i) {
                    UNROLL for (u32 j = 0; j < 8; ++j) sums[i][j / 4][j % 4] = fused(x[i][e], y[j][e], sums[i][j / 4][j % 4]);
                }
            }
        }
    }
    template <int R> static DEVICE void lay_out(const float (&sums)[R][2][4], float* to) {
        UNROLL for (u32 i = 0; i < R; ++i) {
            const u32 row = A_ALONG ? thread() / 8 + i * 16 : thread() / 8 * 4 + i / 4 * 64 + i % 4;
            UNROLL for (u32 j = 0; j < 2; ++j) {
                float* line = to + row * PITCH;
                Quad out;
                UNROLL for (u32 e = 0; e < 4; ++e) (B_ALONG ? line[thread() % 8 + (j * 4 + e) * 8] : out.at[e]) = sums[i][j][e];
                if (!B_ALONG) *(Quad*)(line + (thread() % 8 + j * 8) * 4) = out;
            }
        }
    }
};

// The product of `steps` tiles; at the end the sums lie in `shared`, PITCH words a row.
template <class T, u32 TALL, bool A_ALONG, bool B_ALONG, class A, class B> DEVICE void product(u8* shared, A& a, B& b, u32 steps) {
    constexpr u32 SIZE = (TALL + WIDE) * LINE;
    typedef typename Sum<T>::Type S;
    S sums[TALL / Sum<T>::ROWS][Sum<T>::SIDE][4];
    UNROLL for (u32 k = 0; k < TALL / Sum<T>::ROWS * Sum<T>::SIDE * 4; ++k) sums[k / 4 / Sum<T>::SIDE][k / 4 % Sum<T>::SIDE][k % 4] = 0;
    u32 fills = 0, takes = 0;  // places in the ring
    NO_UNROLL for (u32 step = 0; step < steps + STAGES - 1; ++step) {
        if (step >= STAGES - 1) {
            copy_async_wait<STAGES - 2>();
            block_sync();  // the oldest tile is here, and nobody reads the one before it any more
        }
        if (step < steps) {
            a.fill(shared + fills * SIZE);
            b.fill(shared + fills * SIZE + TALL * LINE);
            fills = fills + 1 == STAGES ? 0 : fills + 1;
        }
        copy_async_commit();
        if (step >= STAGES - 1) {
            Multiply<T, A_ALONG, B_ALONG>::tile(sums, shared + takes * SIZE, shared + takes * SIZE + TALL * LINE);
            takes = takes + 1 == STAGES ? 0 : takes + 1;
        }
    }
    copy_async_wait<0>();
    block_sync();
    Multiply<T, A_ALONG, B_ALONG>::lay_out(sums, (S*)shared);
    block_sync();
}

// Scale, bias and activation after the sum; each may be absent.
struct Tail { const float* scales; const float* bias; float scale; u32 activation; };
DEVICE float activate(float x, u32 kind) {
    if (kind == 1) return larger(x, 0.0f);
    return kind == 2 ? 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)) : x;
}

// Writes the laid-out sums: 16 bytes a thread, a row's columns side by side. `place(row, offset)`: is there such a row, and where?
template <class S, u32 TALL, class Out, class Place> DEVICE void store(const u8* shared, Out* y, u32 first, u32 columns, const Tail& tail, Place place) {
    constexpr u32 COUNT = Pack<Out>::COUNT, CHUNKS = WIDE / COUNT;
    const u32 within = thread() % CHUNKS * COUNT, column = first + within;
    float factor[COUNT], shift[COUNT];
    UNROLL for (u32 e = 0; e < COUNT; ++e) {
        factor[e] = tail.scales && column + e < columns ? tail.scale * tail.scales[column + e] : tail.scale;
        shift[e] = tail.bias && column + e < columns ? tail.bias[column + e] : 0.0f;
    }
    if (column >= columns) return;
    NO_UNROLL for (u32 row = thread() / CHUNKS; row < TALL; row += 128 / CHUNKS) {
        u64 offset;
        if (!place(row, offset)) continue;
        Pack<Out> out;
        UNROLL for (u32 q = 0; q < COUNT / 4; ++q) {
            struct alignas(16) Four { S at[4]; };
            const Four in = *(const Four*)((const S*)shared + row * PITCH + within + q * 4);
            UNROLL for (u32 e = 0; e < 4; ++e) {
                out.at[q * 4 + e] = from_f32<Out>(activate(fused((float)in.at[e], factor[q * 4 + e], shift[q * 4 + e]), tail.activation));
            }
        }
        if (columns % COUNT == 0) *(Pack<Out>*)(y + offset + column) = out;
        else UNROLL for (u32 e = 0; e < COUNT; ++e) {
            if (column + e < columns) y[offset + column + e] = out.at[e];
        }
    }
}

// Blocks next to each other take the columns of one set of rows, so that x comes from memory once.
template <class T, u32 TALL, class Out> DEVICE void forward(const T* x, const T* w, Out* y, const Shape& s, const Tail& tail) {
    SHARED(u8, shared, STAGES * (TALL + WIDE) * LINE);
    const u32 across = ceil_div(s.cout, WIDE), top = block() / across * TALL, left = block() % across * WIDE;
    const u32 pixels = s.batch * s.out_height * s.out_width, depth = s.rows * s.columns * s.cin;
    const Window window{s.height, s.width, s.cin, s.rows, s.columns, s.out_height, s.out_width, s.stride_h, s.stride_w, -(i32)s.pad_h, -(i32)s.pad_w};
    Patches<T, 1, TALL> a(x, window, top, pixels);
    Matrix<T> b(w, left, 0, depth, s.cout);
    product<T, TALL, true, sizeof(T) == 1>(shared, a, b, ceil_div(depth, Step<T>::K));
    store<typename Sum<T>::Type, TALL>(shared, y, left, s.cout, tail, [&](u32 row, u64& offset) {
        offset = (u64)(top + row) * s.cout;
        return top + row < pixels;
    });
}

// block_z: the residue (h mod stride, w mod stride) of the input's pixels; each sees every stride-th tap of the window only.
template <class T, u32 TALL> DEVICE void grad_input(const ConvGradInputArguments<T>& p) {
    SHARED(u8, shared, STAGES * (TALL + WIDE) * LINE);
    const Shape& s = p.shape;
    const u32 residue_h = block_z() / s.stride_w, residue_w = block_z() % s.stride_w;
    const u32 height = ceil_div(larger(s.height, residue_h) - residue_h, s.stride_h);
    const u32 width = ceil_div(larger(s.width, residue_w) - residue_w, s.stride_w);
    const u32 begin_h = (residue_h + s.pad_h) % s.stride_h, begin_w = (residue_w + s.pad_w) % s.stride_w;
    const u32 taps_h = ceil_div(larger(s.rows, begin_h) - begin_h, s.stride_h), taps_w = ceil_div(larger(s.columns, begin_w) - begin_w, s.stride_w);
    const u32 pixels = s.batch * height * width, across = ceil_div(s.cin, WIDE), top = block() / across * TALL, left = block() % across * WIDE;
    if (top >= pixels) return;  // all threads of the block
    const Window window{s.out_height, s.out_width, s.cout, taps_h, larger(taps_w, 1u), height, width, 1, 1,
                        (i32)((residue_h + s.pad_h) / s.stride_h), (i32)((residue_w + s.pad_w) / s.stride_w)};
    Patches<T, -1, TALL> a(p.dy, window, top, pixels);
    Turned<T> b(p.w, s, taps_h, larger(taps_w, 1u), begin_h, begin_w, left);
    product<T, TALL, true, true>(shared, a, b, ceil_div(taps_h * taps_w * s.cout, Step<T>::K));
    store<float, TALL>(shared, stored(p.dx), left, s.cin, Tail{nullptr, nullptr, 1.0f, 0}, [&](u32 row, u64& offset) {
        const Digits at = digits_of(top + row, height, width);
        offset = (((u64)at.high * s.height + at.middle * s.stride_h + residue_h) * s.width + at.low * s.stride_w + residue_w) * s.cin;
        return top + row < pixels;
    });
}

// block_z: the split of the pixels.
template <class T> DEVICE void grad_weight(const ConvGradWeightArguments<T>& p) {
    SHARED(u8, shared, STAGES * 2 * WIDE * LINE);
    const Shape& s = p.shape;
    const u32 pixels = s.batch * s.out_height * s.out_width, taps = s.rows * s.columns * s.cin;
    const u32 share = ceil_div(ceil_div(pixels, Step<T>::K), blocks_z()) * Step<T>::K;
    const u32 begin = smaller(block_z() * share, pixels), end = smaller(begin + share, pixels);
    const u32 across = ceil_div(s.cout, WIDE), top = block() / across * WIDE, left = block() % across * WIDE;
    Pixels<T> a(p.x, s, top, begin, end);
    Matrix<T> b(p.dy, left, begin, end, s.cout);
    product<T, WIDE, false, false>(shared, a, b, ceil_div(end - begin, Step<T>::K));
    float* partial = p.partial + (u64)block_z() * taps * s.cout;
    store<float, WIDE>(shared, partial, left, s.cout, Tail{nullptr, nullptr, 1.0f, 0}, [&](u32 row, u64& offset) {
        offset = (u64)(top + row) * s.cout;
        return top + row < taps;
    });
}

// An element a thread: the few weights of a convolution would not fill the device with 16 bytes each.
template <class T> DEVICE void reduce(const ConvReduceArguments<T>& p) {
    for (u64 k = (u64)block() * threads() + thread(); k < p.n; k += (u64)blocks() * threads()) {
        float sum = p.partial[k];
        UNROLL for (u32 split = 1; split < p.splits; ++split) sum += p.partial[split * p.n + k];
        p.y[k] = from_f32<T>(sum);
    }
}

// The given step, or the one that follows from a largest magnitude in memory; of nothing but zeros any will do.
DEVICE float step_of(const float* largest, float given) {
    if (!largest) return given;
    const float most = *largest;
    return most > 0.0f && most < INFINITE ? divide(most, 127.0f) : 1.0f;
}
DEVICE i8 quantized(float x, float scale) { return (i8)(i32)smaller(larger(round_even(divide(x, scale)), -127.0f), 127.0f); }

KERNEL(256) quantize_i8(ARGUMENTS(QuantizeArguments) p) {
    const float scale = step_of(p.largest, p.scale);
    const u64 step = (u64)blocks() * threads() * 4;
    for (u64 first = ((u64)block() * threads() + thread()) * 4; first < p.n; first += step) {
        if (first + 4 <= p.n) {
            struct alignas(4) Four { i8 at[4]; } out;
            const Quad in = *(const Quad*)(p.x + first);
            UNROLL for (u32 e = 0; e < 4; ++e) out.at[e] = quantized(in.at[e], scale);
            *(Four*)(p.y + first) = out;
        } else {
            for (u64 k = first; k < p.n; ++k) p.y[k] = quantized(p.x[k], scale);
        }
    }
}
EXPORT(quantize_i8)
KERNEL(128) conv2d_i8(ARGUMENTS(ConvInt8Arguments) p) {
    forward<i8, 64>(p.x, p.w, p.y, p.shape, Tail{p.scales, p.bias, step_of(p.largest, p.scale), p.shape.activation});
}
EXPORT(conv2d_i8)

// `blocks` of a multiprocessor bound the registers, with no spill.
#define CONV(name, T, suffix, TALL, blocks)                                                                          \
    KERNEL_OCCUPANCY(128, blocks) conv2d##name##_##suffix(ARGUMENTS(ConvArguments<T>) p) {                           \
        forward<T, TALL>(p.x, p.w, stored(p.y), p.shape, Tail{nullptr, p.bias, 1.0f, p.shape.activation});                   \
    }                                                                                                                \
    EXPORT(conv2d##name##_##suffix)                                                                                  \
    KERNEL_OCCUPANCY(128, blocks) conv2d_grad_input##name##_##suffix(ARGUMENTS(ConvGradInputArguments<T>) p) {       \
        grad_input<T, TALL>(p);                                                                                      \
    }                                                                                                                \
    EXPORT(conv2d_grad_input##name##_##suffix)
#define PRODUCTS(T, suffix)                                                                                          \
    CONV(, T, suffix, 64, 4) CONV(_tall, T, suffix, 128, 3)                                                          \
    KERNEL_OCCUPANCY(128, 4) conv2d_grad_weight_##suffix(ARGUMENTS(ConvGradWeightArguments<T>) p) { grad_weight(p); } \
    EXPORT(conv2d_grad_weight_##suffix)
#define ALL(T, suffix)                                                                                               \
    PRODUCTS(T, suffix)                                                                                              \
    KERNEL(256) conv2d_reduce_##suffix(ARGUMENTS(ConvReduceArguments<T>) p) { reduce(p); }                           \
    EXPORT(conv2d_reduce_##suffix)

ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
PRODUCTS(tf32, tf32)
