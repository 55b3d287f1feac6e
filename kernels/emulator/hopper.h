// The CPU's reading of the names in hopper.cuh. A box lands at a random later round over poisoned memory, in any order; a product is
// made at the wait that must have it, the latest the hardware may, and reads its operands through descriptor and swizzle.
//
// Found: missing or wrong waits, fences, byte counts, parities, descriptors, maps; accumulators touched or read before their wait; operands
// overwritten before they were read; warpgroups that diverge; registers beyond the block's; anything under way at the end.
// Not found: a missing fence between ordinary stores to shared memory and wgmma or TMA (of all kernels,
// conformance_hopper.cu alone stores to it).
#pragma once
#include "emulator.h"
#include <unordered_map>
#include <vector>

// The GPU wants it at a multiple of 64; here that would only make compilers talk about how they pass such structs.
struct TensorMap { u64 words[16]; };

namespace emulated {

// What the 128 bytes of a TensorMap hold here. All fields as given to cuTensorMapEncodeTiled (tensor dimension 0 is the innermost,
// which has no stride; element strides 1, no interleave, fill with zeros), so that one host function can fill either:
//   operand                       extent      stride[0]       box                  swizzle
//   A [M, K], B [N, K] (K-major)  {K, M|N}    K x 2 bytes     {64, rows of tile}   128 bytes
//   A [K, M], B [K, N] (MN-major) {M|N, K}    M|N x 2 bytes   {64, 64}             128 bytes
//   A [M, K], B [N, K] of 8 bits  {K, M|N}    K               {128, rows of tile}  128 bytes
// Tensors of three and four dimensions, for convolutions, likewise: kernels/conv_wgmma.cu has their boxes.
// The base is a multiple of 16 bytes, so is each stride; a box has at most 256 of each dimension, and 128 bytes of the first.
struct HostMap {
    u64 magic;          // MAP_MAGIC
    u64 base;           // address
    u64 extent[5];      // elements; dimensions from `rank` on are 1
    u64 stride[4];      // bytes, of dimensions 1 to 4
    u32 box[5];         // elements; dimensions from `rank` on are 1
    u32 rank;           // 1 to 5
    u32 element_bytes;  // 1 or 2
    u32 swizzle;        // CUtensorMapSwizzle: 0 none, 1 32 bytes, 2 64 bytes, 3 128 bytes
    u32 unused[2];
};
static_assert(sizeof(HostMap) == sizeof(TensorMap), "a map is 128 bytes");
constexpr u64 MAP_MAGIC = 0x70616d2074736f68ull;  // "host map"

// `warp` made it after block_sync number `epoch`.
struct Mbarrier { u32 count, pending; i64 bytes; u32 parity, warp, epoch; };
struct Box { HostMap map; u8* to; u64* barrier; i32 at[5]; };

// Accumulators of a warpgroup from the first product on them to the wait that gives them back.
struct Accumulators { float* d[128]; u32 count; std::vector<float> sum; };
enum Numbers { BF16, F16, E4M3, E5M2 };
struct Product { u64 a, b; bool accumulate, mn_major_a, mn_major_b; Numbers type_a, type_b; float* d; int selected; std::vector<u32> places; };  // selected: -1 dense

enum Meeting { NONE, FENCE, PRODUCT, COMMIT, WAIT, REGISTERS };

struct Warpgroup {
    u32 arrived, turn, registers;
    Meeting meeting;
    bool fenced;
    Product next;
    float* d[128];
    u32 places[128];
    std::vector<Accumulators> live;
    std::vector<Product> open;
    std::vector<std::vector<Product>> groups;
};

struct Hopper {
    u64 serial;
    bool unfenced;  // an init that mbarrier_init_fence has not followed
    std::unordered_map<const u64*, Mbarrier> barriers;
    std::vector<Box> boxes;
    Warpgroup groups[8];
};
inline Hopper hopper_state;

// In the accumulators while they belong to the tensor core: a signalling NaN, which no arithmetic leaves as it is.
constexpr u32 UNREADABLE = 0x7f80dead;

// The hooks would take what follows for accesses of the kernel.
#define QUIET __attribute__((no_sanitize("thread"), noinline)) inline
#define QUIET_INLINE __attribute__((no_sanitize("thread"), always_inline)) inline
#ifdef __clang__
#define QUIET_FAST QUIET
#else
#define QUIET_FAST __attribute__((optimize("O3"))) QUIET  // where the time goes, also in a build without optimisation
#endif

QUIET_INLINE u32 swizzled(u32 address, u32 width) { return address ^ ((address >> 7 & (width / 16 - 1)) << 4); }

QUIET void settle(Mbarrier& b) {
    progress();
    if (b.pending || b.bytes) return;
    b.parity ^= 1;
    b.pending = b.count;
}

// Rows of a box along its first dimension, and how many bytes from the tensor's base row `r` of a box at `at` begins in that dimension; -1
// where it lies outside. (No lambdas here: the compiler's hooks would see into them.)
QUIET_INLINE u32 rows_of(const HostMap& map) {
    u32 rows = 1;
    for (u32 d = 1; d < map.rank; ++d) rows *= map.box[d];
    return rows;
}
QUIET_INLINE i64 row_of(const HostMap& map, const i32* at, u32 r) {
    i64 offset = 0;
    for (u32 d = 1; d < map.rank; r /= map.box[d], ++d) {
        const i64 x = (i64)at[d] + r % map.box[d];
        if (x < 0 || (u64)x >= map.extent[d]) return -1;
        offset += x * (i64)map.stride[d - 1];
    }
    return offset;
}

QUIET void land(size_t k) {
    Hopper& h = hopper_state;
    const Box box = h.boxes[k];
    h.boxes.erase(h.boxes.begin() + k);
    const HostMap& map = box.map;
    u8* const base = (u8*)dynamic_shared();
    const u32 first = (u32)(box.to - base), width = map.swizzle ? 16u << map.swizzle : 16;
    u32 e = 0;
    for (u32 r = 0; r < rows_of(map); ++r) {
        const i64 row = row_of(map, box.at, r);
        for (u32 x = 0; x < map.box[0]; ++x, ++e) {
            const i64 column = (i64)box.at[0] + x;
            const bool inside = row >= 0 && column >= 0 && (u64)column < map.extent[0];
            u8* const to = base + swizzled(first + e * map.element_bytes, width);
            if (map.element_bytes == 1) *to = inside ? *(const u8*)(map.base + (u64)row + column) : 0;
            else *(u16*)to = inside ? *(const u16*)(map.base + (u64)row + column * 2) : 0;
        }
    }
    auto found = h.barriers.find(box.barrier);
    found->second.bytes -= (i64)e * map.element_bytes;
    settle(found->second);
}

QUIET const char* hopper_round() {
    Hopper& h = hopper_state;
    while (!h.boxes.empty() && random_number() % 5 == 0) land(random_number() % h.boxes.size());
    // It will land; nobody hangs meanwhile.
    if (!h.boxes.empty()) progress();
    return nullptr;
}

QUIET const char* hopper_end() {
    const Hopper& h = hopper_state;
    u32 registers = 0;
    for (const Warpgroup& g : h.groups) {
        if (!g.open.empty() || !g.groups.empty() || !g.live.empty()) return "products under way at the end of a block";
        registers += g.registers;
    }
    if (registers > 512) return "the warpgroups ask for more than 64 K registers";
    return h.boxes.empty() ? nullptr : "boxes under way at the end of a block";
}

QUIET Hopper& hopper() {
    Hopper& h = hopper_state;
    if (h.serial != block_serial()) {
        h = Hopper{};
        h.serial = block_serial();
        beside(hopper_round, hopper_end);
    }
    return h;
}

QUIET Mbarrier& mbarrier(u64* at) {
    auto found = hopper().barriers.find(at);
    if (found == hopper().barriers.end()) fail("an mbarrier used before its init");
    if (hopper().unfenced) fail("an mbarrier used before mbarrier_init_fence");
    const Mbarrier& b = found->second;
    if (b.epoch == block_syncs() && b.warp != thread_index.x / 32) fail("an mbarrier used without a block_sync since its init");
    return found->second;
}

QUIET void mbarrier_init(u64* b, u32 count) {
    if ((uintptr_t)b % 8 || !shared_holds(b, 8)) fail("an mbarrier outside shared memory, or not at a multiple of 8");
    if (!hopper().barriers.insert({b, {count, count, 0, 0, thread_index.x / 32, block_syncs()}}).second) fail("an mbarrier initialised twice");
    hopper().unfenced = true;
    ordered_by_mbarriers();
}

QUIET void mbarrier_arrive(u64* b, u32 bytes) {
    Mbarrier& m = mbarrier(b);
    if (!m.pending) fail("more arrivals at an mbarrier than its count");
    m.bytes += bytes;
    --m.pending;
    settle(m);
}

QUIET void mbarrier_wait(u64* b, u32 parity) {
    if (parity > 1) fail("a parity that is neither 0 nor 1");
    while (mbarrier(b).parity == parity) give_way();
    progress();
}

QUIET const HostMap& map_of(const TensorMap* map) {
    const HostMap& m = *(const HostMap*)map;
    if (m.magic != MAP_MAGIC) fail("no tensor map");
    bool good = m.rank >= 1 && m.rank <= 5 && (m.element_bytes == 1 || m.element_bytes == 2) && m.swizzle <= 3 && m.base % 16 == 0;
    for (u32 d = 0; d < 5; ++d) {
        good &= m.box[d] >= 1 && m.box[d] <= 256 && m.extent[d] >= 1 && m.extent[d] <= 1ull << 32;
        good &= d < m.rank || (m.box[d] == 1 && m.extent[d] == 1);
        if (d) good &= d >= m.rank || (m.stride[d - 1] % 16 == 0 && m.stride[d - 1] < 1ull << 40);
    }
    good &= m.box[0] * m.element_bytes % 16 == 0 && (!m.swizzle || m.box[0] * m.element_bytes <= 16u << m.swizzle);
    if (!good) fail("a tensor map that cuTensorMapEncodeTiled would refuse");
    return m;
}

QUIET void tma_load(u32 rank, void* shared, const TensorMap* tensor, u64* barrier, Box box) {
    const HostMap& map = map_of(tensor);
    if (map.rank != rank) fail("a box of more or fewer coordinates than its map has");
    const u32 size = map.element_bytes;
    u32 bytes = size;
    for (u32 d = 0; d < rank; ++d) bytes *= map.box[d];
    // Swizzle patterns repeat every 1024, 512, 256 bytes.
    if (!shared_holds(shared, bytes)) fail("a box that lands outside shared memory");
    if ((u32)((u8*)shared - (u8*)dynamic_shared()) % (128u << map.swizzle)) fail("a box that lands at an address that is not aligned");
    mbarrier(barrier);
    const i64 x = box.at[0], from = x < 0 ? 0 : x, last = smaller<i64>(x + map.box[0], (i64)map.extent[0]);
    for (u32 r = 0; r < rows_of(map); ++r) {
        const i64 row = row_of(map, box.at, r);
        if (row >= 0 && from < last) bulk_access((const u8*)map.base + row + from * size, (u32)(last - from) * size, false);
    }
    memset(shared, 0xff, bytes);  // NaN until it lands
    box.map = map;
    box.to = (u8*)shared;
    box.barrier = barrier;
    hopper().boxes.push_back(box);
    progress();
}

// The number of a code of OFP8; NaN for those that are none.
QUIET_INLINE float number_of(u8 code, Numbers type) {
    const u32 fraction = type == E4M3 ? 3 : 2, bias = type == E4M3 ? 7 : 15;
    const u32 magnitude = code & 0x7f, field = magnitude >> fraction, ulps = magnitude & ((1u << fraction) - 1);
    float x = field ? ldexpf((float)(ulps + (1u << fraction)), (int)field - (int)bias - (int)fraction) : ldexpf((float)ulps, 1 - (int)bias - (int)fraction);
    if (type == E4M3 ? magnitude == 0x7f : magnitude > 0x7c) x = __builtin_nanf("");
    else if (type == E5M2 && magnitude == 0x7c) x = __builtin_inff();
    return code & 0x80 ? -x : x;
}

// cvt.rn.satfinite: the nearest number's code, ties to the even one; beyond the largest the largest; NaN 0x7f. By search, so that nothing
// is shared with the ways in which kernels and host round.
QUIET u32 code_of(float x, Numbers type) {
    if (x != x) return 0x7f;
    const u32 sign = x < 0 || (x == 0 && 1 / x < 0) ? 0x80 : 0, most = type == E4M3 ? 0x7e : 0x7b;
    const double magnitude = x < 0 ? -(double)x : x;
    u32 low = 0, high = most;
    if (magnitude >= number_of((u8)most, type)) return sign | most;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (number_of((u8)middle, type) <= magnitude) low = middle;
        else high = middle;
    }
    const double down = magnitude - number_of((u8)low, type), up = number_of((u8)high, type) - magnitude;
    return sign | (down < up || (down == up && low % 2 == 0) ? low : high);
}

