// Runs kernels on the CPU and watches them. Compiled without instrumentation; the kernels are compiled with -fsanitize=thread but
// linked with the hooks at the end of this file in place of that sanitizer's library, so every access of theirs is seen.
//
// Found: deadlocks, collectives that lanes reach at different places, reads and writes outside the buffers of a launch, races in
// shared memory (two threads, one barrier interval, one of them writes), blocks that race in global memory, uninitialised shared
// memory (poison), reads of a copy before it was waited for. Counted: sectors and bytes of global memory, bank conflicts, barriers.
// Not found: real timing, occupancy, and a wrong belief of ours about an instruction.
// With ADVISOR_UNWATCHED, and kernels without those hooks, accesses are neither checked nor counted: for long runs, and for the
// sanitizers of the compiler, which then watch the kernels and this file: address (shared arrays and buffers have poison between them),
// undefined behaviour, and threads (of the host).
#include "emulator.h"
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {
Three thread_index, block_index, block_size, grid_size;

namespace {
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 256 << 10;          // variables have space around them
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr size_t SHARED_LIMIT = 232448;      // 227 KiB, the most a block of sm_90 may ask for
constexpr size_t GAP = 256;                  // between two shared arrays; nothing may be read or written there
constexpr size_t BESIDE = 4096;              // around a buffer; callers leave this and more unused
constexpr u8 POISON = 0xff;                  // NaN as f16, bf16, f32
#ifdef ADVISOR_UNWATCHED
constexpr bool WATCHED = false;
#else
constexpr bool WATCHED = true;
#endif

enum class State { Ready, AtBlock, AtWarp, Done };

struct Copy { u8* to; u8 bytes[16]; u32 length; };

struct Fiber {
    void* stack_pointer;
    u32 id;
    State state;
    const void* site;
    Collective collective;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
    std::unordered_map<const void*, u32> visits;
};

struct Warp {
    const void* up[32];
    u32 arrived;
    u32 order;  // ordering syncs so far
};

struct Region { uintptr_t begin, end; bool written; };

constexpr u16 SEVERAL_WARPS = 0xffff;

// What a byte of shared memory saw last.
struct Shadow { u32 block_epoch, warp_epoch; u16 thread; u8 kind; };  // kind: 0 untouched, 1 read by one, 2 read by several, 3 written

// One access of a warp: lanes that are at the same place for the same time.
struct Access { u32 lanes; bool shared; u32 size; uintptr_t at[32]; };

std::mutex one;
std::vector<Fiber> fibers;
// Not on the heap: kernels read their peers' pointers here, and the heap may lie beside a watched buffer.
Warp warps[32];
u32 current, alive, waiting, count, block_epoch;
bool failed, block_used_atomics, by_mbarriers;
u64 gave_way, progressed, serial;
std::vector<std::pair<Beside, Beside>> neighbours;  // round, end
std::string reason, kernel_name;
u8* stacks;
u8* shared_memory;
size_t shared_used, dynamic_offset;
size_t shared_dirty = SHARED_LIMIT;  // what the blocks so far may have touched since it was last poisoned
std::vector<std::pair<const void*, size_t>> shared_arrays;   // key, offset
std::vector<std::pair<size_t, size_t>> shared_pieces;        // offset, bytes
std::vector<Shadow> shadow;
std::vector<Region> regions;
std::unordered_map<uintptr_t, u32> writer_block, reader_block;  // granules of 4 bytes to block + 1
bool watch_global_races = true;
std::unordered_map<u64, Access> pending;                     // (site, visit, warp)
Thunk thunk;
const void *kernel_pointer, *argument_pointer;
u32 policy;
u64 random_state;
void* main_stack_pointer;

struct Counts {
    u64 read_bytes, written_bytes, sectors, ideal_sectors, half_lines, ideal_half_lines, shared_accesses, shared_wavefronts, barriers;
} counts;

extern "C" void emulated_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(.text
.globl emulated_switch
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "the emulator switches fibers on x86-64 only"
#endif

// What the address sanitizer must be told of stacks and of memory that is not to be touched.
#ifdef __SANITIZE_ADDRESS__
const void* main_stack;
size_t main_stack_size;
void leaves_for(const void* bottom, size_t size) { __sanitizer_start_switch_fiber(nullptr, bottom, size); }
void arrived_in_fiber() { __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size); }
void arrived_in_main() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
void leaves_for_main() { leaves_for(main_stack, main_stack_size); }
void forbid(const void* at, size_t bytes) { __asan_poison_memory_region(at, bytes); }
void permit(const void* at, size_t bytes) { __asan_unpoison_memory_region(at, bytes); }
#else
void leaves_for(const void*, size_t) {}
void arrived_in_fiber() {}
void arrived_in_main() {}
void leaves_for_main() {}
void forbid(const void*, size_t) {}
void permit(const void*, size_t) {}
#endif

void to_main() {
    leaves_for_main();
    emulated_switch(&fibers[current].stack_pointer, main_stack_pointer);
    arrived_in_fiber();
}

u64 random_next() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

const char* name_of(Collective what) {
    static const char* names[] = {"", "block_sync", "warp_sync", "shuffle", "ballot", "load_matrix", "mma"};
    return names[what];
}

void report(const std::string& text) {
    if (!failed) {
        reason = kernel_name + ": " + text + " (block " + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
                 std::to_string(block_index.z) + ", thread " + std::to_string(current) + ")";
    }
    failed = true;
}

void entry() {
    arrived_in_fiber();
    thunk(kernel_pointer, argument_pointer);
    Fiber& f = fibers[current];
    if (!f.open.empty() || !f.groups.empty()) report("a thread ended with copies under way");
    f.state = State::Done;
    --alive;
    to_main();
    __builtin_trap();
}

void resume(u32 i) {
    current = i;
    const u32 x = block_size.x, y = block_size.y;
    thread_index = {i % x, i / x % y, i / (x * y)};
    leaves_for(stacks + i * STACK, STACK);
    emulated_switch(&main_stack_pointer, fibers[i].stack_pointer);
    arrived_in_main();
}

void release_block() {
    if (!waiting || waiting != alive) return;
    const void* site = nullptr;
    for (Fiber& f : fibers) {
        if (f.state != State::AtBlock) continue;
        if (site && f.site != site) report("threads of a block wait at different calls of block_sync");
        site = f.site;
    }
    if (alive != count) report("block_sync after " + std::to_string(count - alive) + " threads have left");
    for (Fiber& f : fibers)
        if (f.state == State::AtBlock) f.state = State::Ready;
    waiting = 0;
    ++block_epoch;
    ++counts.barriers;
}

// Wavefronts of one warp's access to shared memory: a phase serves 32 banks of 4 bytes; wide accesses go in phases of 128 bytes.
void count_access(const Access& a) {
    if (!a.shared) {
        // Pieces of memory that hold what the lanes ask for.
        auto pieces = [&](u32 bytes) {
            uintptr_t found[128];
            u64 n = 0;
            for (u32 l = 0; l < 32; ++l) {
                if (!(a.lanes >> l & 1)) continue;
                for (uintptr_t s = a.at[l] / bytes; s <= (a.at[l] + a.size - 1) / bytes; ++s) {
                    bool known = false;
                    for (u64 k = 0; k < n && !known; ++k) known = found[k] == s;
                    if (!known && n < 128) found[n++] = s;
                }
            }
            return n;
        };
        // Distinct bytes, so that a value that all lanes read counts once.
        uintptr_t distinct[32];
        u32 m = 0;
        for (u32 l = 0; l < 32; ++l) {
            if (!(a.lanes >> l & 1)) continue;
            bool known = false;
            for (u32 k = 0; k < m && !known; ++k) known = distinct[k] == a.at[l];
            if (!known) distinct[m++] = a.at[l];
        }
        counts.sectors += pieces(32);
        counts.ideal_sectors += (m * a.size + 31) / 32;
        counts.half_lines += pieces(64);
        counts.ideal_half_lines += (m * a.size + 63) / 64;
        return;
    }
    const u32 lanes_a_phase = a.size >= 16 ? 8 : a.size == 8 ? 16 : 32;
    for (u32 first = 0; first < 32; first += lanes_a_phase) {
        uintptr_t words[32][32];
        u32 in_bank[32] = {0}, most = 0;
        for (u32 l = first; l < first + lanes_a_phase; ++l) {
            if (!(a.lanes >> l & 1)) continue;
            for (uintptr_t w = a.at[l] / 4; w <= (a.at[l] + a.size - 1) / 4; ++w) {
                const u32 bank = w % 32;
                bool known = false;
                for (u32 k = 0; k < in_bank[bank] && !known; ++k) known = words[bank][k] == w;
                if (!known && in_bank[bank] < 32) words[bank][in_bank[bank]++] = w;
                most = in_bank[bank] > most ? in_bank[bank] : most;
            }
        }
        if (most) {
            ++counts.shared_accesses;
            counts.shared_wavefronts += most;
        }
    }
}

void note_access(const void* site, uintptr_t at, u32 size, bool shared) {
    Fiber& f = fibers[current];
    const u32 visit = f.visits[site]++;
    const u64 key = (u64)(uintptr_t)site * 0x9e3779b97f4a7c15ull + (u64)visit * 32 + f.id / 32;
    Access& a = pending[key];
    if (!a.lanes) a = Access{0, shared, size, {}};
    a.lanes |= 1u << (f.id & 31);
    a.at[f.id & 31] = at;
    if (a.lanes == 0xffffffffu) {
        count_access(a);
        pending.erase(key);
    }
}

bool in_shared(uintptr_t at) { return at - (uintptr_t)shared_memory < SHARED_LIMIT; }

void watch_shared(uintptr_t at, u32 size, bool write) {
    if (!WATCHED) return;
    const size_t offset = at - (uintptr_t)shared_memory;
    bool inside = false;
    for (auto& piece : shared_pieces) inside |= offset >= piece.first && offset + size <= piece.first + piece.second;
    if (!inside) fail(write ? "a write outside every shared array" : "a read outside every shared array");
    const u32 me = fibers[current].id, order = warps[me / 32].order;
    for (size_t k = offset; k < offset + size; ++k) {
        Shadow& s = shadow[k];
        const bool current_interval = s.kind && s.block_epoch == block_epoch;
        const bool ordered_by_warp = s.thread != SEVERAL_WARPS && s.thread / 32 == me / 32 && s.warp_epoch != order;
        const bool others = (s.kind == 2 || s.thread != me) && (!by_mbarriers || s.thread / 32 == me / 32);
        if (current_interval && others && !ordered_by_warp && (write || s.kind == 3))
            fail("a race in shared memory: two threads, no barrier between them, one writes");
        if (write) s = {block_epoch, order, (u16)me, 3};
        else if (!current_interval || (s.kind == 1 && (s.thread == me || ordered_by_warp))) s = {block_epoch, order, (u16)me, 1};
        else if (s.kind != 3) s = {block_epoch, order, s.thread != SEVERAL_WARPS && s.thread / 32 == me / 32 ? (u16)me : SEVERAL_WARPS, 2};
    }
}

void watch_global(uintptr_t at, u32 size, bool write) {
    const Region* region = nullptr;
    for (const Region& r : regions)
        if (at >= r.begin && at < r.end) region = &r;
    if (!region) return;  // a variable of the host's stack
    if (at + size > region->end) fail(write ? "a write beyond the end of a buffer" : "a read beyond the end of a buffer");
    (write ? counts.written_bytes : counts.read_bytes) += size;
    if (!watch_global_races || block_used_atomics) return;
    const u32 me = block_index.x + grid_size.x * (block_index.y + grid_size.y * block_index.z) + 1;
    for (uintptr_t granule = at / 4; granule <= (at + size - 1) / 4; ++granule) {
        // Two blocks may share a granule of smaller elements without sharing an element.
        if (size < 4) break;
        auto found = writer_block.find(granule);
        if (found != writer_block.end() && found->second != me) fail("blocks race in global memory: one writes, another touches the same element");
        if (write) {
            auto read = reader_block.find(granule);
            if (read != reader_block.end() && read->second != me) fail("blocks race in global memory: one reads what another writes");
            writer_block[granule] = me;
        } else {
            reader_block[granule] = me;
        }
    }
}

void access(const void* site, const void* address, u32 size, bool write) {
    if (!WATCHED || !alive || failed) return;
    const uintptr_t at = (uintptr_t)address;
    if (in_shared(at)) {
        watch_shared(at, size, write);
        note_access(site, at, size, true);
        return;
    }
    const Region* beside = nullptr;
    for (const Region& r : regions) {
        if (at >= r.begin && at < r.end) {
            watch_global(at, size, write);
            note_access(site, at, size, false);
            return;
        }
        if (at >= r.begin - BESIDE && at < r.end + BESIDE) beside = &r;
    }
    if (beside) fail(write ? "a write beside a buffer" : "a read beside a buffer");
}

int run_block() {
    permit(stacks, count * STACK);  // what fibers that never ended have left
    permit(shared_memory, SHARED_LIMIT);
    memset(shared_memory, POISON, shared_dirty);
    forbid(shared_memory, SHARED_LIMIT);
    permit(shared_memory + dynamic_offset, shared_used);
    std::fill(shadow.begin(), shadow.begin() + (WATCHED ? shared_dirty : 0), Shadow{});
    shared_arrays.clear();
    for (Warp& w : warps) w = Warp{};
    alive = count;
    waiting = 0;
    block_epoch = 0;
    block_used_atomics = by_mbarriers = false;
    neighbours.clear();
    ++serial;
    u32 idle = 0;
    for (u32 i = 0; i < count; ++i) {
        Fiber& f = fibers[i];
        f.id = i;
        f.state = State::Ready;
        f.groups.clear();
        f.open.clear();
        f.visits.clear();
        void** top = (void**)((uintptr_t)(stacks + (i + 1) * STACK) & ~15ull);
        *--top = nullptr;
        *--top = (void*)entry;
        for (int k = 0; k < 6; ++k) *--top = nullptr;
        f.stack_pointer = top;
    }
    std::vector<u32> order(count);
    for (u32 i = 0; i < count; ++i) order[i] = policy == 1 ? count - 1 - i : i;
    while (alive && !failed) {
        bool moved = false;
        const u64 before = progressed;
        u64 waited = gave_way;
        if (policy > 1)
            for (u32 i = count - 1; i > 0; --i) std::swap(order[i], order[random_next() % (i + 1)]);
        for (u32 i : order) {
            if (fibers[i].state != State::Ready || failed) continue;
            moved = true;
            ++waited;
            resume(i);
        }
        release_block();
        for (size_t k = 0; k < neighbours.size() && !failed; ++k)
            if (const char* why = neighbours[k].first()) report(why);
        idle = moved && waited == gave_way && progressed == before ? idle + 1 : 0;
        if (idle > 400) report("a hang: every thread waits for something that never comes");
        bool ready = false;
        for (Fiber& f : fibers) ready |= f.state == State::Ready;
        if (!moved && alive && !ready) {
            std::string text = "deadlock:";
            u32 shown = 0;
            for (Fiber& f : fibers)
                if ((f.state == State::AtBlock || f.state == State::AtWarp) && shown++ < 4)
                    text += " thread " + std::to_string(f.id) + " waits at " + name_of(f.state == State::AtBlock ? BLOCK_BARRIER : f.collective) + ";";
            report(text);
        }
    }
    for (size_t k = 0; k < neighbours.size() && !failed; ++k)
        if (const char* why = neighbours[k].second()) report(why);
    for (auto& entry : pending) count_access(entry.second);
    pending.clear();
    shared_dirty = shared_used;
    return failed;
}

void arrive(Collective what) {
    Fiber& f = fibers[current];
    Warp& w = warps[f.id / 32];
    const u32 base = f.id & ~31u;
    f.collective = what;
    w.arrived |= 1u << (f.id & 31);
    u32 need = 0;
    for (u32 l = 0; l < 32 && base + l < count; ++l) need |= fibers[base + l].state != State::Done ? 1u << l : 0;
    if ((w.arrived & need) != need) {
        f.state = State::AtWarp;
        to_main();
        return;
    }
    for (u32 l = 0; l < 32; ++l) {
        if (!(need >> l & 1)) continue;
        Fiber& peer = fibers[base + l];
        if (peer.collective != what) report(std::string("lanes of a warp meet in different calls: ") + name_of(what) + " and " + name_of(peer.collective));
        peer.state = State::Ready;
    }
    w.arrived = 0;
    w.order += what == WARP_SYNC;
    if (failed) to_main();
}
}  // namespace

void fail(const char* what) {
    report(what);
    to_main();
    __builtin_trap();
}

void block_barrier(const void* site) {
    Fiber& f = fibers[current];
    f.state = State::AtBlock;
    f.site = site;
    ++waiting;
    to_main();
}

const void* const* meet(Collective what, const void* mine) {
    Warp& w = warps[fibers[current].id / 32];
    const u32 l = fibers[current].id & 31;
    w.up[l] = mine;
    arrive(what);
    return w.up;
}

void part(Collective what) {
    arrive(what);
    warps[fibers[current].id / 32].up[fibers[current].id & 31] = nullptr;
}

void order_warp() { arrive(WARP_SYNC); }

void order_device() {}

void* static_shared(const void* key, size_t bytes) {
    for (auto& array : shared_arrays)
        if (array.first == key) return shared_memory + array.second;
    const size_t offset = (shared_used + GAP + 127) & ~(size_t)127;
    if (offset + bytes > SHARED_LIMIT) fail("more shared memory than a block has");
    shared_arrays.push_back({key, offset});
    bool known = false;
    for (auto& piece : shared_pieces) known |= piece.first == offset && piece.second == bytes;
    if (!known) shared_pieces.push_back({offset, bytes});
    shared_used = offset + bytes;
    permit(shared_memory + offset, bytes);
    return shared_memory + offset;
}

void* dynamic_shared() { return shared_memory + dynamic_offset; }

void copy_async(void* shared, const void* global, u32 bytes, u32 whole) {
    if (((uintptr_t)shared | (uintptr_t)global) & (whole - 1)) fail("an asynchronous copy whose address is not a multiple of its size");
    if (!in_shared((uintptr_t)shared)) fail("an asynchronous copy to somewhere else than shared memory");
    Copy copy{(u8*)shared, {0}, whole};
    if (bytes) {
        access(__builtin_return_address(0), global, bytes, false);
        memcpy(copy.bytes, global, bytes);
    }
    access((const u8*)__builtin_return_address(0) + 1, shared, whole, true);
    memset(shared, POISON, whole);  // unreadable until it lands
    fibers[current].open.push_back(copy);
}

void copy_async_commit() {
    Fiber& f = fibers[current];
    f.groups.push_back(std::move(f.open));
    f.open.clear();
}

void copy_async_wait(int keep) {
    Fiber& f = fibers[current];
    while ((int)f.groups.size() > keep) {
        for (Copy& copy : f.groups.front()) {
            // It lands now: whoever reads it must be behind a barrier from here.
            watch_shared((uintptr_t)copy.to, copy.length, true);
            memcpy(copy.to, copy.bytes, copy.length);
        }
        f.groups.erase(f.groups.begin());
    }
}

void atomic_access(void* address, u32 bytes) {
    const uintptr_t at = (uintptr_t)address;
    block_used_atomics |= !in_shared(at);
    if (in_shared(at)) return;
    for (const Region& r : regions)
        if (at >= r.begin && at + bytes <= r.end) return;
    fail("an atomic outside every buffer");
}

void shared_read(const void* address, u32 bytes) { access(__builtin_return_address(0), address, bytes, false); }

void give_way() {
    ++gave_way;
    to_main();
}

void progress() { ++progressed; }

void beside(Beside round, Beside end) { neighbours.push_back({round, end}); }

u64 block_serial() { return serial; }

u32 block_syncs() { return block_epoch; }

u64 random_number() { return random_next(); }

void ordered_by_mbarriers() { by_mbarriers = true; }

bool shared_holds(const void* address, size_t bytes) {
    const size_t offset = (uintptr_t)address - (uintptr_t)shared_memory;
    bool inside = false;
    for (auto& piece : shared_pieces) inside |= offset >= piece.first && offset + bytes <= piece.first + piece.second;
    return inside;
}

void bulk_access(const void* address, u32 bytes, bool write) {
    const uintptr_t at = (uintptr_t)address;
    bool inside = regions.empty();
    for (const Region& r : regions) inside |= at >= r.begin && at + bytes <= r.end;
    if (!inside) fail("a copy of a box outside every buffer");
    (write ? counts.written_bytes : counts.read_bytes) += bytes;
    counts.sectors += (at + bytes - 1) / 32 - at / 32 + 1;
    counts.ideal_sectors += (bytes + 31) / 32;
    counts.half_lines += (at + bytes - 1) / 64 - at / 64 + 1;
    counts.ideal_half_lines += (bytes + 63) / 64;
}

int run(const char* name, const u32* grid, const u32* block, size_t dynamic_bytes, Thunk call, const void* kernel, const void* arguments, size_t argument_bytes) {
    std::lock_guard<std::mutex> guard(one);
    kernel_name = name;
    failed = false;
    reason.clear();
    counts = Counts{};
    count = block[0] * block[1] * block[2];
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    block_index = {0, 0, 0};
    current = 0;
    if (count < 1 || count > 1024 || !grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535) {
        report("a grid or block that no GPU takes");
        return 1;
    }
    if (!stacks) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        stacks = (u8*)mmap(nullptr, STACK * 1024, PROT_READ | PROT_WRITE, flags, -1, 0);
        u8* whole = (u8*)mmap(nullptr, SHARED_LIMIT + 8192, PROT_READ | PROT_WRITE, flags, -1, 0);
        shared_memory = (u8*)(((uintptr_t)whole + 1023) & ~(uintptr_t)1023);
        shadow.resize(SHARED_LIMIT);
    }
    fibers.resize(count);
    for (Warp& w : warps) w = Warp();
    dynamic_offset = 0;
    thunk = call;
    kernel_pointer = kernel;
    // The caller's struct may lie beside a watched buffer.
    alignas(64) static u8 struct_copy[4096];
    memcpy(struct_copy, arguments, argument_bytes < sizeof struct_copy ? argument_bytes : sizeof struct_copy);
    argument_pointer = struct_copy;
    random_state = 0x9e3779b97f4a7c15ull ^ ((u64)policy << 20);
    writer_block.clear();
    reader_block.clear();
    if (dynamic_bytes > SHARED_LIMIT) {
        report("more shared memory than a block has");
        return 1;
    }
    const u32 total = grid[0] * grid[1] * grid[2];
    for (u32 i = 0; i < total && !failed; ++i) {
        const u32 k = policy == 1 ? total - 1 - i : i;
        block_index = {k % grid[0], k / grid[0] % grid[1], k / (grid[0] * grid[1])};
        shared_pieces.assign(1, {0, dynamic_bytes});
        shared_used = dynamic_bytes;
        run_block();
    }
    alive = 0;
    return failed;
}
}  // namespace emulated

