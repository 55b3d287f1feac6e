// conv_wgmma.cu: convolutions of stride 1 and their gradients on the tensor cores of sm_90a, as implicit products fed by boxes of the image.
// Architectures: sm_90a
// Entries  conv_wgmma_{bf16,f16}_{64,128,256}, conv_wgmma_grad_input_{bf16,f16}_{64,128,256}; the number is the width of the tile;
//          each also as .._64_short: for at most 32 channels.
//          conv_wgmma_grad_weight_{bf16,f16}: f32 sums, two for each split of the pixels; conv2d_reduce_* adds them up.
// Shapes   x [B, H, W, C], w [KH, KW, C, F], y [B, OH, OW, F] of one type, bias f32 [F] or null; C and F multiples of 8 (TMA); any window and
//          padding, stride 1.
// Boxes    4-D boxes of 64 channels of a patch of pixels, moved by the tap of the window; what lies outside of the image is zero, which is
//          the padding. K runs over the taps and, within them, chunks of 64 channels; the last chunk is multiplied as far as it goes.
//          Patches of 8 x 8 pixels may come with the rows below that the other taps of a column of the window see: a row of 8 pixels is
//          1024 bytes, so that the next tap begins at the next such row, and one box serves all of them (`taps` > 1).
// Tile     256 pixels x 64 or 128 filters, 128 x 256; a block of 384 threads: warpgroup 0 is the producer, one thread of which asks TMA for
//          boxes, 1 and 2 multiply, half of the pixels each. Gradient of the weights: 3 taps x 64 channels x 64 filters each, on pixels
//          of its own. Rings in 224 KiB of shared memory; persistent grid.
// Work     2 M N K FLOP, M = B OH OW, N = F, K = KH KW C (gradients: the same three exchanged).
// Numbers  f32 sums, K in order (chunk, tap); rounded once, after bias and activation.
#include "hopper.cuh"

// Maps: see emulator/hopper.h, over [B, H, W, C] (for the gradients of dy as well) and, for w, [KH KW, C, F].
//                image                                          other
//   forward      x: {64, patch_w, patch_h + taps - 1, patch_n}  w: {64, 64, 1}
//   grad input   dy: the same                                   w: {64, tile width, 1}
//   grad weight  x: {64, 8, 10, 1}                              dy: {64, 8, 8, 1}
struct ConvWgmmaArguments {
    TensorMap image, other;
    void* y;
    const float* bias;
    u32 batch, height, width;        // of the result; grad weight: of dy
    u32 depth, filters;              // channels that are summed over (grad weight: channels of x), and of the result
    u32 rows, columns;               // the window
    i32 shift_h, shift_w;            // from a patch to the first pixel that it sees
    u32 patch_h, patch_w, patch_n;   // pixels and images of a patch
    u32 boxes;                       // patches of a tile: 1, or one of 8 x 8 for every 64 rows
    u32 taps;                        // of a stage: 1, or `rows`
    u32 unit_bytes;                  // from one 64 pixels of a stage to the next
    u32 stages, stage_bytes;
    u32 activation;                  // 0 none, 1 ReLU, 2 GELU
    u32 splits;                      // grad weight: of the pixels, at most half as many as patches
    u32 unused[9];
};
static_assert(sizeof(ConvWgmmaArguments) == 384, "no padding but the fields'");

constexpr u32 CHUNK = 64, UNIT = 64, PATCH = 8, ROW_BYTES = PATCH * 128, RING_BYTES = 224 * 1024;
constexpr u32 TAPS = 3, WEIGHT_STAGES = 6, WEIGHT_IMAGE_BYTES = (PATCH + TAPS - 1) * ROW_BYTES, WEIGHT_STAGE_BYTES = WEIGHT_IMAGE_BYTES + PATCH * ROW_BYTES;
static_assert(2 * WEIGHT_STAGES * WEIGHT_STAGE_BYTES <= RING_BYTES, "two rings");

