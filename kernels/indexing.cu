// indexing.cu: rows picked by number, the gradient of that, and axes in another order.
// Entries  embedding_<dtype>, gather_rows_f32: y [R, N] = rows of a table [V, N] by i32 indices [R].
//          embedding_sort, then embedding_grad_<dtype> or embedding_grad_<dtype>_f32 (fp32 result): the table's gradient [V, N].
//          permute_16, permute_32, permute_128: elements of so many bits, up to 6 axes.
//          transpose_16, transpose_32: the last axis and another one change places, batched over up to 4 axes.
// Shapes   any; fewer than 2^32 pieces a launch, fewer than 2^31 indices. An index outside the table gives a row of NaN, and no
//          gradient. permute_128 moves 16 bytes: the last axis stays last, and the host divides it and all strides by 16 bytes.
// Tile     transpose: 128 bytes x 128 bytes a block, through shared memory, swizzled (wide) or padded (ragged): no bank conflicts.
// Work     memory-bound. embedding_sort: every block reads all indices twice (and each of its 8 warps the second time), so
//          O(R V / rows) reads from L2 beside the R + V written; embedding_grad: dy once, the table once.
// Numbers  sums in fp32 in an order that only the indices decide, rounded once.
#include "common.cuh"

template <class T> struct GatherArguments { const T* table; const i32* indices; T* y; u64 rows; u32 columns; u32 table_rows; };
// Positions of index v stand in positions[starts[v] .. starts[v + 1]]; a block sorts `rows` (at most MOST_ROWS) table rows.
struct SortArguments { const i32* indices; u32* starts; u32* positions; u32 count; u32 vocabulary; u32 rows; u32 unused; };
template <class T, class Out> struct EmbeddingGradArguments {
    const T* dy;
    const u32* starts;
    const u32* positions;
    Out* dtable;
    u32 vocabulary;
    u32 columns;
};
// Extents of y, slowest first, 1 where there are fewer axes; for each the stride in x.
template <class T> struct PermuteArguments { const T* x; T* y; u64 n; u64 strides[6]; u32 shape[6]; };
// y[.., j, .., i] = x[.., i, .., j]: i of `rows`, j of `columns`. x_step is the stride of i in x, y_step that of j in y.
template <class T> struct TransposeArguments {
    const T* x;
    T* y;
    u64 x_step;
    u64 y_step;
    u64 x_strides[4];
    u64 y_strides[4];
    u32 shape[4];
    u32 rows;
    u32 columns;
};

template <class T, int COUNT> struct alignas(COUNT * sizeof(T)) Piece { T at[COUNT]; };

template <int COUNT, class T> DEVICE void gather(const GatherArguments<T>& p) {
    typedef Piece<T, COUNT> Values;
    const u32 pieces = p.columns / COUNT;
    const u64 n = p.rows * pieces;
    Values missing;
    UNROLL for (int e = 0; e < COUNT; ++e) missing.at[e] = from_f32<T>(float_of(0x7fc00000));
    for (u64 k = (u64)block() * threads() + thread(); k < n; k += (u64)blocks() * threads()) {
        const u32 row = (u32)k / pieces, piece = (u32)k - row * pieces, from = (u32)p.indices[row];
        const Values* source = (const Values*)p.table + (u64)from * pieces + piece;
        ((Values*)p.y)[k] = from < p.table_rows ? *source : missing;
    }
}
template <class T> DEVICE void gather_rows(const GatherArguments<T>& p) {
    if (p.columns % Pack<T>::COUNT == 0) gather<Pack<T>::COUNT>(p);
    else gather<1>(p);
}

constexpr u32 MOST_ROWS = 1024;
constexpr u32 WARPS = 8;

DEVICE u32 warp_total(u32 x) {
    UNROLL for (u32 by = 16; by > 0; by >>= 1) x += shuffle_xor(x, by);
    return x;
}

// Four indices from k on; beyond the end such as no table has.
DEVICE Pack<i32> four_indices(const SortArguments& p, u32 k) {
    Pack<i32> got;
    if (k + 4 <= p.count) {
        got = *(const Pack<i32>*)(p.indices + k);
    } else {
        UNROLL for (u32 e = 0; e < 4; ++e) got.at[e] = k + e < p.count ? p.indices[k + e] : -1;
    }
    return got;
}

