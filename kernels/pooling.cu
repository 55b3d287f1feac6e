// pooling.cu: max pooling and its gradient, ReLU with 2 x 2 pooling and its gradient, rotation and scaling of images.
// Entries  max_pool_<dtype>, max_pool_grad_<dtype>: any window and stride, no padding; what does not fill a window is left out.
//          relu_pool_<dtype>, relu_unpool_<dtype>: 2 x 2 windows, stride 2, with the codes of Op::ConvReluPool.
//          rotate_scale_f32: bilinear, by a matrix an image.
// Shapes   x [B, H, W, C], y and index or code (u8, may be null going forward) [B, OH, OW, C], fewer than 2^32 threads' pieces.
// Tile     a thread: 16 bytes of channels of one window (C a multiple of 4 in f32, of 8 in 16 bits), else one channel.
// Work     every operand once; memory-bound. The gradient of overlapping windows reads dy and index once per window over a place.
// Numbers  comparisons exact, the first of equals, NaN wins; sums of overlapping windows in fp32, window by window, rounded once.
#include "common.cuh"

struct Plane { u32 batch, height, width, channels, out_height, out_width, window_height, window_width, stride_y, stride_x; };
template <class T> struct PoolArguments { const T* x; T* y; u8* index; Plane s; };
template <class T> struct PoolGradArguments { const T* dy; const u8* index; T* dx; Plane s; };
template <class T> struct ReluPoolArguments { const T* x; T* y; u8* code; u32 batch, height, width, channels; };
template <class T> struct ReluUnpoolArguments { const T* dy; const u8* code; T* dx; u32 batch, height, width, channels; };
// Row-major [2, 3] matrices: source (y, x) = M (dy, dx, 1), dy and dx counted from the middle of the image.
struct RotateArguments { const float* x; const float* matrices; float* y; u32 batch, height, width, channels; };

constexpr u32 DEAD_CODE = 4;

// `COUNT` channels of one place, one access each.
template <class T, int COUNT> struct alignas(COUNT * sizeof(T)) Piece { T at[COUNT]; };

// The place that piece `k` of [B, height, width, groups * COUNT] has.
struct Place { u32 image, y, x, channel; };
DEVICE Place place(u32 k, u32 height, u32 width, u32 groups, u32 count) {
    const u32 pixel = k / groups, row = pixel / width, image = row / height;
    return {image, row - image * height, pixel - row * width, (k - pixel * groups) * count};
}
DEVICE u64 offset(const Plane& s, u32 image, u32 y, u32 x) { return (((u64)image * s.height + y) * s.width + x) * s.channels; }
DEVICE u64 out_offset(const Plane& s, u32 image, u32 y, u32 x) { return (((u64)image * s.out_height + y) * s.out_width + x) * s.channels; }
DEVICE Plane two_by_two(u32 batch, u32 height, u32 width, u32 channels) {
    return {batch, height, width, channels, height / 2, width / 2, 2, 2, 2, 2};
}

// Calls f(place) for every piece of [B, height, width, C].
template <int COUNT, class F> DEVICE void for_each_piece(u32 batch, u32 height, u32 width, u32 channels, F f) {
    const u32 groups = channels / COUNT;
    const u64 n = (u64)batch * height * width * groups;
    for (u64 k = (u64)block() * threads() + thread(); k < n; k += (u64)blocks() * threads()) f(place((u32)k, height, width, groups, COUNT));
}

template <class T, int COUNT> struct Winner {
    float best[COUNT];
    u32 index[COUNT];
    DEVICE void clear() {
        UNROLL for (int e = 0; e < COUNT; ++e) best[e] = -INFINITE, index[e] = 0;
    }
    DEVICE void take(const Piece<T, COUNT>& v, u32 tap) {
        UNROLL for (int e = 0; e < COUNT; ++e) {
            const float x = to_f32(v.at[e]);
            // Larger, or the first NaN.
            const bool wins = x > best[e] || (x != x && best[e] == best[e]);
            best[e] = wins ? x : best[e];
            index[e] = wins ? tap : index[e];
        }
    }
};

