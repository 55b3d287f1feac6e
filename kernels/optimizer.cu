// optimizer.cu: weight updates of all tensors of a model in one launch: SGD with momentum, Adam, AdamW, RMSProp.
// Entries  sgd_<copy> adam_<copy> rmsprop_<copy>, <copy> the type of the low-precision copy: f32 (there is none), f16, bf16;
//          advance_updates, the counter for Adam's bias correction; adjust_loss_scale, the factor of fp16's loss for the next step.
// Shapes   a table of tensors of any length and a table of chunks of `chunk_length` elements (a multiple of 4); 256 threads and
//          one chunk a block. 1024 elements a chunk for models below a million weights, so that these fill the GPU too; else 4096.
// Work     SGD with momentum 20 bytes a weight, Adam and RMSProp with momentum 28, RMSProp 20, 2 more for a copy: memory-bound.
//          16 bytes a thread and access (8 for a copy), the ragged end one by one.
// Numbers  fp32 with the fused operations of the CPU's rules; 1 - beta^t = -expm1(t ln beta), within 3e-7 of it for any t.
// Adds     rate factor, update count, loss scale and the all-finite flag are read from device memory, so a captured graph can be
//          replayed; a flag of 0 leaves everything as it is. What follows from the flag is decided here too, never by the host.
#include "common.cuh"

// `copy` may be null; a state that the rule does not use is not touched.
struct Tensor { const float* gradient; float* weight; float* state0; float* state1; void* copy; u64 n; };
// Elements [index, index + 1) * chunk_length of a tensor.
struct Chunk { u32 tensor; u32 index; };
// `updates` done before; the learning rate is multiplied by `rate_factor`.
struct Progress { u64 updates; float rate_factor; u32 unused; };

// keep = beta, mix = 1 - beta rounded once, log_keep = ln beta; 1 is the mean, 2 the mean square (RMSProp: 2 only).
// `decoupled` (AdamW): l2 shrinks the weight instead of adding to the gradient. loss_scale and finite may be null.
struct UpdateArguments {
    const Tensor* tensors;
    const Chunk* chunks;
    const Progress* progress;
    const float* loss_scale;
    const float* finite;
    u32 chunk_count;
    u32 chunk_length;
    float learning_rate;
    float momentum;
    float l1;
    float l2;
    float epsilon;
    float keep1;
    float mix1;
    float keep2;
    float mix2;
    float log_keep1;
    float log_keep2;
    u32 decoupled;
};
struct AdvanceArguments { Progress* progress; const float* finite; };
// counts [2]: good steps in a row, skipped steps; whole numbers, exact to 2^24.
struct LossScaleArguments {
    float* scale;
    float* counts;
    float* loss;
    const float* finite;
    float growth_interval;
    float largest;
};

// A rule: which states it keeps, and one weight's step by a gradient that has L1 and L2 already.
struct Sgd {
    const UpdateArguments& p;
    const float rate;
    DEVICE Sgd(const UpdateArguments& p) : p(p), rate(p.learning_rate * p.progress->rate_factor) {}
    DEVICE bool uses0() const { return p.momentum != 0.0f; }
    DEVICE bool uses1() const { return false; }
    DEVICE float l2() const { return p.l2; }
    DEVICE float step(float w, float g, float& s0, float&) const {
        if (uses0()) s0 = g = fused(p.momentum, s0, g);
        return fused(-rate, g, w);
    }
};
struct Adam {
    const UpdateArguments& p;
    float rate, root, shrink;
    DEVICE Adam(const UpdateArguments& p) : p(p) {
        const float t = (float)(p.progress->updates + 1), scaled = p.learning_rate * p.progress->rate_factor;
        rate = divide(scaled, -expm1f(t * p.log_keep1));
        root = divide(1.0f, square_root(-expm1f(t * p.log_keep2)));
        shrink = p.decoupled ? 1.0f - scaled * p.l2 : 1.0f;
    }
    DEVICE bool uses0() const { return true; }
    DEVICE bool uses1() const { return true; }
    DEVICE float l2() const { return p.decoupled ? 0.0f : p.l2; }
    DEVICE float step(float w, float g, float& s0, float& s1) const {
        s0 = fused(p.keep1, s0, p.mix1 * g);
        s1 = fused(p.keep2, s1, p.mix2 * (g * g));
        return fused(-rate, divide(s0, fused(square_root(s1), root, p.epsilon)), w * shrink);
    }
};
struct RmsProp {
    const UpdateArguments& p;
    const float rate;
    DEVICE RmsProp(const UpdateArguments& p) : p(p), rate(p.learning_rate * p.progress->rate_factor) {}
    DEVICE bool uses0() const { return true; }
    DEVICE bool uses1() const { return p.momentum != 0.0f; }
    DEVICE float l2() const { return p.l2; }
    DEVICE float step(float w, float g, float& s0, float& s1) const {
        s0 = fused(p.keep2, s0, p.mix2 * (g * g));
        float d = divide(g, square_root(s0) + p.epsilon);
        if (uses1()) s1 = d = fused(p.momentum, s1, d);
        return fused(-rate, d, w);
    }
};