// A counting sort whose blocks own ranges of table rows: where a range starts follows from how many indices are smaller, so the
// blocks need nothing from each other.
KERNEL(256) embedding_sort(ARGUMENTS(SortArguments) p) {
    SHARED(u32, cursor, MOST_ROWS);
    SHARED(u32, totals, 2 * WARPS);
    const u32 first = block() * p.rows, rows = smaller(p.rows, p.vocabulary - first);
    Four32& mine = *(Four32*)(cursor + 4 * thread());
    mine = {0, 0, 0, 0};
    block_sync();

    u32 below = 0;
    for (u32 k = 4 * thread(); k < p.count; k += 4 * threads()) {
        const Pack<i32> got = four_indices(p, k);
        UNROLL for (u32 e = 0; e < 4; ++e) {
            const u32 row = (u32)got.at[e];
            below += row < first;
            if (row - first < rows) atomic_add(cursor + (row - first), 1u);
        }
    }
    block_sync();

    // Counts to starts: an exclusive sum over 4 rows a thread.
    const Four32 counts = mine;
    const u32 own = counts.x + counts.y + counts.z + counts.w;
    u32 sum = own;
    UNROLL for (u32 by = 1; by < 32; by <<= 1) {
        const u32 other = shuffle(sum, lane() - by);
        sum += lane() >= by ? other : 0;
    }
    below = warp_total(below);
    if (lane() == 31) totals[warp()] = sum, totals[WARPS + warp()] = below;
    block_sync();
    u32 start = sum - own;
    UNROLL for (u32 w = 0; w < WARPS; ++w) start += totals[WARPS + w] + (w < warp() ? totals[w] : 0);
    const Four32 starts = {start, start + counts.x, start + counts.x + counts.y, start + own - counts.w};
    mine = starts;
    const u32 row = 4 * thread();
    if (row < rows) p.starts[first + row] = starts.x;
    if (row + 1 < rows) p.starts[first + row + 1] = starts.y;
    if (row + 2 < rows) p.starts[first + row + 2] = starts.z;
    if (row + 3 < rows) p.starts[first + row + 3] = starts.w;
    // Rows behind the range counted nothing, so the last thread has its end.
    if (thread() == threads() - 1 && first + rows == p.vocabulary) p.starts[p.vocabulary] = start + own;
    block_sync();

    // Every eighth row is a warp's own: from here on no warp waits for another.
    Pack<i32> next = four_indices(p, 4 * lane());
    for (u32 k = 0; k < p.count; k += 128) {
        const Pack<i32> got = next;
        next = four_indices(p, k + 128 + 4 * lane());
        UNROLL for (u32 e = 0; e < 4; ++e) {
            const u32 local = (u32)got.at[e] - first;
            u32 waiting = ballot(local < rows && local % WARPS == warp());
            while (waiting) {
                const u32 leader = shuffle(local, count_bits((waiting & (0u - waiting)) - 1));
                const u32 same = ballot(local == leader), at = cursor[leader];
                if (local == leader) p.positions[at + count_bits(same & ((1u << lane()) - 1))] = k + 4 * lane() + e;
                warp_sync();
                if (lane() == 0) cursor[leader] = at + count_bits(same);
                warp_sync();
                waiting &= ~same;
            }
        }
    }
}
EXPORT(embedding_sort)

// Adds the rows of dy at positions[begin], positions[begin + step], ... below `end`; four loads under way.
template <int COUNT, class T>
DEVICE void add_rows(const T* dy, const u32* positions, u32 columns, u32 begin, u32 end, u32 step, float (&sum)[COUNT]) {
    typedef Piece<T, COUNT> Values;
    u32 k = begin;
    for (; k + 3 * step < end; k += 4 * step) {
        Values v[4];
        UNROLL for (u32 u = 0; u < 4; ++u) v[u] = *(const Values*)(dy + (u64)positions[k + u * step] * columns);
        UNROLL for (u32 u = 0; u < 4; ++u) {
            UNROLL for (int e = 0; e < COUNT; ++e) sum[e] += to_f32(v[u].at[e]);
        }
    }
    for (; k < end; k += step) {
        const Values v = *(const Values*)(dy + (u64)positions[k] * columns);
        UNROLL for (int e = 0; e < COUNT; ++e) sum[e] += to_f32(v.at[e]);
    }
}
template <int COUNT, class Out> DEVICE void store_row(Out* to, const float (&sum)[COUNT]) {
    Piece<Out, COUNT> out;
    UNROLL for (int e = 0; e < COUNT; ++e) out.at[e] = from_f32<Out>(sum[e]);
    *(Piece<Out, COUNT>*)to = out;
}

