// rows.cu: functions of whole rows: softmax, cross-entropy, layer norm, RMS norm, and their gradients.
// Entries  softmax_<dtype>, softmax_grad_<dtype>, layer_norm_<dtype>, layer_norm_grad_<dtype>, rms_norm_<dtype>, rms_norm_grad_<dtype>,
//          each also as <op>_{narrow,wide,long}_<dtype>; cross_entropy_[{narrow,wide,long}_]f32; loss_sum_f32, gain_sum_f32.
// Shapes   [R, N] of any R and N; 16 bytes a lane and access where N is a multiple of them (operands start at 16 bytes), else one by
//          one. Narrow: N <= 256, 8 lanes a row; plain: N <= 1024, a warp; wide: N <= 8192, a block: the row is held in registers, 32
//          numbers a lane. Long: a block a row, which is read again from the caches for every pass. 256 threads, any number of blocks,
//          which take rows in turns. Gradients of gains: each block leaves one row of partial sums [2, N] in `partial`, and
//          gain_sum_f32 adds those up in order.
// Work     held: one read, one write: memory-bound. Long: two or three reads, all but the first from the caches.
// Numbers  fp32; sums in an order that only the shape decides. Variance is taken around the mean, in a second pass.
#include "common.cuh"

template <class T> struct SoftmaxArguments { const T* x; T* y; u32 rows; u32 columns; };
template <class T> struct SoftmaxGradArguments { const T* y; const T* dy; T* dx; u32 rows; u32 columns; };
// mean may be null (RMS norm has none); bias too.
template <class T> struct NormArguments {
    const T* x; const float* gain; const float* bias; T* y; float* mean; float* rstd;
    u32 rows; u32 columns; float epsilon; u32 unused;
};
template <class T> struct NormGradArguments {
    const T* x; const float* gain; const float* mean; const float* rstd; const T* dy; T* dx; float* partial;
    u32 rows; u32 columns;
};
struct GainSumArguments { const float* partial; float* dgain; float* dbias; u32 parts; u32 columns; };
// Loss of a row and its gradient (softmax - onehot) / all_rows. A label outside the classes gives NaN.
struct EntropyArguments { const float* x; const i32* labels; float* losses; float* gradient; u32 rows; u32 columns; float all_rows; u32 unused; };
struct LossSumArguments { const float* losses; float* loss; u32 rows; float all_rows; };

static constexpr u32 HELD = 32;   // numbers of a row that a lane holds, where it does

// The threads that share a row: some lanes of a warp, or the block; and whether they hold it.
template <u32 THREADS, bool LONG> struct Group {
    static constexpr bool IS_LONG = LONG;
    static constexpr u32 SIZE = THREADS;
    float* board;   // one number a warp
    DEVICE u32 me() const { return thread() % THREADS; }
    DEVICE u32 place() const { return thread() / THREADS; }   // of the block's rows
    template <class F> DEVICE float meet(float x, F combine) const {
        UNROLL for (u32 by = smaller(THREADS, 32u) / 2; by > 0; by >>= 1) x = combine(x, shuffle_xor(x, by));
        if (THREADS <= 32) return x;
        block_sync();
        if (lane() == 0) board[warp()] = x;
        block_sync();
        x = board[0];
        UNROLL for (u32 w = 1; w < 8; ++w) x = combine(x, board[w]);
        return x;
    }
    DEVICE float sum(float x) const { return meet(x, [](float a, float b) { return a + b; }); }
    DEVICE float max(float x) const { return meet(x, [](float a, float b) { return larger(a, b); }); }
};
typedef Group<8, false> Narrow;
typedef Group<32, false> Plain;
typedef Group<256, false> Wide;
typedef Group<256, true> Long;

// W neighbours in a row, in memory and as numbers.
template <class T, int W> struct alignas(W * sizeof(T) < 16 ? W * sizeof(T) : 16) Piece { T at[W]; };
template <int W, class T> DEVICE Piece<float, W> load(const T* from) {
    const Piece<T, W> raw = *(const Piece<T, W>*)from;
    Piece<float, W> x;
    UNROLL for (int e = 0; e < W; ++e) x.at[e] = to_f32(raw.at[e]);
    return x;
}
template <int W, class T> DEVICE void store(T* to, const Piece<float, W>& x) {
    Piece<T, W> raw;
    UNROLL for (int e = 0; e < W; ++e) raw.at[e] = from_f32<T>(x.at[e]);
    *(Piece<T, W>*)to = raw;
}