struct Ring {
    u8* tiles;
    u64* barriers;
    u32 stages, bytes, stage = 0, parity;  // the producer begins with parity 1: all stages are empty

    DEVICE Ring(u8* tiles, u64* barriers, u32 stages, u32 bytes, u32 parity)
        : tiles(tiles), barriers(barriers), stages(stages), bytes(bytes), parity(parity) {}
    DEVICE u8* image() const { return tiles + stage * bytes; }
    DEVICE u64* full() const { return barriers + stage; }
    DEVICE u64* empty() const { return barriers + stages + stage; }
    DEVICE void advance() {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
    DEVICE void begin(u32 consumers) {
        for (u32 i = 0; i < stages; ++i, advance()) {
            mbarrier_init(full(), 1);
            mbarrier_init(empty(), consumers);
        }
    }
};
DEVICE Ring ring_of(const ConvWgmmaArguments& p, u8* shared, u32 parity) {
    return Ring(shared, (u64*)(shared + RING_BYTES), p.stages, p.stage_bytes, parity);
}
DEVICE Ring weight_ring(u8* shared, u32 consumer, u32 parity) {
    u64* const barriers = (u64*)(shared + RING_BYTES) + consumer * 2 * WEIGHT_STAGES;
    return Ring(shared + consumer * (WEIGHT_STAGES * WEIGHT_STAGE_BYTES), barriers, WEIGHT_STAGES, WEIGHT_STAGE_BYTES, parity);
}

// Patches cover images row by row; those beyond the last image are of images that are not there, whose boxes are zero.
struct Place { i32 w, h, n; };
DEVICE Place place(const ConvWgmmaArguments& p, u32 patch) {
    const u32 across = ceil_div(p.width, p.patch_w), down = ceil_div(p.height, p.patch_h);
    return {(i32)(patch % across * p.patch_w), (i32)(patch / across % down * p.patch_h), (i32)(patch / across / down * p.patch_n)};
}
DEVICE u32 count_patches(const ConvWgmmaArguments& p) {
    return ceil_div(p.width, p.patch_w) * ceil_div(p.height, p.patch_h) * ceil_div(p.batch, p.patch_n);
}

// Steps of K, the innermost first: columns of the window, groups of `taps` of its rows, chunks of channels.
struct Step {
    u32 column = 0, row = 0, chunk = 0;
    DEVICE void advance(const ConvWgmmaArguments& p) {
        if (++column < p.columns) return;
        column = 0;
        row += p.taps;
        if (row < p.rows) return;
        row = 0;
        ++chunk;
    }
};
DEVICE u32 count_steps(const ConvWgmmaArguments& p) { return ceil_div(p.depth, CHUNK) * p.columns * (p.rows / p.taps); }

// Neighbouring tasks are the columns of one set of pixels.
DEVICE u32 count_tasks(const ConvWgmmaArguments& p, u32 tile_n) { return ceil_div(count_patches(p), p.boxes) * ceil_div(p.filters, tile_n); }

// MIRRORED: the tap that sees a pixel from below right is the first; its weights are [C, F] as they lie, K along their rows.
template <u32 TILE_N, u32 UNITS, bool MIRRORED> DEVICE void produce(const ConvWgmmaArguments& p, u8* shared) {
    Ring ring = ring_of(p, shared, 1);
    const u32 across = ceil_div(p.filters, TILE_N), steps = count_steps(p), image_bytes = 2 * UNITS * p.unit_bytes;
    const u32 box_bytes = p.patch_n * (p.patch_h + p.taps - 1) * p.patch_w * 128, weight_bytes = TILE_N * 128;
    for (u32 index = block(); index < count_tasks(p, TILE_N); index += blocks()) {
        const i32 filter = (i32)(index % across * TILE_N);
        Place at[2 * UNITS];
        UNROLL for (u32 b = 0; b < 2 * UNITS; ++b) at[b] = place(p, index / across * p.boxes + (b < p.boxes ? b : 0));
        Step k;
        NO_UNROLL for (u32 step = 0; step < steps; ++step, k.advance(p)) {
            const i32 channel = (i32)(k.chunk * CHUNK), right = p.shift_w + (i32)k.column, below = p.shift_h + (i32)k.row;
            mbarrier_wait(ring.empty(), ring.parity);
            // Whole boxes, also where they hang over the edge: the rest is filled with zeros and counts.
            mbarrier_arrive_expect(ring.full(), p.boxes * box_bytes + p.taps * weight_bytes);
            UNROLL for (u32 b = 0; b < 2 * UNITS; ++b) {
                if (b >= p.boxes) continue;
                tma_load_4d(ring.image() + b * p.unit_bytes, &p.image, ring.full(), channel, at[b].w + right, at[b].h + below, at[b].n);
            }
            NO_UNROLL for (u32 t = 0; t < p.taps; ++t) {
                u8* const to = ring.image() + image_bytes + t * weight_bytes;
                const u32 row = k.row + t;
                if constexpr (MIRRORED) {
                    const u32 tap = (p.rows - 1 - row) * p.columns + p.columns - 1 - k.column;
                    tma_load_3d(to, &p.other, ring.full(), channel, filter, (i32)tap);
                } else {
                    const u32 tap = row * p.columns + k.column;
                    UNROLL for (u32 i = 0; i < TILE_N; i += 64)
                        tma_load_3d(to + i * 128, &p.other, ring.full(), filter + (i32)i, channel, (i32)tap);
                }
            }
            ring.advance();
        }
    }
}

// Unit `unit` of task `index`: 64 pixels. A lane stores 16 bytes at a time, a quad 64 consecutive ones.
template <class T, u32 TILE_N, int COUNT> DEVICE void store(const ConvWgmmaArguments& p, float (&d)[COUNT], u32 index, u32 unit) {
    const u32 across = ceil_div(p.filters, TILE_N), group = index / across, first = index % across * TILE_N, t = lane() & 3;
    if (p.bias) {
        UNROLL for (int j = 0; j < COUNT / 4; ++j) {
            const u32 c = first + 2 * t + (u32)j * 8;
            const float b0 = c < p.filters ? p.bias[c] : 0.0f, b1 = c < p.filters ? p.bias[c + 1] : 0.0f;
            d[j * 4] += b0;
            d[j * 4 + 1] += b1;
            d[j * 4 + 2] += b0;
            d[j * 4 + 3] += b1;
        }
    }
    if (p.activation == 1) {
        UNROLL for (int i = 0; i < COUNT; ++i) d[i] = larger(d[i], 0.0f);
    } else if (p.activation == 2) {
        UNROLL for (int i = 0; i < COUNT; ++i) d[i] = gelu(d[i]);
    }
    const Place at = place(p, group * p.boxes + (p.boxes > 1 ? unit : 0));
    UNROLL for (int half = 0; half < 2; ++half) {
        const u32 pixel = (warp() & 3) * 16 + lane() / 4 + (u32)half * 8 + (p.boxes > 1 ? 0 : unit * UNIT);
        const u32 w = (u32)at.w + pixel % p.patch_w, h = (u32)at.h + pixel / p.patch_w % p.patch_h;
        const u32 image = pixel / p.patch_w / p.patch_h, n = (u32)at.n + image;
        const bool inside = w < p.width && h < p.height && n < p.batch && image < p.patch_n;
        T* const to = (T*)p.y + (((u64)n * p.height + h) * p.width + w) * p.filters;
        UNROLL for (int j = 0; j < COUNT / 4; j += 4) {
            Pack<u32> out;
            UNROLL for (int i = 0; i < 4; ++i) out.at[i] = pack_pair<T>(d[(j + i) * 4 + half * 2], d[(j + i) * 4 + half * 2 + 1]);
            transpose_quad(out.at);
            const u32 c = first + ((u32)j + t) * 8;
            if (inside && c < p.filters) *(Pack<u32>*)(to + c) = out;
        }
    }
}

// Where the first consumer tells the second to begin: a stage later, so that one multiplies while the other stores its tile.
DEVICE u64* turn_of_second(u8* shared) { return (u64*)(shared + RING_BYTES) + 31; }

// DEPTH: of a chunk, how many channels are multiplied; those beyond are zero.
template <class T, u32 TILE_N, u32 UNITS, bool MIRRORED, u32 DEPTH> DEVICE void consume(const ConvWgmmaArguments& p, u8* shared, u32 consumer) {
    constexpr u64 STEP_B = MIRRORED ? WGMMA_STEP_K_MAJOR : WGMMA_STEP_MN_MAJOR;
    Ring ring = ring_of(p, shared, 0);
    const bool speaker = thread() % 128 == 0;
    const u32 turns = count_steps(p) * p.taps, image_bytes = 2 * UNITS * p.unit_bytes;
    const u64 next = p.unit_bytes >> 4;
    bool tells = consumer == 0 && speaker;
    if (consumer == 1) mbarrier_wait(turn_of_second(shared), 0);
    for (u32 index = block(); index < count_tasks(p, TILE_N); index += blocks()) {
        float d[UNITS][TILE_N / 2];  // of one tile: were it older, the compiler would carry the epilogue's values into the first product
        u64* used = nullptr;
        u32 tap = 0;
        // One loop over stages and their taps, whose every turn multiplies alike: the compiler would serialise products under conditions.
        NO_UNROLL for (u32 turn = 0; turn < turns; ++turn) {
            if (tap == 0) mbarrier_wait(ring.full(), ring.parity);
            const u64 a = wgmma_descriptor(ring.image() + consumer * UNITS * p.unit_bytes + tap * ROW_BYTES);
            const u64 b = wgmma_descriptor(ring.image() + image_bytes + tap * (TILE_N * 128));
            wgmma_fence();
            UNROLL for (u32 k = 0; k < DEPTH / 16; ++k) {
                UNROLL for (u32 u = 0; u < UNITS; ++u)
                    wgmma<false, !MIRRORED, T>(d[u], a + k * WGMMA_STEP_K_MAJOR + u * next, b + k * STEP_B, turn != 0 || k != 0);
            }
            wgmma_commit();
            // The turn before is done; this one keeps the tensor cores busy while the next is prepared.
            wgmma_wait<1>();
            if (tap == 0 && used && speaker) mbarrier_arrive(used);
            if (++tap < p.taps) continue;
            if (tells) mbarrier_arrive(turn_of_second(shared));
            tells = false;
            tap = 0;
            used = ring.empty();
            ring.advance();
        }
        wgmma_wait_for(d);
        if (speaker) mbarrier_arrive(used);
        UNROLL for (u32 u = 0; u < UNITS; ++u) store<T, TILE_N>(p, d[u], index, consumer * UNITS + u);
    }
}

// Who a thread is, from one lane, so that the compiler knows that it is the same in the whole warp.
DEVICE u32 warpgroup() { return shuffle(thread() / 128, 0); }

template <class T, u32 TILE_N, u32 UNITS, bool MIRRORED, u32 DEPTH> DEVICE void conv(const ConvWgmmaArguments& p, u8* shared) {
    const u32 group = warpgroup();
    if (thread() == 0) {
        tma_prefetch_map(&p.image);
        tma_prefetch_map(&p.other);
        ring_of(p, shared, 0).begin(2);
        mbarrier_init(turn_of_second(shared), 1);
        mbarrier_init_fence();
    }
    block_sync();
    if (group == 0) {
        registers_shrink<40>();
        if (thread() == 0) produce<TILE_N, UNITS, MIRRORED>(p, shared);
    } else {
        registers_grow<232>();
        consume<T, TILE_N, UNITS, MIRRORED, DEPTH>(p, shared, group - 1);
    }
}

// Gradient of the weights: 64 channels of x under `TAPS` rows of one column of the window, 64 filters; the pixels of one part.
struct WeightTask { u32 filter, channel, column, row, first[2], last[2], part; };
DEVICE u32 weight_tiles(const ConvWgmmaArguments& p) {
    return ceil_div(p.filters, UNIT) * p.columns * ceil_div(p.rows, TAPS) * ceil_div(p.depth, CHUNK);
}
// Neighbouring tasks are tiles over the same pixels.
DEVICE WeightTask weight_task(const ConvWgmmaArguments& p, u32 index) {
    const u32 tiles = weight_tiles(p), across = ceil_div(p.filters, UNIT), groups = ceil_div(p.rows, TAPS), patches = count_patches(p);
    const u32 tile = index % tiles, split = index / tiles, rest = tile / across, parts = 2 * p.splits;
    WeightTask t;
    t.filter = tile % across * UNIT;
    t.column = rest % p.columns;
    t.row = rest / p.columns % groups * TAPS;
    t.channel = rest / p.columns / groups * CHUNK;
    t.part = split * 2;
    UNROLL for (u32 c = 0; c < 2; ++c) {
        t.first[c] = (u32)((u64)patches * (t.part + c) / parts);
        t.last[c] = (u32)((u64)patches * (t.part + c + 1) / parts);
    }
    return t;
}

DEVICE void produce_weights(const ConvWgmmaArguments& p, u8* shared) {
    Ring rings[2] = {weight_ring(shared, 0, 1), weight_ring(shared, 1, 1)};
    const u32 tasks = weight_tiles(p) * p.splits;
    for (u32 index = block(); index < tasks; index += blocks()) {
        const WeightTask t = weight_task(p, index);
        Place at[2] = {place(p, t.first[0]), place(p, t.first[1])};
        const u32 counts[2] = {t.last[0] - t.first[0], t.last[1] - t.first[1]};
        const i32 right = p.shift_w + (i32)t.column, below = p.shift_h + (i32)t.row;
        NO_UNROLL for (u32 step = 0; step < larger(counts[0], counts[1]); ++step) {
            UNROLL for (u32 c = 0; c < 2; ++c) {
                if (step >= counts[c]) continue;
                Ring& ring = rings[c];
                mbarrier_wait(ring.empty(), ring.parity);
                mbarrier_arrive_expect(ring.full(), WEIGHT_STAGE_BYTES);
                tma_load_4d(ring.image(), &p.image, ring.full(), (i32)t.channel, at[c].w + right, at[c].h + below, at[c].n);
                tma_load_4d(ring.image() + WEIGHT_IMAGE_BYTES, &p.other, ring.full(), (i32)t.filter, at[c].w, at[c].h, at[c].n);
                ring.advance();
                at[c].w += PATCH;
                if (at[c].w < (i32)p.width) continue;
                at[c].w = 0;
                at[c].h += PATCH;
                if (at[c].h < (i32)p.height) continue;
                at[c].h = 0;
                ++at[c].n;
            }
        }
    }
}

// Rows of one tap's [64 channels, 64 filters] of a part; 16 bytes a lane.
template <int COUNT> DEVICE void store_weights(const ConvWgmmaArguments& p, const float (&d)[COUNT], const WeightTask& task, u32 part, u32 tap_row) {
    const u32 t = lane() & 3;
    UNROLL for (int half = 0; half < 2; ++half) {
        const u32 channel = task.channel + (warp() & 3) * 16 + lane() / 4 + (u32)half * 8;
        const bool inside = channel < p.depth && tap_row < p.rows;
        const u64 row = ((u64)part * p.rows * p.columns + tap_row * p.columns + task.column) * p.depth + channel;
        float* const to = (float*)p.y + row * p.filters;
        UNROLL for (int j = 0; j < COUNT / 4; j += 2) {
            const int o = j * 4 + half * 2;
            const float x0 = d[o], x1 = d[o + 1], x4 = d[o + 4], x5 = d[o + 5];
            const bool odd = t & 1;
            const float y0 = shuffle_xor(odd ? x0 : x4, 1), y1 = shuffle_xor(odd ? x1 : x5, 1);
            const u32 c = task.filter + ((u32)j + (t & 1)) * 8 + (t & 2) * 2;
            const Pack<float> out{{odd ? y0 : x0, odd ? y1 : x1, odd ? x4 : y0, odd ? x5 : y1}};
            if (inside && c < p.filters) *(Pack<float>*)(to + c) = out;
        }
    }
}

template <class T> DEVICE void consume_weights(const ConvWgmmaArguments& p, u8* shared, u32 consumer) {
    Ring ring = weight_ring(shared, consumer, 0);
    const bool speaker = thread() % 128 == 0;
    const u32 tasks = weight_tiles(p) * p.splits;
    for (u32 index = block(); index < tasks; index += blocks()) {
        const WeightTask t = weight_task(p, index);
        const u32 steps = consumer ? t.last[1] - t.first[1] : t.last[0] - t.first[0];
        float d[TAPS][32];
        u64* used = nullptr;
        NO_UNROLL for (u32 step = 0; step < steps; ++step) {
            mbarrier_wait(ring.full(), ring.parity);
            const u64 a = wgmma_descriptor(ring.image()), b = wgmma_descriptor(ring.image() + WEIGHT_IMAGE_BYTES);
            wgmma_fence();
            UNROLL for (u32 k = 0; k < UNIT / 16; ++k) {
                // The pixels that the next tap sees begin one row of the patch further down.
                UNROLL for (u32 u = 0; u < TAPS; ++u)
                    wgmma<true, true, T>(d[u], a + k * WGMMA_STEP_MN_MAJOR + u * (ROW_BYTES >> 4), b + k * WGMMA_STEP_MN_MAJOR, step != 0 || k != 0);
            }
            wgmma_commit();
            wgmma_wait<1>();
            if (used && speaker) mbarrier_arrive(used);
            used = ring.empty();
            ring.advance();
        }
        wgmma_wait_for(d);
        if (speaker) mbarrier_arrive(used);
        UNROLL for (u32 u = 0; u < TAPS; ++u) store_weights(p, d[u], t, t.part + consumer, t.row + u);
    }
}

template <class T> DEVICE void grad_weight(const ConvWgmmaArguments& p, u8* shared) {
    const u32 group = warpgroup();
    if (thread() == 0) {
        tma_prefetch_map(&p.image);
        tma_prefetch_map(&p.other);
        weight_ring(shared, 0, 0).begin(1);
        weight_ring(shared, 1, 0).begin(1);
        mbarrier_init_fence();
    }
    block_sync();
    if (group == 0) {
        registers_shrink<40>();
        if (thread() == 0) produce_weights(p, shared);
    } else {
        registers_grow<232>();
        consume_weights<T>(p, shared, group - 1);
    }
}

#define CONV(T, name, MIRRORED, suffix, TILE_N, UNITS, DEPTH)                        \
    KERNEL(384) conv_wgmma##name##_##T##_##suffix(ARGUMENTS(ConvWgmmaArguments) p) { \
        DYNAMIC_SHARED(shared);                                                      \
        conv<T, TILE_N, UNITS, MIRRORED, DEPTH>(p, shared);                          \
    }                                                                                \
    EXPORT(conv_wgmma##name##_##T##_##suffix)
#define WIDTHS(T, name, MIRRORED)                                                                      \
    CONV(T, name, MIRRORED, 64, 64, 2, 64) CONV(T, name, MIRRORED, 128, 128, 2, 64)                    \
    CONV(T, name, MIRRORED, 256, 256, 1, 64) CONV(T, name, MIRRORED, 64_short, 64, 2, 32)
#define ALL(T)                                                                 \
    WIDTHS(T, , false) WIDTHS(T, _grad_input, true)                            \
    KERNEL(384) conv_wgmma_grad_weight_##T(ARGUMENTS(ConvWgmmaArguments) p) { \
        DYNAMIC_SHARED(shared);                                                \
        grad_weight<T>(p, shared);                                             \
    }                                                                          \
    EXPORT(conv_wgmma_grad_weight_##T)
ALL(bf16)
ALL(f16)