// Of so many rows of dy and more the whole block makes one sum: frequent indices must not wait for one warp.
constexpr u32 LONG = 64;

// A block: 8 rows of the table, 32 COUNT columns; a warp a row, then all warps for each long one.
template <int COUNT, class T, class Out> DEVICE void embedding_grad(const EmbeddingGradArguments<T, Out>& p, float* partial) {
    const u32 column = (block_y() * 32 + lane()) * COUNT, first = block() * WARPS, row = first + warp();
    const bool inside = column < p.columns;
    if (row < p.vocabulary && inside) {
        const u32 begin = p.starts[row], end = p.starts[row + 1];
        float sum[COUNT] = {};
        if (end - begin < LONG) {
            add_rows<COUNT>(p.dy + column, p.positions, p.columns, begin, end, 1, sum);
            store_row<COUNT>(p.dtable + (u64)row * p.columns + column, sum);
        }
    }
    for (u32 r = first; r < smaller(first + WARPS, p.vocabulary); ++r) {
        const u32 begin = p.starts[r], end = p.starts[r + 1];
        if (end - begin < LONG) continue;
        float sum[COUNT] = {};
        if (inside) add_rows<COUNT>(p.dy + column, p.positions, p.columns, begin + warp(), end, WARPS, sum);
        UNROLL for (int e = 0; e < COUNT; ++e) partial[(warp() * COUNT + e) * 32 + lane()] = sum[e];
        block_sync();
        if (warp() == 0 && inside) {
            UNROLL for (u32 w = 1; w < WARPS; ++w) {
                UNROLL for (int e = 0; e < COUNT; ++e) sum[e] += partial[(w * COUNT + e) * 32 + lane()];
            }
            store_row<COUNT>(p.dtable + (u64)r * p.columns + column, sum);
        }
        block_sync();
    }
}
template <class T, class Out> DEVICE void embedding_grad(const EmbeddingGradArguments<T, Out>& p) {
    constexpr int COUNT = Pack<Out>::COUNT;
    SHARED(float, partial, WARPS * 32 * COUNT);
    if (p.columns % COUNT == 0) embedding_grad<COUNT>(p, partial);
    else embedding_grad<1>(p, partial);
}

template <class T> DEVICE void permute(const PermuteArguments<T>& p) {
    for (u64 k = (u64)block() * threads() + thread(); k < p.n; k += (u64)blocks() * threads()) {
        u32 rest = (u32)k;
        u64 from = 0;
        UNROLL for (int axis = 5; axis > 0; --axis) {
            if (p.shape[axis] == 1) continue;
            const u32 outer = rest / p.shape[axis];
            from += (rest - outer * p.shape[axis]) * p.strides[axis];
            rest = outer;
        }
        p.y[k] = p.x[from + rest * p.strides[0]];
    }
}

// Tile row i is 8 groups of 16 bytes; group g of it lies at g ^ (i / COUNT), so that both the rows that are written and the
// columns that are read spread over all banks. Elements one by one instead have rows of an odd number of banks.
template <bool WIDE, class T> DEVICE u32 tile_at(u32 i, u32 j) {
    constexpr u32 COUNT = 16 / sizeof(T), EDGE = 8 * COUNT;
    return WIDE ? i * EDGE + ((j / COUNT ^ i / COUNT) * COUNT) + j % COUNT : i * (EDGE + 4 / sizeof(T)) + j;
}