// This thread's part of a row; all but a long row are read once and held.
template <class G, int W, class T> struct Row {
    static constexpr bool LONG = G::IS_LONG;
    const T* from;
    u32 columns, me;
    float held[LONG ? 1 : HELD];
    DEVICE Row(const T* from, u32 columns, u32 me) : from(from), columns(columns), me(me) {
        if (!LONG) {
            UNROLL for (u32 e = 0; e < HELD; e += W) {
                const u32 c = W * me + G::SIZE * e;
                Piece<float, W> x = {};
                if (c < columns) x = load<W>(from + c);
                UNROLL for (int k = 0; k < W; ++k) held[e + k] = x.at[k];
            }
        }
    }
    // Calls f(first column, W numbers); what f makes of the numbers is kept where the row is held.
    template <class F> DEVICE void pieces(F f) {
        if (LONG) {
            for (u32 c = W * me; c < columns; c += W * G::SIZE) {
                Piece<float, W> x = load<W>(from + c);
                f(c, x);
            }
        } else {
            UNROLL for (u32 e = 0; e < HELD; e += W) {
                const u32 c = W * me + G::SIZE * e;
                Piece<float, W> x;
                UNROLL for (int k = 0; k < W; ++k) x.at[k] = held[e + k];
                if (c < columns) f(c, x);
                UNROLL for (int k = 0; k < W; ++k) held[e + k] = x.at[k];
            }
        }
    }
    template <class F> DEVICE void each(F f) {
        pieces([&](u32, Piece<float, W>& x) { UNROLL for (int k = 0; k < W; ++k) f(x.at[k]); });
    }
    // y = f(column, number)
    template <class Y, class F> DEVICE void write(Y* y, F f) {
        pieces([&](u32 c, const Piece<float, W>& x) {
            Piece<float, W> out;
            UNROLL for (int k = 0; k < W; ++k) out.at[k] = f(c + k, x.at[k]);
            store(y + c, out);
        });
    }
    // f(first column, W numbers of this row, W of the other)
    template <class F> DEVICE void with(Row& other, F f) {
        if (LONG) {
            pieces([&](u32 c, const Piece<float, W>& x) {
                Piece<float, W> y = load<W>(other.from + c);
                f(c, x, y);
            });
        } else {
            UNROLL for (u32 e = 0; e < HELD; e += W) {
                const u32 c = W * me + G::SIZE * e;
                Piece<float, W> x, y;
                UNROLL for (int k = 0; k < W; ++k) x.at[k] = held[e + k], y.at[k] = other.held[e + k];
                if (c < columns) f(c, x, y);
                UNROLL for (int k = 0; k < W; ++k) other.held[e + k] = y.at[k];
            }
        }
    }
};

// All threads of a block make the same number of turns, so that all meet in the sums; rows past the end are the last one again and are
// not written.
template <class G, class F> DEVICE void for_rows(const G& group, u32 rows, F f) {
    constexpr u32 AT_ONCE = 256 / G::SIZE;
    for (u32 first = block() * AT_ONCE; first < rows; first += blocks() * AT_ONCE) {
        const u32 row = first + group.place();
        f(smaller(row, rows - 1), row < rows);
    }
}

// The largest of a row and the sum of exp(x - largest). Held numbers become their exponentials.
struct TopAndSum { float top, sum; };
template <class G, int W, class T> DEVICE TopAndSum exponentials(Row<G, W, T>& row, const G& group) {
    float top = -INFINITE, all = 0.0f;
    if (G::IS_LONG) {
        // In one pass: what was added up under a smaller maximum is made smaller (Milakov and Gimelshein 2018, arXiv 1805.02867).
        row.pieces([&](u32, const Piece<float, W>& x) {
            float most = x.at[0];
            UNROLL for (int k = 1; k < W; ++k) most = larger(most, x.at[k]);
            if (most > top) {
                all *= expf(top - most);
                top = most;
            }
            UNROLL for (int k = 0; k < W; ++k) all += expf(x.at[k] - top);
        });
        const float mine = top;
        top = group.max(top);
        return {top, group.sum(all == 0.0f ? 0.0f : all * expf(mine - top))};
    }
    row.each([&](float x) { top = larger(top, x); });
    top = group.max(top);
    row.each([&](float& x) {
        x = expf(x - top);
        all += x;
    });
    return {top, group.sum(all)};
}

template <class G, int W, class T> DEVICE void softmax(const SoftmaxArguments<T>& p, const G& group) {
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        Row<G, W, T> row(p.x + at, p.columns, group.me());
        const TopAndSum all = exponentials(row, group);
        const float factor = divide(1.0f, all.sum);
        if (is_real) row.write(p.y + at, [&](u32, float x) { return (G::IS_LONG ? expf(x - all.top) : x) * factor; });
    });
}