using namespace emulated;

extern "C" {
const char* emulator_error() { return reason.c_str(); }
// 0: threads and blocks in order, 1: in reverse, any other: threads shuffled by this seed.
void emulator_schedule(u32 which) { policy = which; }
// Registers a buffer; memory that is not registered is not watched.
void emulator_add_buffer(u64 address, u64 bytes) {
    std::lock_guard<std::mutex> guard(one);
    regions.push_back({(uintptr_t)address, (uintptr_t)(address + bytes), false});
    forbid((const void*)(address - BESIDE), BESIDE);
    forbid((const void*)(address + bytes), BESIDE);
}
void emulator_remove_buffer(u64 address) {
    std::lock_guard<std::mutex> guard(one);
    for (size_t k = 0; k < regions.size(); ++k)
        if (regions[k].begin == address) {
            permit((const void*)(address - BESIDE), regions[k].end - address + 2 * BESIDE);
            regions.erase(regions.begin() + k);
            return;
        }
}
// read bytes, written bytes, sectors touched, fewest sectors for the same bytes, the same of half-lines (64 bytes), shared accesses, their wavefronts, barriers
void emulator_counts(u64* out) { memcpy(out, &counts, sizeof counts); }

#ifndef ADVISOR_UNWATCHED
// The hooks that -fsanitize=thread puts before every access.
#define HOOK(size)                                                                                           \
    void __tsan_read##size(void* p) { access(__builtin_return_address(0), p, size, false); }                 \
    void __tsan_write##size(void* p) { access(__builtin_return_address(0), p, size, true); }                 \
    void __tsan_volatile_read##size(void*) {}                                                                \
    void __tsan_volatile_write##size(void*) {}                                                               \
    void __tsan_unaligned_read##size(void* p) {                                                              \
        if ((uintptr_t)p % (size) && alive && in_shared((uintptr_t)p)) fail("an access that is not aligned"); \
        access(__builtin_return_address(0), p, size, false);                                                 \
    }                                                                                                        \
    void __tsan_unaligned_write##size(void* p) { access(__builtin_return_address(0), p, size, true); }
HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
void __tsan_read_range(void* p, unsigned long n) { access(__builtin_return_address(0), p, (u32)n, false); }
void __tsan_write_range(void* p, unsigned long n) { access(__builtin_return_address(0), p, (u32)n, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#endif
}