template <bool WIDE, class T> DEVICE void transpose_tile(const TransposeArguments<T>& p, T* tile, const T* x, T* y, u32 i0, u32 j0) {
    constexpr u32 COUNT = WIDE ? 16 / sizeof(T) : 1, EDGE = 128 / sizeof(T), PER_ROW = EDGE / COUNT;
    typedef Piece<T, COUNT> Values;
    UNROLL for (u32 k = 0; k < EDGE * PER_ROW / 256; ++k) {
        const u32 at = k * 256 + thread(), i = at / PER_ROW, j = at % PER_ROW * COUNT;
        if (i0 + i < p.rows && j0 + j < p.columns) {
            *(Values*)(tile + tile_at<WIDE, T>(i, j)) = *(const Values*)(x + (i0 + i) * p.x_step + (j0 + j));
        }
    }
    block_sync();
    UNROLL for (u32 k = 0; k < EDGE * PER_ROW / 256; ++k) {
        const u32 at = k * 256 + thread(), j = at / PER_ROW, i = at % PER_ROW * COUNT;
        if (i0 + i < p.rows && j0 + j < p.columns) {
            Values out;
            UNROLL for (u32 e = 0; e < COUNT; ++e) out.at[e] = tile[tile_at<WIDE, T>(i + e, j)];
            *(Values*)(y + (j0 + j) * p.y_step + (i0 + i)) = out;
        }
    }
    block_sync();
}

// Tiles along x, batches along y.
template <class T> DEVICE void transpose(const TransposeArguments<T>& p) {
    constexpr u32 COUNT = 16 / sizeof(T), EDGE = 128 / sizeof(T);
    SHARED(T, tile, EDGE * (EDGE + 4 / sizeof(T)));
    u64 all = p.rows | p.columns | p.x_step | p.y_step;
    UNROLL for (int axis = 0; axis < 4; ++axis) all |= p.x_strides[axis] | p.y_strides[axis];
    const u32 across = ceil_div(p.columns, EDGE), tiles = across * ceil_div(p.rows, EDGE);
    const u32 batches = p.shape[0] * p.shape[1] * p.shape[2] * p.shape[3];
    for (u32 batch = block_y(); batch < batches; batch += blocks_y()) {
        u32 rest = batch;
        const T* x = p.x;
        T* y = p.y;
        UNROLL for (int axis = 3; axis >= 0; --axis) {
            const u32 outer = rest / p.shape[axis], here = rest - outer * p.shape[axis];
            x += here * p.x_strides[axis];
            y += here * p.y_strides[axis];
            rest = outer;
        }
        for (u32 t = block(); t < tiles; t += blocks()) {
            const u32 i0 = t / across * EDGE, j0 = t % across * EDGE;
            if (all % COUNT == 0) transpose_tile<true>(p, tile, x, y, i0, j0);
            else transpose_tile<false>(p, tile, x, y, i0, j0);
        }
    }
}

#define EMBEDDING(T, suffix)                                                                                         \
    KERNEL(256) embedding_##suffix(ARGUMENTS(GatherArguments<T>) p) { gather_rows(p); }                              \
    EXPORT(embedding_##suffix)
#define EMBEDDING_GRAD(T, Out, name)                                                                                 \
    KERNEL(256) name(ARGUMENTS(EmbeddingGradArguments<T, Out>) p) { embedding_grad(p); }                             \
    EXPORT(name)
#define MOVE(T, bits)                                                                                                \
    KERNEL(256) permute_##bits(ARGUMENTS(PermuteArguments<T>) p) { permute(p); }                                     \
    EXPORT(permute_##bits)
#define TRANSPOSE(T, bits)                                                                                           \
    KERNEL_OCCUPANCY(256, 4) transpose_##bits(ARGUMENTS(TransposeArguments<T>) p) { transpose(p); }                               \
    EXPORT(transpose_##bits)

EMBEDDING(float, f32)
EMBEDDING(f16, f16)
EMBEDDING(bf16, bf16)
KERNEL(256) gather_rows_f32(ARGUMENTS(GatherArguments<float>) p) { gather_rows(p); }
EXPORT(gather_rows_f32)
EMBEDDING_GRAD(float, float, embedding_grad_f32)
EMBEDDING_GRAD(f16, f16, embedding_grad_f16)
EMBEDDING_GRAD(bf16, bf16, embedding_grad_bf16)
EMBEDDING_GRAD(f16, float, embedding_grad_f16_f32)
EMBEDDING_GRAD(bf16, float, embedding_grad_bf16_f32)
MOVE(u16, 16)
MOVE(u32, 32)
MOVE(Four32, 128)
TRANSPOSE(u16, 16)
TRANSPOSE(u32, 32)