QUIET_INLINE u32 bytes_of(Numbers type) { return type == BF16 || type == F16 ? 2 : 1; }

// 16 bytes of an operand: the row of 128 (or 64, 32) bytes and where in it, from `k` on. MN-major operands have 16 bits an element.
QUIET_INLINE const u8* chunk(u64 descriptor, bool mn_major, u32 mn, u32 k, u32 size) {
    const u32 mode = (u32)(descriptor >> 62);
    const u32 width = 256u >> mode;
    const u32 leading = (u32)(descriptor >> 16 & 0x3fff) << 4, stride = (u32)(descriptor >> 32 & 0x3fff) << 4;
    u32 at = (u32)(descriptor & 0x3fff) << 4;
    if (mn_major) at += mn / (width / 2) * leading + k / 8 * stride + k % 8 * width + mn % (width / 2) * 2;
    else at += mn / 8 * stride + mn % 8 * width + k * size;
    const u8* p = (const u8*)dynamic_shared() + swizzled(at, width);
    if (!shared_holds(p, 16)) fail("a descriptor that leads outside shared memory");
    return p;
}

QUIET_INLINE float element(const u8* from, u32 e, Numbers type) {
    if (bytes_of(type) == 1) return number_of(from[e], type);
    const u16 low = ((const u16*)from)[e];
    if (type == F16) return _cvtsh_ss(low);
    const u32 bits = (u32)low << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// to[k][mn], from chunks of 16 bytes along K or along M, N; an instruction reads 32 bytes of each K-major row, 64 beside a sparse operand.
QUIET void gather(float* to, u32 pitch, u64 descriptor, bool mn_major, Numbers type, u32 extent, u32 chunks = 2) {
    const u32 size = bytes_of(type), count = 16 / size;
    for (u32 c = 0; c < extent * chunks; ++c) {
        const u32 mn = mn_major ? c % (extent / 8) * 8 : c / chunks, k = mn_major ? c / (extent / 8) : c % chunks * count;
        const u8* from = chunk(descriptor, mn_major, mn, k, size);
        for (u32 e = 0; e < count; ++e) to[mn_major ? k * pitch + mn + e : (k + e) * pitch + mn] = element(from, e, type);
    }
}

// Where the number `at` of the 16 that row r of a sparse operand keeps stands among 32.
QUIET_INLINE u32 kept(const Product& p, u32 r, u32 at) {
    const u32 four = at / 2, thread = r / 16 * 32 + r % 8 * 4 + 2 * (u32)p.selected + four / 4;
    const u32 both = p.places[thread] >> ((r % 16 >= 8 ? 16 : 0) + four % 4 * 4) & 15, first = both & 3, second = both >> 2;
    if (first >= second) fail("places of two kept numbers that are not in order");
    return four * 4 + (at % 2 ? second : first);
}

QUIET_FAST void multiply(const Product& p, Accumulators& acc) {
    static float a[32 * 64], b[32 * 256];
    const u32 n = acc.count * 2, depth = 32 / bytes_of(p.type_a);
    gather(a, 64, p.a, p.mn_major_a, p.type_a, 64);
    gather(b, 256, p.b, p.mn_major_b, p.type_b, n, p.selected < 0 ? 2 : 4);
    for (u32 r = 0; r < 64; ++r) {
        float* __restrict__ sum = &acc.sum[r * n];
        if (!p.accumulate) memset(sum, 0, n * 4);
        for (u32 k = 0; k < depth; ++k) {
            const float x = a[k * 64 + r];
            const float* __restrict__ y = b + (p.selected < 0 ? k : kept(p, r, k)) * 256;
            for (u32 c = 0; c < n; ++c) sum[c] += x * y[c];
        }
    }
}

// Thread l's register i in the 64 x n matrix.
QUIET_INLINE u32 place(u32 l, u32 i, u32 n) { return (l / 32 * 16 + l % 32 / 4 + (i & 2 ? 8 : 0)) * n + i / 4 * 8 + l % 4 * 2 + (i & 1); }

// All 128 threads; true for the last to come, who then says `leave`.
QUIET bool gather_warpgroup(Warpgroup& g, Meeting what) {
    if (block_size.x % 128) fail("a block that is not made of warpgroups");
    if (g.arrived && g.meeting != what) fail("threads of a warpgroup meet in different calls");
    g.meeting = what;
    if (++g.arrived == 128) return true;
    const u32 turn = g.turn;
    while (g.turn == turn) give_way();
    return false;
}
QUIET void leave(Warpgroup& g) {
    g.arrived = 0;
    ++g.turn;
    progress();
}
QUIET_INLINE Warpgroup& my_warpgroup() { return hopper().groups[thread_index.x / 128]; }

QUIET void wgmma_fence() {
    Warpgroup& g = my_warpgroup();
    if (!gather_warpgroup(g, FENCE)) return;
    g.fenced = true;
    leave(g);
}

QUIET void wgmma(float* d, u32 count, Product p, u32 places = 0) {
    Warpgroup& g = my_warpgroup();
    if (p.a >> 62 == 0 || p.b >> 62 == 0 || ((p.a | p.b) >> 49 & 7)) fail("a descriptor without swizzle or with a base offset: not read here");
    const Product& n = g.next;
    if (g.arrived && (n.a != p.a || n.b != p.b || n.accumulate != p.accumulate || n.selected != p.selected)) fail("threads of a warpgroup give different descriptors");
    g.next = p;
    g.d[thread_index.x % 128] = d;
    g.places[thread_index.x % 128] = places;
    if (!gather_warpgroup(g, PRODUCT)) return;
    p.d = g.d[0];
    if (p.selected >= 0) p.places.assign(g.places, g.places + 128);
    bool known = false;
    for (Accumulators& acc : g.live) known |= acc.d[0] == p.d;
    if (!known) {
        if (!g.fenced) fail("wgmma on accumulators that were touched since the last wgmma_fence");
        g.live.push_back(Accumulators{{}, count, std::vector<float>(128 * count)});
        for (u32 l = 0; l < 128; ++l) {
            g.live.back().d[l] = g.d[l];
            for (u32 i = 0; i < count; ++i) {
                g.live.back().sum[place(l, i, count * 2)] = g.d[l][i];
                memcpy(&g.d[l][i], &UNREADABLE, 4);
            }
        }
    }
    g.open.push_back(p);
    leave(g);
}

QUIET void wgmma_commit() {
    Warpgroup& g = my_warpgroup();
    if (!gather_warpgroup(g, COMMIT)) return;
    g.groups.push_back(g.open);
    g.open.clear();
    leave(g);
}

QUIET void wgmma_wait(u32 kept) {
    Warpgroup& g = my_warpgroup();
    if (!gather_warpgroup(g, WAIT)) return;
    while (g.groups.size() > kept) {
        for (const Product& p : g.groups.front())
            for (Accumulators& acc : g.live)
                if (acc.d[0] == p.d) multiply(p, acc);
        g.groups.erase(g.groups.begin());
    }
    for (size_t k = g.live.size(); k-- > 0;) {
        Accumulators& acc = g.live[k];
        bool pending = false;
        for (const Product& p : g.open) pending |= p.d == acc.d[0];
        for (const auto& group : g.groups)
            for (const Product& p : group) pending |= p.d == acc.d[0];
        if (pending) continue;
        for (u32 l = 0; l < 128; ++l)
            for (u32 i = 0; i < acc.count; ++i) {
                if (memcmp(&acc.d[l][i], &UNREADABLE, 4)) fail("an accumulator was written while its product was under way");
                acc.d[l][i] = acc.sum[place(l, i, acc.count * 2)];
            }
        g.live.erase(g.live.begin() + k);
        g.fenced = false;
    }
    leave(g);
}

QUIET void set_registers(u32 registers) {
    Warpgroup& g = my_warpgroup();
    if (!gather_warpgroup(g, REGISTERS)) return;
    g.registers = registers;
    leave(g);
}
#undef QUIET
#undef QUIET_INLINE
#undef QUIET_FAST
}  // namespace emulated