// TWO: windows of 2 x 2, known to the compiler, so that all four loads are under way at once.
template <bool TWO, bool RELU, class T, int COUNT> DEVICE void max_pool(const T* x, T* y, u8* index, const Plane& s) {
    typedef Piece<T, COUNT> Values;
    for_each_piece<COUNT>(s.batch, s.out_height, s.out_width, s.channels, [&](Place at) {
        const T* corner = x + offset(s, at.image, at.y * s.stride_y, at.x * s.stride_x) + at.channel;
        const u64 line = (u64)s.width * s.channels;
        Winner<T, COUNT> w;
        w.clear();
        if (TWO) {
            const Values a = *(const Values*)corner, b = *(const Values*)(corner + s.channels);
            const Values c = *(const Values*)(corner + line), d = *(const Values*)(corner + line + s.channels);
            w.take(a, 0), w.take(b, 1), w.take(c, 2), w.take(d, 3);
        } else {
            u32 tap = 0;
            for (u32 i = 0; i < s.window_height; ++i) {
                for (u32 j = 0; j < s.window_width; ++j, ++tap) {
                    const Values v = *(const Values*)(corner + i * line + j * s.channels);
                    w.take(v, tap);
                }
            }
        }
        Values out;
        Piece<u8, COUNT> places;
        UNROLL for (int e = 0; e < COUNT; ++e) {
            const bool dead = RELU && w.best[e] <= 0.0f;
            out.at[e] = from_f32<T>(dead ? 0.0f : w.best[e]);
            places.at[e] = (u8)(dead ? DEAD_CODE : w.index[e]);
        }
        const u64 to = out_offset(s, at.image, at.y, at.x) + at.channel;
        *(Values*)(y + to) = out;
        if (index) *(Piece<u8, COUNT>*)(index + to) = places;
    });
}

// Windows of 2 x 2 that do not overlap: a thread reads one window's gradient and writes its places, and what is left over at odd edges.
template <class T, int COUNT> DEVICE void unpool_two(const T* dy, const u8* index, T* dx, const Plane& s) {
    typedef Piece<T, COUNT> Values;
    for_each_piece<COUNT>(s.batch, (s.height + 1) / 2, (s.width + 1) / 2, s.channels, [&](Place at) {
        const bool inside = at.y < s.out_height && at.x < s.out_width;
        const u64 from = out_offset(s, at.image, at.y, at.x) + at.channel;
        Values d = {};
        Piece<u8, COUNT> places = {};
        if (inside) d = *(const Values*)(dy + from), places = *(const Piece<u8, COUNT>*)(index + from);
        UNROLL for (u32 tap = 0; tap < 4; ++tap) {
            const u32 row = 2 * at.y + tap / 2, column = 2 * at.x + tap % 2;
            Values out = {};
            UNROLL for (int e = 0; e < COUNT; ++e) {
                if (inside && places.at[e] == tap) out.at[e] = d.at[e];
            }
            if (row < s.height && column < s.width) *(Values*)(dx + offset(s, at.image, row, column) + at.channel) = out;
        }
    });
}

// Any windows: a place sums over the windows it lies in, so nothing is added by two threads.
template <class T, int COUNT> DEVICE void unpool_any(const T* dy, const u8* index, T* dx, const Plane& s) {
    typedef Piece<T, COUNT> Values;
    for_each_piece<COUNT>(s.batch, s.height, s.width, s.channels, [&](Place at) {
        const u32 top = at.y < s.window_height ? 0 : (at.y - s.window_height) / s.stride_y + 1;
        const u32 left = at.x < s.window_width ? 0 : (at.x - s.window_width) / s.stride_x + 1;
        const u32 bottom = smaller(at.y / s.stride_y + 1, s.out_height), right = smaller(at.x / s.stride_x + 1, s.out_width);
        float sum[COUNT];
        UNROLL for (int e = 0; e < COUNT; ++e) sum[e] = 0.0f;
        for (u32 i = top; i < bottom; ++i) {
            for (u32 j = left; j < right; ++j) {
                const u32 tap = (at.y - i * s.stride_y) * s.window_width + at.x - j * s.stride_x;
                const u64 from = out_offset(s, at.image, i, j) + at.channel;
                const Values d = *(const Values*)(dy + from);
                const Piece<u8, COUNT> places = *(const Piece<u8, COUNT>*)(index + from);
                UNROLL for (int e = 0; e < COUNT; ++e) sum[e] += places.at[e] == tap ? to_f32(d.at[e]) : 0.0f;
            }
        }
        Values out;
        UNROLL for (int e = 0; e < COUNT; ++e) out.at[e] = from_f32<T>(sum[e]);
        *(Values*)(dx + offset(s, at.image, at.y, at.x) + at.channel) = out;
    });
}

