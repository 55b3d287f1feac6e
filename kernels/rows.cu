// rows.cu: functions of whole rows: softmax, cross-entropy, layer norm, RMS norm, and their gradients.
// Entries  softmax_<dtype>, softmax_grad_<dtype>, layer_norm_<dtype>, layer_norm_grad_<dtype>, rms_norm_<dtype>, rms_norm_grad_<dtype>,
//          each also as <op>_long_<dtype>; cross_entropy_f32, cross_entropy_long_f32; loss_sum_f32, gain_sum_f32.
// Shapes   [R, N] of any R and N. Short: N <= 1024, a warp a row, 8 rows a block, the row held in registers. Long: a block a row, which
//          is read again from the caches for every pass. 256 threads; grid (R or ceil(R / 8)), for gradients of gains any number of
//          blocks: each leaves one row of partial sums [2, N] in `partial`, and gain_sum_f32 adds those up in order.
// Work     short: one read, one write: memory-bound. Long: two or three reads, all but the first from the caches.
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

static constexpr u32 HELD = 32;   // numbers of a short row that a lane holds

// The threads that share a row: a warp or the block.
template <bool LONG> struct Group {
    float* board;   // one number a warp
    DEVICE u32 size() const { return LONG ? 256 : 32; }
    DEVICE u32 me() const { return LONG ? thread() : lane(); }
    DEVICE u32 first_row() const { return LONG ? block() : block() * 8 + warp(); }
    DEVICE u32 row_step() const { return LONG ? blocks() : blocks() * 8; }
    template <class F> DEVICE float meet(float x, F combine) const {
        UNROLL for (u32 by = 16; by > 0; by >>= 1) x = combine(x, shuffle_xor(x, by));
        if (!LONG) return x;
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

// Calls f(column, value) for this thread's part of a row; a short row is read once and held.
template <bool LONG, class T> struct Row {
    const T* from;
    u32 columns, me;
    float held[LONG ? 1 : HELD];
    DEVICE Row(const T* from, u32 columns, u32 me) : from(from), columns(columns), me(me) {
        if (!LONG) {
            UNROLL for (u32 e = 0; e < HELD; ++e) {
                const u32 c = me + 32 * e;
                held[e] = c < columns ? to_f32(from[c]) : 0.0f;
            }
        }
    }
    template <class F> DEVICE void each(F f) const {
        if (LONG) {
            for (u32 c = me; c < columns; c += 256) f(c, to_f32(from[c]));
        } else {
            UNROLL for (u32 e = 0; e < HELD; ++e) {
                const u32 c = me + 32 * e;
                if (c < columns) f(c, held[e]);
            }
        }
    }
};

// Every warp of a block makes the same number of turns, so that all meet in the sums of long rows; rows past the end are the last one
// again and are not written.
template <bool LONG, class F> DEVICE void for_rows(const Group<LONG>& group, u32 rows, F f) {
    for (u32 row = group.first_row(); row - (LONG ? 0 : warp()) < rows; row += group.row_step()) f(smaller(row, rows - 1), row < rows);
}

template <bool LONG, class T> DEVICE void softmax(const SoftmaxArguments<T>& p) {
    SHARED(float, board, 8);
    const Group<LONG> group{board};
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const Row<LONG, T> row(p.x + (u64)r * p.columns, p.columns, group.me());
        float top = -INFINITE, all = 0.0f;
        row.each([&](u32, float x) { top = larger(top, x); });
        top = group.max(top);
        row.each([&](u32, float x) { all += expf(x - top); });
        const float factor = divide(1.0f, group.sum(all));
        T* y = p.y + (u64)r * p.columns;
        if (is_real) row.each([&](u32 c, float x) { y[c] = from_f32<T>(expf(x - top) * factor); });
    });
}

template <bool LONG, class T> DEVICE void softmax_grad(const SoftmaxGradArguments<T>& p) {
    SHARED(float, board, 8);
    const Group<LONG> group{board};
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        const Row<LONG, T> y(p.y + at, p.columns, group.me());
        float dot = 0.0f;
        y.each([&](u32 c, float y) { dot += y * to_f32(p.dy[at + c]); });
        dot = group.sum(dot);
        if (is_real) y.each([&](u32 c, float y) { p.dx[at + c] = from_f32<T>(y * (to_f32(p.dy[at + c]) - dot)); });
    });
}

template <bool LONG> DEVICE void cross_entropy(const EntropyArguments& p) {
    SHARED(float, board, 8);
    const Group<LONG> group{board};
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        const Row<LONG, float> row(p.x + at, p.columns, group.me());
        float top = -INFINITE, all = 0.0f;
        row.each([&](u32, float x) { top = larger(top, x); });
        top = group.max(top);
        row.each([&](u32, float x) { all += expf(x - top); });
        all = group.sum(all);
        const u32 label = (u32)p.labels[r];
        const float factor = divide(1.0f, all), share = divide(1.0f, p.all_rows);
        if (!is_real) return;
        row.each([&](u32 c, float x) { p.gradient[at + c] = (expf(x - top) * factor - (c == label ? 1.0f : 0.0f)) * share; });
        if (group.me() == 0) p.losses[r] = label < p.columns ? logf(all) + top - p.x[at + label] : INFINITE - INFINITE;
    });
}