DEVICE u32 shared_address(const void* p) { return (u32)((const u8*)p - (const u8*)emulated::dynamic_shared()); }

DEVICE void mbarrier_init(u64* b, u32 count) { emulated::mbarrier_init(b, count); }
DEVICE void mbarrier_init_fence() { emulated::hopper().unfenced = false; }
DEVICE void mbarrier_arrive(u64* b) { emulated::mbarrier_arrive(b, 0); }
DEVICE void mbarrier_arrive_expect(u64* b, u32 bytes) { emulated::mbarrier_arrive(b, bytes); }
DEVICE void mbarrier_wait(u64* b, u32 parity) { emulated::mbarrier_wait(b, parity); }
DEVICE void shared_fence_async() {}
DEVICE void tma_load_2d(void* shared, const TensorMap* map, u64* barrier, i32 x, i32 y) {
    emulated::tma_load(2, shared, map, barrier, {{}, nullptr, nullptr, {x, y}});
}
DEVICE void tma_load_3d(void* shared, const TensorMap* map, u64* barrier, i32 x, i32 y, i32 z) {
    emulated::tma_load(3, shared, map, barrier, {{}, nullptr, nullptr, {x, y, z}});
}
DEVICE void tma_load_4d(void* shared, const TensorMap* map, u64* barrier, i32 x, i32 y, i32 z, i32 w) {
    emulated::tma_load(4, shared, map, barrier, {{}, nullptr, nullptr, {x, y, z, w}});
}
DEVICE void tma_prefetch_map(const TensorMap* map) { emulated::map_of(map); }