// The gradient that a rule sees: unscaled, with both penalties of the weight before the step.
DEVICE float penalised(float g, float w, float unscale, float l1, float l2) {
    g *= unscale;
    if (l2 != 0.0f) g = fused(l2, w, g);
    if (l1 != 0.0f) g += w > 0.0f ? l1 : w < 0.0f ? -l1 : 0.0f;
    return g;
}

// `N` (4 or 1) weights from `at` on.
template <class Copy, class Rule, class Floats> DEVICE void step_at(const Rule& rule, const Tensor& t, u64 at, float unscale) {
    constexpr int N = sizeof(Floats) / sizeof(float);
    struct alignas(N * sizeof(Copy)) Copies { Copy at[N]; };
    const Floats g = *(const Floats*)(t.gradient + at);
    Floats w = *(const Floats*)(t.weight + at), s0 = {}, s1 = {};
    if (rule.uses0()) s0 = *(const Floats*)(t.state0 + at);
    if (rule.uses1()) s1 = *(const Floats*)(t.state1 + at);
    UNROLL for (int e = 0; e < N; ++e) {
        w.at[e] = rule.step(w.at[e], penalised(g.at[e], w.at[e], unscale, rule.p.l1, rule.l2()), s0.at[e], s1.at[e]);
    }
    *(Floats*)(t.weight + at) = w;
    if (rule.uses0()) *(Floats*)(t.state0 + at) = s0;
    if (rule.uses1()) *(Floats*)(t.state1 + at) = s1;
    if (sizeof(Copy) < sizeof(float) && t.copy) {
        Copies low;
        UNROLL for (int e = 0; e < N; ++e) low.at[e] = from_f32<Copy>(w.at[e]);
        *(Copies*)((Copy*)t.copy + at) = low;
    }
}

template <class Rule, class Copy> DEVICE void update(const UpdateArguments& p) {
    struct One { float at[1]; };
    if (p.finite && *p.finite == 0.0f) return;
    const float unscale = p.loss_scale ? divide(1.0f, *p.loss_scale) : 1.0f;
    const Rule rule(p);
    for (u32 c = block(); c < p.chunk_count; c += blocks()) {
        const Chunk chunk = p.chunks[c];
        const Tensor t = p.tensors[chunk.tensor];
        const u64 first = (u64)chunk.index * p.chunk_length, end = smaller(first + p.chunk_length, t.n);
        for (u64 at = first + thread() * 4; at < end; at += threads() * 4) {
            if (at + 4 <= end) {
                step_at<Copy, Rule, Pack<float>>(rule, t, at, unscale);
            } else {
                for (u64 k = at; k < end; ++k) step_at<Copy, Rule, One>(rule, t, k, unscale);
            }
        }
    }
}

// A skipped step does not count.
KERNEL(32) advance_updates(ARGUMENTS(AdvanceArguments) p) {
    if (block() == 0 && thread() == 0 && !(p.finite && *p.finite == 0.0f)) p.progress->updates += 1;
}
EXPORT(advance_updates)

// Halved by an overflow, doubled by a row of good steps. Overflow below a scale of 1 has another cause, and the loss says so.
KERNEL(32) adjust_loss_scale(ARGUMENTS(LossScaleArguments) p) {
    if (block() != 0 || thread() != 0) return;
    const bool good = *p.finite != 0.0f;
    const float scale = *p.scale, row = good ? p.counts[0] + 1.0f : 0.0f;
    const bool grows = row >= p.growth_interval;
    const float now = grows ? smaller(2.0f * scale, p.largest) : good ? scale : larger(0.5f * scale, 0.5f);
    *p.scale = now;
    p.counts[0] = grows ? 0.0f : row;
    if (good) return;
    p.counts[1] += 1.0f;
    if (now < 1.0f) *p.loss = float_of(0x7fc00000u);
}
EXPORT(adjust_loss_scale)

// 64 registers a thread at most, so that 1024 threads of an SM have loads under way.
#define RULE(Rule, name, T, suffix)                                                                                  \
    KERNEL_OCCUPANCY(256, 4) name##_##suffix(ARGUMENTS(UpdateArguments) p) { update<Rule, T>(p); }                   \
    EXPORT(name##_##suffix)
#define ALL(T, suffix) RULE(Sgd, sgd, T, suffix) RULE(Adam, adam, T, suffix) RULE(RmsProp, rmsprop, T, suffix)

ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