template <class G, int W, class T> DEVICE void softmax_grad(const SoftmaxGradArguments<T>& p, const G& group) {
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        Row<G, W, T> y(p.y + at, p.columns, group.me()), dy(p.dy + at, p.columns, group.me());
        float dot = 0.0f;
        y.with(dy, [&](u32, const Piece<float, W>& y, const Piece<float, W>& dy) {
            UNROLL for (int k = 0; k < W; ++k) dot += y.at[k] * dy.at[k];
        });
        dot = group.sum(dot);
        if (!is_real) return;
        y.with(dy, [&](u32 c, const Piece<float, W>& y, const Piece<float, W>& dy) {
            Piece<float, W> dx;
            UNROLL for (int k = 0; k < W; ++k) dx.at[k] = y.at[k] * (dy.at[k] - dot);
            store(p.dx + at + c, dx);
        });
    });
}

template <class G, int W> DEVICE void cross_entropy(const EntropyArguments& p, const G& group) {
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        Row<G, W, float> row(p.x + at, p.columns, group.me());
        const TopAndSum all = exponentials(row, group);
        const u32 label = (u32)p.labels[r];
        const float factor = divide(1.0f, all.sum), share = divide(1.0f, p.all_rows);
        if (!is_real) return;
        row.write(p.gradient + at, [&](u32 c, float x) {
            return ((G::IS_LONG ? expf(x - all.top) : x) * factor - (c == label ? 1.0f : 0.0f)) * share;
        });
        if (group.me() == 0) p.losses[r] = label < p.columns ? logf(all.sum) + all.top - p.x[at + label] : INFINITE - INFINITE;
    });
}

// RMS: mean 0, the variance is the mean square.
template <class G, bool RMS, int W, class T> DEVICE void norm(const NormArguments<T>& p, const G& group) {
    const float share = divide(1.0f, (float)p.columns);
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        Row<G, W, T> row(p.x + at, p.columns, group.me());
        float mean = 0.0f, square = 0.0f;
        if (!RMS) {
            row.each([&](float x) { mean += x; });
            mean = group.sum(mean) * share;
        }
        row.each([&](float x) { square = fused(x - mean, x - mean, square); });
        const float rstd = divide(1.0f, square_root(group.sum(square) * share + p.epsilon));
        if (!is_real) return;
        row.pieces([&](u32 c, const Piece<float, W>& x) {
            const Piece<float, W> gain = load<W>(p.gain + c);
            Piece<float, W> bias = {}, y;
            if (p.bias) bias = load<W>(p.bias + c);
            UNROLL for (int k = 0; k < W; ++k) y.at[k] = fused((x.at[k] - mean) * rstd, gain.at[k], bias.at[k]);
            store(p.y + at + c, y);
        });
        if (group.me() == 0) {
            if (p.mean) p.mean[r] = mean;
            p.rstd[r] = rstd;
        }
    });
}

// dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy gain, xhat = (x - mean) rstd; RMS without the second term.
template <class G, bool RMS, int W, class T> DEVICE void norm_grad(const NormGradArguments<T>& p, const G& group) {
    const float share = divide(1.0f, (float)p.columns);
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        Row<G, W, T> row(p.x + at, p.columns, group.me()), dy(p.dy + at, p.columns, group.me());
        const float mean = RMS ? 0.0f : p.mean[r], rstd = p.rstd[r];
        float plain = 0.0f, along = 0.0f;
        // Held, dy becomes g.
        row.with(dy, [&](u32 c, const Piece<float, W>& x, Piece<float, W>& g) {
            const Piece<float, W> gain = load<W>(p.gain + c);
            UNROLL for (int k = 0; k < W; ++k) {
                g.at[k] *= gain.at[k];
                plain += g.at[k];
                along = fused(g.at[k], (x.at[k] - mean) * rstd, along);
            }
        });
        plain = RMS ? 0.0f : group.sum(plain) * share;
        along = group.sum(along) * share;
        if (!is_real) return;
        row.with(dy, [&](u32 c, const Piece<float, W>& x, Piece<float, W>& g) {
            Piece<float, W> gain, dx;
            if (G::IS_LONG) gain = load<W>(p.gain + c);
            UNROLL for (int k = 0; k < W; ++k) {
                const float own = G::IS_LONG ? g.at[k] * gain.at[k] : g.at[k];
                dx.at[k] = rstd * (own - plain - (x.at[k] - mean) * rstd * along);
            }
            store(p.dx + at + c, dx);
        });
    });
}

