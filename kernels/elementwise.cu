// elementwise.cu: functions of one element, of two, casts, bias, scaling, and the repeats that gradients need.
// Entries  <op>_<dtype>: relu gelu tanh sigmoid exp, their gradients <op>_grad, add sub mul, add_bias, scale, mul_scalar,
//          repeat (RepeatFirst, MeanGrad), cast_<from>_<to>.
// Shapes   contiguous; add_bias [R, N] + [N]. Any number of elements.
// Work     one read of each operand, one write: memory-bound. 16 bytes a thread and access, the ragged end one by one.
// Numbers  computed in fp32, rounded once.
#include "common.cuh"

template <class T> struct UnaryArguments { const T* x; T* y; u64 n; };
template <class T> struct BinaryArguments { const T* a; const T* b; T* y; u64 n; };
template <class From, class To> struct CastArguments { const From* x; To* y; u64 n; };
template <class T> struct BiasArguments { const T* x; const float* b; T* y; u64 n; u32 columns; u32 unused; };
template <class T> struct ScaleArguments { const T* x; const float* factor; T* y; u64 n; float constant; u32 unused; };
// y[o, k, i] = factor x[o, i]: k of `extent`, i of `inner`.
template <class T> struct RepeatArguments { const T* x; T* y; u64 n; u32 extent; u32 inner; float factor; u32 unused; };

// Applies `f` to 16 bytes of outputs at a time; `f(k)` is the output at k, `load(k)` was called for all of a pack before.
template <class T, class F> DEVICE void for_each(u64 n, T* y, F f) {
    constexpr int COUNT = Pack<T>::COUNT;
    const u64 step = (u64)blocks() * threads() * COUNT;
    for (u64 first = ((u64)block() * threads() + thread()) * COUNT; first < n; first += step) {
        if (first + COUNT <= n) {
            Pack<T> out;
            f(first, out);
            *(Pack<T>*)(y + first) = out;
        } else {
            for (u64 k = first; k < n; ++k) y[k] = f.one(k);
        }
    }
}

DEVICE float sigmoid(float x) { return divide(1.0f, 1.0f + expf(-x)); }

struct Relu { static DEVICE float of(float x) { return larger(x, 0.0f); } };
struct Gelu { static DEVICE float of(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); } };
struct Tanh { static DEVICE float of(float x) { return tanhf(x); } };
struct Sigmoid { static DEVICE float of(float x) { return sigmoid(x); } };
struct Exp { static DEVICE float of(float x) { return expf(x); } };
// (first operand, dy): the first is y, but x for Gelu.
struct ReluGrad { static DEVICE float of(float y, float dy) { return y > 0.0f ? dy : 0.0f; } };
struct GeluGrad {
    static DEVICE float of(float x, float dy) {
        const float phi = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
        return dy * (phi + x * 0.39894228040143268f * expf(-0.5f * x * x));
    }
};
struct TanhGrad { static DEVICE float of(float y, float dy) { return dy * (1.0f - y * y); } };
struct SigmoidGrad { static DEVICE float of(float y, float dy) { return dy * y * (1.0f - y); } };
struct ExpGrad { static DEVICE float of(float y, float dy) { return dy * y; } };
struct Add { static DEVICE float of(float a, float b) { return a + b; } };
struct Sub { static DEVICE float of(float a, float b) { return a - b; } };
struct Mul { static DEVICE float of(float a, float b) { return a * b; } };