DEVICE bool is_two(const Plane& s) { return s.window_height == 2 && s.window_width == 2 && s.stride_y == 2 && s.stride_x == 2; }

template <bool TWO, bool RELU, class T> DEVICE void pool(const T* x, T* y, u8* index, const Plane& s) {
    constexpr int COUNT = Pack<T>::COUNT;
    if (s.channels % COUNT == 0) max_pool<TWO, RELU, T, COUNT>(x, y, index, s);
    else max_pool<TWO, RELU, T, 1>(x, y, index, s);
}
template <bool TWO, class T> DEVICE void unpool(const T* dy, const u8* index, T* dx, const Plane& s) {
    constexpr int COUNT = Pack<T>::COUNT;
    const bool wide = s.channels % COUNT == 0;
    if (TWO && wide) unpool_two<T, COUNT>(dy, index, dx, s);
    else if (TWO) unpool_two<T, 1>(dy, index, dx, s);
    else if (wide) unpool_any<T, COUNT>(dy, index, dx, s);
    else unpool_any<T, 1>(dy, index, dx, s);
}

// One number a thread: neighbours in a warp then read neighbouring sectors, whatever the angle.
KERNEL(256) rotate_scale_f32(ARGUMENTS(RotateArguments) p) {
    const u32 line = p.width * p.channels, image_size = p.height * line;
    const float middle_y = ((float)p.height - 1.0f) / 2.0f, middle_x = ((float)p.width - 1.0f) / 2.0f;
    for (u32 image = block_y(); image < p.batch; image += blocks_y()) {
        const float* m = p.matrices + (u64)image * 6;
        const float* from = p.x + (u64)image * image_size;
        for (u32 k = block() * threads() + thread(); k < image_size; k += blocks() * threads()) {
            const u32 row = k / line, column = (k - row * line) / p.channels, channel = k - row * line - column * p.channels;
            const float dy = (float)row - middle_y, dx = (float)column - middle_x;
            const float y = fused(m[1], dx, fused(m[0], dy, m[2])), x = fused(m[4], dx, fused(m[3], dy, m[5]));
            const float y0 = floorf(y), x0 = floorf(x), fy = y - y0, fx = x - x0;
            const i32 top = (i32)y0, left = (i32)x0;
            const auto pixel = [&](i32 i, i32 j) {
                const bool inside = i >= 0 && j >= 0 && i < (i32)p.height && j < (i32)p.width;
                return inside ? from[(u32)i * line + (u32)j * p.channels + channel] : 0.0f;
            };
            const float above = fused(pixel(top, left + 1), fx, pixel(top, left) * (1.0f - fx));
            const float below = fused(pixel(top + 1, left + 1), fx, pixel(top + 1, left) * (1.0f - fx));
            p.y[(u64)image * image_size + k] = fused(below, fy, above * (1.0f - fy));
        }
    }
}
EXPORT(rotate_scale_f32)

#define ALL(T, suffix)                                                                                               \
    KERNEL(256) max_pool_##suffix(ARGUMENTS(PoolArguments<T>) p) {                                                   \
        if (is_two(p.s)) pool<true, false>(p.x, p.y, p.index, p.s);                                                  \
        else pool<false, false>(p.x, p.y, p.index, p.s);                                                             \
    }                                                                                                                \
    EXPORT(max_pool_##suffix)                                                                                        \
    KERNEL(256) max_pool_grad_##suffix(ARGUMENTS(PoolGradArguments<T>) p) {                                          \
        if (is_two(p.s)) unpool<true>(p.dy, p.index, p.dx, p.s);                                                     \
        else unpool<false>(p.dy, p.index, p.dx, p.s);                                                                \
    }                                                                                                                \
    EXPORT(max_pool_grad_##suffix)                                                                                   \
    KERNEL(256) relu_pool_##suffix(ARGUMENTS(ReluPoolArguments<T>) p) {                                              \
        pool<true, true>(p.x, p.y, p.code, two_by_two(p.batch, p.height, p.width, p.channels));                      \
    }                                                                                                                \
    EXPORT(relu_pool_##suffix)                                                                                       \
    KERNEL(256) relu_unpool_##suffix(ARGUMENTS(ReluUnpoolArguments<T>) p) {                                          \
        unpool<true>(p.dy, p.code, p.dx, two_by_two(p.batch, p.height, p.width, p.channels));                        \
    }                                                                                                                \
    EXPORT(relu_unpool_##suffix)

ALL(float, f32)
ALL(f16, f16)
ALL(bf16, bf16)