// RMS: mean 0, the variance is the mean square.
template <bool LONG, bool RMS, class T> DEVICE void norm(const NormArguments<T>& p) {
    SHARED(float, board, 8);
    const Group<LONG> group{board};
    const float share = divide(1.0f, (float)p.columns);
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        const Row<LONG, T> row(p.x + at, p.columns, group.me());
        float mean = 0.0f, square = 0.0f;
        if (!RMS) {
            row.each([&](u32, float x) { mean += x; });
            mean = group.sum(mean) * share;
        }
        row.each([&](u32, float x) { square = fused(x - mean, x - mean, square); });
        const float rstd = divide(1.0f, square_root(group.sum(square) * share + p.epsilon));
        if (!is_real) return;
        row.each([&](u32 c, float x) { p.y[at + c] = from_f32<T>(fused((x - mean) * rstd, p.gain[c], p.bias ? p.bias[c] : 0.0f)); });
        if (group.me() == 0) {
            if (p.mean) p.mean[r] = mean;
            p.rstd[r] = rstd;
        }
    });
}

// dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy gain, xhat = (x - mean) rstd; RMS without the second term.
template <bool LONG, bool RMS, class T> DEVICE void norm_grad(const NormGradArguments<T>& p) {
    SHARED(float, board, 8);
    const Group<LONG> group{board};
    const float share = divide(1.0f, (float)p.columns);
    for_rows(group, p.rows, [&](u32 r, bool is_real) {
        const u64 at = (u64)r * p.columns;
        const Row<LONG, T> row(p.x + at, p.columns, group.me());
        const float mean = RMS ? 0.0f : p.mean[r], rstd = p.rstd[r];
        float plain = 0.0f, along = 0.0f;
        row.each([&](u32 c, float x) {
            const float g = to_f32(p.dy[at + c]) * p.gain[c];
            plain += g;
            along = fused(g, (x - mean) * rstd, along);
        });
        plain = RMS ? 0.0f : group.sum(plain) * share;
        along = group.sum(along) * share;
        if (!is_real) return;
        row.each([&](u32 c, float x) {
            const float g = to_f32(p.dy[at + c]) * p.gain[c];
            p.dx[at + c] = from_f32<T>(rstd * (g - plain - (x - mean) * rstd * along));
        });
    });
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
    all = Group<true>{board}.sum(all);
    if (thread() == 0) *p.loss = divide(all, p.all_rows);
}
EXPORT(loss_sum_f32)

KERNEL(256) cross_entropy_f32(ARGUMENTS(EntropyArguments) p) { cross_entropy<false>(p); }
EXPORT(cross_entropy_f32)
KERNEL(256) cross_entropy_long_f32(ARGUMENTS(EntropyArguments) p) { cross_entropy<true>(p); }
EXPORT(cross_entropy_long_f32)

#define ENTRY(name, type, body)                                                                                      \
    KERNEL(256) name(ARGUMENTS(type) p) { body(p); }                                                                 \
    EXPORT(name)
#define ALL(T, suffix)                                                                                               \
    ENTRY(softmax_##suffix, SoftmaxArguments<T>, softmax<false>)                                                     \
    ENTRY(softmax_long_##suffix, SoftmaxArguments<T>, softmax<true>)                                                 \
    ENTRY(softmax_grad_##suffix, SoftmaxGradArguments<T>, softmax_grad<false>)                                       \
    ENTRY(softmax_grad_long_##suffix, SoftmaxGradArguments<T>, softmax_grad<true>)                                   \
    KERNEL(256) layer_norm_##suffix(ARGUMENTS(NormArguments<T>) p) { norm<false, false>(p); }                        \
    EXPORT(layer_norm_##suffix)                                                                                      \
    KERNEL(256) layer_norm_long_##suffix(ARGUMENTS(NormArguments<T>) p) { norm<true, false>(p); }                    \
    EXPORT(layer_norm_long_##suffix)                                                                                 \
    KERNEL(256) layer_norm_grad_##suffix(ARGUMENTS(NormGradArguments<T>) p) { norm_grad<false, false>(p); }          \
    EXPORT(layer_norm_grad_##suffix)                                                                                 \
    KERNEL(256) layer_norm_grad_long_##suffix(ARGUMENTS(NormGradArguments<T>) p) { norm_grad<true, false>(p); }      \
    EXPORT(layer_norm_grad_long_##suffix)                                                                            \
    ENTRY(layer_norm_gain_##suffix, NormGradArguments<T>, gain_grad<false>)                                          \
    KERNEL(256) rms_norm_##suffix(ARGUMENTS(NormArguments<T>) p) { norm<false, true>(p); }                           \
    EXPORT(rms_norm_##suffix)                                                                                        \
    KERNEL(256) rms_norm_long_##suffix(ARGUMENTS(NormArguments<T>) p) { norm<true, true>(p); }                       \
    EXPORT(rms_norm_long_##suffix)                                                                                   \
    KERNEL(256) rms_norm_grad_##suffix(ARGUMENTS(NormGradArguments<T>) p) { norm_grad<false, true>(p); }             \
    EXPORT(rms_norm_grad_##suffix)                                                                                   \
    KERNEL(256) rms_norm_grad_long_##suffix(ARGUMENTS(NormGradArguments<T>) p) { norm_grad<true, true>(p); }         \
    EXPORT(rms_norm_grad_long_##suffix)                                                                              \
    ENTRY(rms_norm_gain_##suffix, NormGradArguments<T>, gain_grad<true>)

ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