template <class G, int W, class T> DEVICE void layer_norm(const NormArguments<T>& p, const G& group) { norm<G, false, W>(p, group); }
template <class G, int W, class T> DEVICE void rms_norm(const NormArguments<T>& p, const G& group) { norm<G, true, W>(p, group); }
template <class G, int W, class T> DEVICE void layer_norm_grad(const NormGradArguments<T>& p, const G& group) {
    norm_grad<G, false, W>(p, group);
}
template <class G, int W, class T> DEVICE void rms_norm_grad(const NormGradArguments<T>& p, const G& group) {
    norm_grad<G, true, W>(p, group);
}

// A thread a column, a block a part of the rows: partial[block] = {sum dy xhat, sum dy} of its rows.
template <bool RMS, class T> DEVICE void gain_grad(const NormGradArguments<T>& p) {
    const u32 part = ceil_div(p.rows, blocks()), first = block() * part, last = smaller(first + part, p.rows);
    for (u32 c = thread() + block_y() * 256; c < p.columns; c += 256 * blocks_y()) {
        float gain = 0.0f, bias = 0.0f;
        for (u32 r = first; r < last; ++r) {
            const float dy = to_f32(p.dy[(u64)r * p.columns + c]);
            const float x = to_f32(p.x[(u64)r * p.columns + c]) - (RMS ? 0.0f : p.mean[r]);
            gain = fused(dy, x * p.rstd[r], gain);
            bias += dy;
        }
        p.partial[((u64)block() * 2) * p.columns + c] = gain;
        p.partial[((u64)block() * 2 + 1) * p.columns + c] = bias;
    }
}

// A thread a column.
KERNEL(256) gain_sum_f32(ARGUMENTS(GainSumArguments) p) {
    for (u32 c = block() * 256 + thread(); c < p.columns; c += blocks() * 256) {
        float gain = 0.0f, bias = 0.0f;
        for (u32 part = 0; part < p.parts; ++part) {
            gain += p.partial[(u64)part * 2 * p.columns + c];
            bias += p.partial[((u64)part * 2 + 1) * p.columns + c];
        }
        p.dgain[c] = gain;
        if (p.dbias) p.dbias[c] = bias;
    }
}
EXPORT(gain_sum_f32)

// One block.
KERNEL(256) loss_sum_f32(ARGUMENTS(LossSumArguments) p) {
    SHARED(float, board, 8);
    float all = 0.0f;
    for (u32 r = thread(); r < p.rows; r += 256) all += p.losses[r];
    all = Wide{board}.sum(all);
    if (thread() == 0) *p.loss = divide(all, p.all_rows);
}
EXPORT(loss_sum_f32)

// 16 bytes a lane and access where rows are made of such pieces.
#define ENTRY(name, type, T, resident, body, G)                                                                  \
    KERNEL_OCCUPANCY(256, resident) name(ARGUMENTS(type) p) {                                                        \
        SHARED(float, board, 8);                                                                                     \
        if (p.columns % Pack<T>::COUNT == 0) body<G, Pack<T>::COUNT>(p, {board});                          \
        else body<G, 1>(p, {board});                                                                       \
    }                                                                                                                \
    EXPORT(name)
// Rows of every length; `resident` blocks of those that hold theirs are on a multiprocessor at once (plan.rs has the same numbers).
#define EACH(op, suffix, type, T, resident, body)                                                               \
    ENTRY(op##_narrow_##suffix, type, T, resident, body, Narrow)                           \
    ENTRY(op##_##suffix, type, T, resident, body, Plain)                                   \
    ENTRY(op##_wide_##suffix, type, T, resident, body, Wide)                               \
    ENTRY(op##_long_##suffix, type, T, 4, body, Long)
#define NORMS(op, suffix, T, rms)                                                                                    \
    EACH(op, suffix, NormArguments<T>, T, 3, op)                                                                     \
    EACH(op##_grad, suffix, NormGradArguments<T>, T, 2, op##_grad)                                                   \
    KERNEL(256) op##_gain_##suffix(ARGUMENTS(NormGradArguments<T>) p) { gain_grad<rms>(p); }                         \
    EXPORT(op##_gain_##suffix)
#define ALL(T, suffix)                                                                                               \
    EACH(softmax, suffix, SoftmaxArguments<T>, T, 3, softmax)                                                        \
    EACH(softmax_grad, suffix, SoftmaxGradArguments<T>, T, 2, softmax_grad)                                          \
    NORMS(layer_norm, suffix, T, false)                                                                              \
    NORMS(rms_norm, suffix, T, true)

EACH(cross_entropy, f32, EntropyArguments, float, 3, cross_entropy)
ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