template <class F, class T> struct UnaryMap {
    const UnaryArguments<T>& p;
    DEVICE T one(u64 k) const { return from_f32<T>(F::of(to_f32(p.x[k]))); }
    DEVICE void operator()(u64 first, Pack<T>& out) const {
        const Pack<T> x = *(const Pack<T>*)(p.x + first);
        UNROLL for (int e = 0; e < Pack<T>::COUNT; ++e) out.at[e] = from_f32<T>(F::of(to_f32(x.at[e])));
    }
};
template <class F, class T> struct BinaryMap {
    const BinaryArguments<T>& p;
    DEVICE T one(u64 k) const { return from_f32<T>(F::of(to_f32(p.a[k]), to_f32(p.b[k]))); }
    DEVICE void operator()(u64 first, Pack<T>& out) const {
        const Pack<T> a = *(const Pack<T>*)(p.a + first), b = *(const Pack<T>*)(p.b + first);
        UNROLL for (int e = 0; e < Pack<T>::COUNT; ++e) out.at[e] = from_f32<T>(F::of(to_f32(a.at[e]), to_f32(b.at[e])));
    }
};
template <class From, class To> struct CastMap {
    const CastArguments<From, To>& p;
    DEVICE To one(u64 k) const { return from_f32<To>(to_f32(p.x[k])); }
    DEVICE void operator()(u64 first, Pack<To>& out) const {
        // As many elements as the output pack holds: half a pack, one, or two packs of the input.
        constexpr int COUNT = Pack<To>::COUNT, BYTES = COUNT * (int)sizeof(From);
        struct alignas(BYTES < 16 ? BYTES : 16) Block { From at[COUNT]; };
        const Block x = *(const Block*)(p.x + first);
        UNROLL for (int e = 0; e < COUNT; ++e) out.at[e] = from_f32<To>(to_f32(x.at[e]));
    }
};
template <class T> struct BiasMap {
    const BiasArguments<T>& p;
    DEVICE T one(u64 k) const { return from_f32<T>(to_f32(p.x[k]) + p.b[k % p.columns]); }
    DEVICE void operator()(u64 first, Pack<T>& out) const {
        constexpr int COUNT = Pack<T>::COUNT;
        const Pack<T> x = *(const Pack<T>*)(p.x + first);
        u32 column = (u32)(first % p.columns);
        if (p.columns % COUNT == 0) {
            struct alignas(16) Biases { float at[COUNT]; };
            const Biases b = *(const Biases*)(p.b + column);
            UNROLL for (int e = 0; e < COUNT; ++e) out.at[e] = from_f32<T>(to_f32(x.at[e]) + b.at[e]);
            return;
        }
        UNROLL for (int e = 0; e < COUNT; ++e) {
            out.at[e] = from_f32<T>(to_f32(x.at[e]) + p.b[column]);
            column = column + 1 == p.columns ? 0 : column + 1;
        }
    }
};
template <class T> struct ScaleMap {
    const ScaleArguments<T>& p;
    const float factor;
    DEVICE T one(u64 k) const { return from_f32<T>(factor * to_f32(p.x[k])); }
    DEVICE void operator()(u64 first, Pack<T>& out) const {
        const Pack<T> x = *(const Pack<T>*)(p.x + first);
        UNROLL for (int e = 0; e < Pack<T>::COUNT; ++e) out.at[e] = from_f32<T>(factor * to_f32(x.at[e]));
    }
};
template <class T> struct RepeatMap {
    const RepeatArguments<T>& p;
    DEVICE T one(u64 k) const {
        const u64 outer = k / ((u64)p.extent * p.inner);
        return from_f32<T>(p.factor * to_f32(p.x[outer * p.inner + k % p.inner]));
    }
    DEVICE void operator()(u64 first, Pack<T>& out) const {
        if (p.inner % Pack<T>::COUNT == 0) {
            const u64 outer = first / ((u64)p.extent * p.inner);
            const Pack<T> x = *(const Pack<T>*)(p.x + outer * p.inner + first % p.inner);
            UNROLL for (int e = 0; e < Pack<T>::COUNT; ++e) out.at[e] = from_f32<T>(p.factor * to_f32(x.at[e]));
            return;
        }
        UNROLL for (int e = 0; e < Pack<T>::COUNT; ++e) out.at[e] = one(first + e);
    }
};

#define UNARY(F, name, T, suffix)                                                                                    \
    KERNEL(256) name##_##suffix(ARGUMENTS(UnaryArguments<T>) p) { for_each(p.n, p.y, UnaryMap<F, T>{p}); }           \
    EXPORT(name##_##suffix)
#define BINARY(F, name, T, suffix)                                                                                   \
    KERNEL(256) name##_##suffix(ARGUMENTS(BinaryArguments<T>) p) { for_each(p.n, p.y, BinaryMap<F, T>{p}); }         \
    EXPORT(name##_##suffix)
#define CAST(From, To, name)                                                                                         \
    KERNEL(256) name(ARGUMENTS(CastArguments<From, To>) p) { for_each(p.n, p.y, CastMap<From, To>{p}); }             \
    EXPORT(name)
#define ALL(T, suffix)                                                                                               \
    UNARY(Relu, relu, T, suffix) UNARY(Gelu, gelu, T, suffix) UNARY(Tanh, tanh, T, suffix)                           \
    UNARY(Sigmoid, sigmoid, T, suffix) UNARY(Exp, exp, T, suffix)                                                    \
    BINARY(ReluGrad, relu_grad, T, suffix) BINARY(GeluGrad, gelu_grad, T, suffix) BINARY(TanhGrad, tanh_grad, T, suffix) \
    BINARY(SigmoidGrad, sigmoid_grad, T, suffix) BINARY(ExpGrad, exp_grad, T, suffix)                                \
    BINARY(Add, add, T, suffix) BINARY(Sub, sub, T, suffix) BINARY(Mul, mul, T, suffix)                              \
    KERNEL(256) add_bias_##suffix(ARGUMENTS(BiasArguments<T>) p) { for_each(p.n, p.y, BiasMap<T>{p}); }              \
    EXPORT(add_bias_##suffix)                                                                                        \
    KERNEL(256) scale_##suffix(ARGUMENTS(ScaleArguments<T>) p) {                                                     \
        for_each(p.n, p.y, ScaleMap<T>{p, p.factor ? *p.factor : p.constant});                                       \
    }                                                                                                                \
    EXPORT(scale_##suffix)                                                                                           \
    KERNEL(256) repeat_##suffix(ARGUMENTS(RepeatArguments<T>) p) { for_each(p.n, p.y, RepeatMap<T>{p}); }            \
    EXPORT(repeat_##suffix)

ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
CAST(float, f16, cast_f32_f16)
CAST(float, bf16, cast_f32_bf16)
CAST(f16, float, cast_f16_f32)
CAST(bf16, float, cast_bf16_f32)
CAST(f16, bf16, cast_f16_bf16)
CAST(bf16, f16, cast_bf16_f16)