template <int COUNT> DEVICE void registers_shrink() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "setmaxnreg");
    emulated::set_registers(COUNT);
}
template <int COUNT> DEVICE void registers_grow() { registers_shrink<COUNT>(); }

DEVICE void wgmma_fence() { emulated::wgmma_fence(); }
DEVICE void wgmma_commit() { emulated::wgmma_commit(); }
template <int KEPT> DEVICE void wgmma_wait() { emulated::wgmma_wait(KEPT); }
template <int COUNT> DEVICE void wgmma_wait_for(float (&)[COUNT]) { emulated::wgmma_wait(0); }
template <int UNITS, int COUNT> DEVICE void wgmma_wait_for(float (&)[UNITS][COUNT]) { emulated::wgmma_wait(0); }

template <class T> struct NumbersOf { static constexpr emulated::Numbers value = emulated::BF16; };
template <> struct NumbersOf<f16> { static constexpr emulated::Numbers value = emulated::F16; };
template <bool MN_MAJOR_A, bool MN_MAJOR_B, class T, int COUNT> DEVICE void wgmma(float (&d)[COUNT], u64 a, u64 b, bool accumulate) {
    static_assert(sizeof(T) == 2 && (COUNT == 32 || COUNT == 64 || COUNT == 128), "one of the shapes in hopper.cuh");
    emulated::wgmma(d, COUNT, emulated::Product{a, b, accumulate, MN_MAJOR_A, MN_MAJOR_B, NumbersOf<T>::value, NumbersOf<T>::value, nullptr, -1, {}});
}

template <class T> DEVICE u32 pack_pair(float low, float high) { return from_f32<T>(low).bits | (u32)from_f32<T>(high).bits << 16; }
