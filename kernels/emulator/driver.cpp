// A libcuda.so.1 for machines without a GPU: the calls of CUDA's driver that src/backend/cuda/driver.rs makes, over the emulated kernels,
// so that tests run the door to the driver itself, and not a twin of it.
//
// Refused as the driver refuses: images that are no cubin or PTX or not for this device, entries that their image lacks, blocks and
// shared memory beyond what the image and the device allow, copies outside live allocations, calls without a context, page-locked memory
// freed twice, times between events that were not reached, whatever a capture forbids. What an access check of the emulator finds breaks
// the context, as a fault does; its words go to stderr. New memory holds 0xff, never zeros.
// As late as a device may be: what a stream is asked for happens when somebody waits for it, and not before. So a missing wait is found:
// page-locked memory that is changed or freed before a queued copy has read it breaks the context. A copy from pageable memory waits
// for the stream, as it may with the driver.
// The same file holds the calls of cuBLAS and NCCL that src/backend/cuda/ makes, so that they can queue work on a stream.
// Not like the driver: a capture is a list, so a missing dependency between streams is not found. The code that runs is the emulator's;
// of an image only its headers are read.
//
// ADVISOR_STANDIN_CAPABILITY (9.0), ADVISOR_STANDIN_DEVICES (1) and ADVISOR_STANDIN_HOST (0, a number in the names of devices) say what is
// pretended; ADVISOR_STANDIN_LOG names a file that gets a line for each kind of event with its count, and what is still alive, when the
// process ends.
#include "common.cuh"
#include "hopper.cuh"
#include "emulator/exchanges.h"
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>

extern "C" const char* emulator_error();
extern "C" void emulator_add_buffer(u64 address, u64 bytes);
extern "C" void emulator_remove_buffer(u64 address);

namespace {
// Values of cuda.h.
enum Code {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_UNMATCHED = 903,
};
const std::map<int, const char*> NAMES = {
    {SUCCESS, "CUDA_SUCCESS"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
    {NOT_READY, "CUDA_ERROR_NOT_READY"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"},
};

constexpr u32 MULTIPROCESSORS = 4;
constexpr u32 SHARED_WITHOUT_ASKING = 48 << 10;
constexpr u32 SHARED_LIMIT = 232448;       // 227 KiB
constexpr u64 MEMORY = 4ull << 30;
constexpr size_t MOST_EVENTS = 2048;       // of a context; a device has some limit
constexpr size_t APART = 8192;             // the emulator takes what lies within a page of a buffer for a stray access of it
constexpr size_t ALIGNMENT = 512;          // the driver promises 256 and gives 512

typedef int (*Emulate)(const u32* grid, const u32* block, size_t dynamic_bytes, const void* arguments);

// One kernel of an image.
struct Entry {
    u32 static_shared = 0;
    u32 most_threads = 1024;
    u32 parameter_bytes = 0;  // 0: the image does not say (PTX)
};
struct Context;
struct Module {
    Context* context;
    std::map<std::string, Entry> entries;
};
struct Function {
    Module* module;
    Entry entry;
    Emulate emulate;
    u32 parameter_bytes;
    u32 dynamic_limit;
};
// Something a stream is asked for.
typedef std::function<void(Context&)> Work;
struct Graph { std::vector<Work> nodes; };
struct Stream {
    Context* context;
    bool capturing = false, invalidated = false;
    int mode = 0;
    std::thread::id thread;
    std::vector<Work> captured;
    std::deque<Work> waiting;  // asked for and not done
    bool busy = false;         // a thread gets on with it
};
typedef std::chrono::steady_clock Clock;
struct Event {
    Stream* stream = nullptr;
    bool has_time = true;
    u64 recorded = 0, reached = 0;  // how often
    Clock::time_point at;
};
struct Allocation { u8* whole; size_t reserved, bytes; };
struct HostAllocation { std::unique_ptr<u8[]> memory; size_t bytes; u64 readers; };
struct Context {
    int device;
    int retained = 0;
    int broken = SUCCESS;  // a fault stays until the context goes
    u64 used = 0;
    std::map<u64, Allocation> memory;
    std::map<const u8*, HostAllocation> host;  // page-locked
    std::map<Module*, std::unique_ptr<Module>> modules;
    std::map<Function*, std::unique_ptr<Function>> functions;
    std::map<Stream*, std::unique_ptr<Stream>> streams;
    std::map<Event*, std::shared_ptr<Event>> events;  // work that waits keeps an event that was destroyed
};

struct State {
    std::recursive_mutex one;
    bool initialised = false;
    u32 major = 9, minor = 0;
    std::vector<Context> contexts;
    std::map<Graph*, std::shared_ptr<Graph>> graphs, executables;
    std::map<std::string, u64> counts;
};
// Never destroyed: threads may still call while the process ends.
State& state() {
    static State& only = *new State;
    return only;
}
thread_local Context* current = nullptr;

typedef std::lock_guard<std::recursive_mutex> Guard;

void count(const char* what, u64 by = 1) { state().counts[what] += by; }

template <class T, class Kept> bool holds(const std::map<T*, Kept>& all, T* handle) { return all.count(handle) != 0; }

// Whether calls may be made at all: initialised, a context current and alive and not broken.
int usable() {
    if (!state().initialised) return NOT_INITIALIZED;
    if (!current || !current->retained) return INVALID_CONTEXT;
    return current->broken;
}


enum Mode { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

// Calls that may not stand beside a capture, by its mode: what was captured is lost.
int forbidden_in_capture() {
    int code = SUCCESS;
    for (Context& context : state().contexts)
        for (auto& stream : context.streams) {
            const bool ours = stream.second->mode == GLOBAL || (stream.second->mode == THREAD_LOCAL && stream.second->thread == std::this_thread::get_id());
            if (!stream.second->capturing || !ours) continue;
            stream.second->invalidated = true;
            code = STREAM_CAPTURE_UNSUPPORTED;
        }
    return code;
}

// The stream, if work may be queued on it. No stream of ours is the null one: it would wait for all others.
int stream_of(Stream* handle, Stream*& out) {
    if (!holds(current->streams, handle)) return INVALID_HANDLE;
    out = handle;
    return handle->invalidated ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}

bool in_memory(u64 address, size_t bytes) {
    auto next = current->memory.upper_bound(address);
    if (next == current->memory.begin()) return false;
    auto found = std::prev(next);
    return address - found->first <= found->second.bytes && bytes <= found->second.bytes - (address - found->first);
}

// What a cubin says of its kernels: `.text.NAME` is one, `.nv.shared.NAME` has its static shared memory, `.nv.info.NAME` is a list of
// attributes (format, number, then 16 bits of value, or of the size of what follows).
int read_cubin(const u8* image, std::map<std::string, Entry>& entries) {
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    constexpr u16 CUDA = 190;
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != CUDA || header.e_shentsize != sizeof(Elf64_Shdr)) return INVALID_IMAGE;
    const u32 target = header.e_flags & 0xff, here = state().major * 10 + state().minor;
    const bool exactly = header.e_flags & 0x800;  // sm_90a
    if (exactly ? target != here : target / 10 != here / 10 || target > here) return NO_BINARY_FOR_GPU;
    const Elf64_Shdr* sections = (const Elf64_Shdr*)(image + header.e_shoff);
    const char* names = (const char*)image + sections[header.e_shstrndx].sh_offset;
    auto named = [&](u32 k, const std::string& prefix) -> const char* {
        const char* name = names + sections[k].sh_name;
        return strncmp(name, prefix.c_str(), prefix.size()) ? nullptr : name + prefix.size();
    };
    for (u32 k = 0; k < header.e_shnum; ++k)
        if (const char* kernel = named(k, ".text.")) entries[kernel];
    for (u32 k = 0; k < header.e_shnum; ++k) {
        if (const char* kernel = named(k, ".nv.shared.")) {
            auto found = entries.find(kernel);
            if (found != entries.end()) found->second.static_shared = (u32)sections[k].sh_size;
        }
        const char* kernel = named(k, ".nv.info.");
        auto found = kernel ? entries.find(kernel) : entries.end();
        if (found == entries.end()) continue;
        const u8* at = image + sections[k].sh_offset;
        const u8* end = at + sections[k].sh_size;
        while (at + 4 <= end) {
            constexpr u8 SIZED = 4, MAX_THREADS = 0x05, PARAMETER = 0x17;
            u16 value;
            memcpy(&value, at + 2, 2);
            if (at[0] == SIZED && at[1] == MAX_THREADS) {
                u32 threads[3];
                memcpy(threads, at + 4, sizeof threads);
                found->second.most_threads = threads[0] * threads[1] * threads[2];
            }
            // The one parameter: number, place, and its size above 18 bits of other facts. The size of them all (0x19) would hold what
            // lies before a parameter that is aligned to more than the bank's start.
            if (at[0] == SIZED && at[1] == PARAMETER) {
                u32 words[3];
                memcpy(words, at + 4, sizeof words);
                found->second.parameter_bytes = words[2] >> 18;
            }
            at += 4 + (at[0] == SIZED ? value : 0);
        }
    }
    return SUCCESS;
}

int read_ptx(const char* text, std::map<std::string, Entry>& entries) {
    unsigned major = 0, minor = 0;
    const char* target = strstr(text, ".target sm_");
    if (!strstr(text, ".version ") || !target || sscanf(target, ".target sm_%2u", &major) != 1) return INVALID_IMAGE;
    minor = major % 10;
    major /= 10;
    if (std::make_pair(major, minor) > std::make_pair((unsigned)state().major, (unsigned)state().minor)) return NO_BINARY_FOR_GPU;
    constexpr const char* ENTRY = ".entry ";
    for (const char* at = strstr(text, ENTRY); at; at = strstr(at + 1, ENTRY)) {
        const char* name = at + strlen(ENTRY);
        entries[std::string(name, strcspn(name, "( \n"))];
    }
    return entries.empty() ? INVALID_IMAGE : SUCCESS;
}

void* own_symbol(const std::string& name) {
    static void* self = [] {
        Dl_info info;
        return dladdr((void*)read_ptx, &info) ? dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD) : nullptr;
    }();
    return self ? dlsym(self, name.c_str()) : nullptr;
}

void fault(Context& context, const char* words) {
    fprintf(stderr, "emulated GPU: %s\n", words);
    context.broken = ILLEGAL_ADDRESS;
}

// After a fault nothing more happens; the calls that wait for it see it.
void run(Context& context, const Work& work) {
    if (!context.broken) work(context);
}

int queue(Stream* stream, Work work) {
    if (stream->capturing) stream->captured.push_back(std::move(work));
    else stream->waiting.push_back(std::move(work));
    return SUCCESS;
}

std::condition_variable_any& changed() {
    static auto& only = *new std::condition_variable_any;
    return only;
}

// Waits, the state's lock given up, for what another thread does. False after a minute.
template <class Is> bool wait_for_others(Is is) {
    std::unique_lock<std::recursive_mutex> held(state().one, std::adopt_lock);
    const bool answer = changed().wait_for(held, std::chrono::seconds(60), is);
    held.release();
    return answer;
}

// The device gets on with a stream, to its end or until `is_far_enough`. A device does so by itself: where devices exchange, the thread
// of one rank gets on with the streams of others, whose own threads may be waiting for something else.
template <class Is> void get_on(Stream* stream, Is is_far_enough) {
    if (!wait_for_others([&] { return !stream->busy || is_far_enough(); })) return fault(*stream->context, "a stream stood still for a minute");
    if (stream->busy || is_far_enough()) return;
    Context* const before = current;
    current = stream->context;
    stream->busy = true;
    while (!stream->waiting.empty() && !is_far_enough()) {
        const Work next = std::move(stream->waiting.front());
        stream->waiting.pop_front();
        run(*stream->context, next);
    }
    stream->busy = false;
    current = before;
    changed().notify_all();
}

// To its end, or until `event` is reached.
void catch_up(Stream* stream, const Event* event = nullptr) {
    get_on(stream, [&] { return event && event->reached == event->recorded; });
}

void catch_up(Context& context) {
    for (auto& stream : context.streams) catch_up(stream.first);
}

// The page-locked memory that holds `from`; null for pageable memory.
HostAllocation* host_memory(const void* from) {
    auto next = current->host.upper_bound((const u8*)from);
    if (next == current->host.begin()) return nullptr;
    auto found = std::prev(next);
    return (const u8*)from - found->first < (ptrdiff_t)found->second.bytes ? &found->second : nullptr;
}

u64 alive(const char* what) {
    u64 sum = 0;
    for (Context& context : state().contexts) {
        const std::string kind = what;
        sum += kind == "memory" ? context.memory.size() : kind == "host_memory" ? context.host.size() : kind == "modules" ? context.modules.size() : kind == "streams" ? context.streams.size()
            : kind == "events" ? context.events.size() : (u64)context.retained;
    }
    return sum;
}

// The last to be written stands: cudarc opens and closes the library once before it uses it.
__attribute__((destructor)) void write_log() {
    const char* path = getenv("ADVISOR_STANDIN_LOG");
    FILE* out = path ? fopen(path, "w") : nullptr;
    if (!out) return;
    Guard guard(state().one);
    for (auto& entry : state().counts) fprintf(out, "%s %llu\n", entry.first.c_str(), entry.second);
    for (const char* what : {"memory", "host_memory", "modules", "streams", "events", "contexts"}) fprintf(out, "alive_%s %llu\n", what, alive(what));
    fprintf(out, "alive_graphs %llu\n", (u64)state().graphs.size());
    fprintf(out, "alive_executables %llu\n", (u64)state().executables.size());
    fclose(out);
}

// Devices of two hosts have different names.
int host_number() {
    const char* number = getenv("ADVISOR_STANDIN_HOST");
    return number ? atoi(number) : 0;
}

void free_memory(Context& context, std::map<u64, Allocation>::iterator which) {
    emulator_remove_buffer(which->first);
    munmap(which->second.whole, which->second.reserved);
    context.used -= which->second.bytes;
    context.memory.erase(which);
}
}  // namespace

#define CALL extern "C" __attribute__((visibility("default"))) int
#define LOCKED Guard guard(state().one)
#define ENTERED                                        \
    LOCKED;                                            \
    if (const int unusable = usable()) return unusable
#define INITIALISED                                    \
    LOCKED;                                            \
    if (!state().initialised) return NOT_INITIALIZED
#define OUTSIDE_CAPTURES                               \
    ENTERED;                                           \
    if (const int forbidden = forbidden_in_capture()) return forbidden
#define ON(stream, handle)                             \
    ENTERED;                                           \
    Stream* stream = nullptr;                          \
    if (const int refused = stream_of(handle, stream)) return refused

CALL cuInit(u32 flags) {
    LOCKED;
    if (flags) return INVALID_VALUE;
    if (state().initialised) return SUCCESS;
    if (const char* capability = getenv("ADVISOR_STANDIN_CAPABILITY"))
        if (sscanf(capability, "%u.%u", &state().major, &state().minor) != 2) return INVALID_VALUE;
    const char* devices = getenv("ADVISOR_STANDIN_DEVICES");
    const int several = devices ? atoi(devices) : 1;
    if (several <= 0) return NO_DEVICE;
    state().contexts.resize(several);
    for (int k = 0; k < several; ++k) state().contexts[k].device = k;
    state().initialised = true;
    return SUCCESS;
}

CALL cuDriverGetVersion(int* version) {
    if (!version) return INVALID_VALUE;
    *version = 12000;
    return SUCCESS;
}

CALL cuGetErrorName(int code, const char** out) {
    auto found = NAMES.find(code);
    if (!out || found == NAMES.end()) return INVALID_VALUE;
    *out = found->second;
    return SUCCESS;
}
CALL cuGetErrorString(int code, const char** out) { return cuGetErrorName(code, out); }

CALL cuDeviceGetCount(int* out) {
    INITIALISED;
    *out = (int)state().contexts.size();
    return SUCCESS;
}

CALL cuDeviceGet(int* out, int ordinal) {
    INITIALISED;
    if (ordinal < 0 || ordinal >= (int)state().contexts.size()) return INVALID_DEVICE;
    *out = ordinal;
    return SUCCESS;
}

CALL cuDeviceGetName(char* out, int bytes, int device) {
    INITIALISED;
    if (device < 0 || device >= (int)state().contexts.size()) return INVALID_DEVICE;
    snprintf(out, bytes, "Emulated GPU");
    return SUCCESS;
}

// Sixteen bytes that name the device: zeros, the host's number, its own.
CALL cuDeviceGetUuid(char* out, int device) {
    INITIALISED;
    if (device < 0 || device >= (int)state().contexts.size()) return INVALID_DEVICE;
    memset(out, 0, 16);
    out[14] = (char)host_number();
    out[15] = (char)device;
    return SUCCESS;
}

CALL cuDeviceGetAttribute(int* out, int attribute, int device) {
    INITIALISED;
    if (device < 0 || device >= (int)state().contexts.size()) return INVALID_DEVICE;
    switch (attribute) {
        case 16: *out = MULTIPROCESSORS; return SUCCESS;
        case 75: *out = (int)state().major; return SUCCESS;
        case 76: *out = (int)state().minor; return SUCCESS;
        case 97: *out = SHARED_LIMIT; return SUCCESS;
        default: return INVALID_VALUE;  // nobody asked so far
    }
}

CALL cuDeviceTotalMem_v2(size_t* out, int device) {
    INITIALISED;
    if (device < 0 || device >= (int)state().contexts.size()) return INVALID_DEVICE;
    *out = MEMORY;
    return SUCCESS;
}

CALL cuDevicePrimaryCtxRetain(Context** out, int device) {
    INITIALISED;
    if (device < 0 || device >= (int)state().contexts.size()) return INVALID_DEVICE;
    *out = &state().contexts[device];
    ++(*out)->retained;
    count("contexts_retained");
    return SUCCESS;
}

CALL cuDevicePrimaryCtxRelease_v2(int device) {
    INITIALISED;
    if (device < 0 || device >= (int)state().contexts.size()) return INVALID_DEVICE;
    Context& context = state().contexts[device];
    if (!context.retained) return INVALID_CONTEXT;
    count("contexts_released");
    if (--context.retained) return SUCCESS;
    // The last one takes everything along.
    count("memory_left_to_context", context.memory.size());
    count("modules_left_to_context", context.modules.size());
    count("streams_left_to_context", context.streams.size());
    count("events_left_to_context", context.events.size());
    count("host_memory_left_to_context", context.host.size());
    while (!context.memory.empty()) free_memory(context, context.memory.begin());
    context.modules.clear();
    context.functions.clear();
    context.streams.clear();
    context.events.clear();
    context.host.clear();
    context.broken = SUCCESS;
    return SUCCESS;
}

CALL cuCtxSetCurrent(Context* context) {
    INITIALISED;
    if (context && !context->retained) return INVALID_CONTEXT;
    current = context;
    return SUCCESS;
}

CALL cuCtxGetCurrent(Context** out) {
    INITIALISED;
    *out = current;
    return SUCCESS;
}

CALL cuStreamCreate(Stream** out, u32 flags) {
    ENTERED;
    if (flags > 1) return INVALID_VALUE;
    auto made = std::make_unique<Stream>();
    made->context = current;
    *out = made.get();
    current->streams[*out] = std::move(made);
    return SUCCESS;
}

CALL cuStreamDestroy_v2(Stream* handle) {
    ENTERED;
    if (!holds(current->streams, handle)) return INVALID_HANDLE;
    catch_up(handle);
    current->streams.erase(handle);
    return SUCCESS;
}

CALL cuStreamSynchronize(Stream* handle) {
    ENTERED;
    if (!holds(current->streams, handle)) return INVALID_HANDLE;
    if (handle->capturing) {
        handle->invalidated = true;
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    count("synchronisations");
    catch_up(handle);
    return current->broken;
}

CALL cuStreamBeginCapture_v2(Stream* handle, int mode) {
    ON(stream, handle);
    if (mode < GLOBAL || mode > RELAXED) return INVALID_VALUE;
    if (stream->capturing) return STREAM_CAPTURE_UNSUPPORTED;
    stream->capturing = true;
    stream->mode = mode;
    stream->thread = std::this_thread::get_id();
    stream->captured.clear();
    return SUCCESS;
}

CALL cuStreamEndCapture(Stream* handle, Graph** out) {
    ENTERED;
    *out = nullptr;
    if (!holds(current->streams, handle)) return INVALID_HANDLE;
    if (!handle->capturing) return STREAM_CAPTURE_UNMATCHED;
    const bool invalidated = handle->invalidated;
    handle->capturing = handle->invalidated = false;
    if (invalidated) return STREAM_CAPTURE_INVALIDATED;
    auto made = std::make_shared<Graph>();
    made->nodes = std::move(handle->captured);
    handle->captured.clear();
    count("graphs_captured");
    count("nodes_captured", made->nodes.size());
    *out = made.get();
    state().graphs[*out] = std::move(made);
    return SUCCESS;
}

CALL cuGraphInstantiateWithFlags(Graph** out, Graph* graph, u64 flags) {
    ENTERED;
    if (flags || !holds(state().graphs, graph)) return INVALID_VALUE;
    auto made = std::make_shared<Graph>(*graph);
    *out = made.get();
    state().executables[*out] = std::move(made);
    count("graphs_instantiated");
    return SUCCESS;
}

CALL cuGraphLaunch(Graph* executable, Stream* handle) {
    ON(stream, handle);
    if (!holds(state().executables, executable)) return INVALID_VALUE;
    if (stream->capturing) return STREAM_CAPTURE_UNSUPPORTED;  // a child graph to the driver; nothing here asks for one
    count("graphs_launched");
    return queue(stream, [graph = state().executables[executable]](Context& context) {
        for (const Work& node : graph->nodes) run(context, node);
    });
}

CALL cuGraphExecDestroy(Graph* executable) {
    LOCKED;
    return state().executables.erase(executable) ? SUCCESS : INVALID_VALUE;
}

CALL cuGraphDestroy(Graph* graph) {
    LOCKED;
    return state().graphs.erase(graph) ? SUCCESS : INVALID_VALUE;
}

CALL cuModuleLoadData(Module** out, const void* image) {
    OUTSIDE_CAPTURES;
    if (!image) return INVALID_VALUE;
    auto made = std::make_unique<Module>();
    made->context = current;
    const bool cubin = !memcmp(image, ELFMAG, SELFMAG);
    const int code = cubin ? read_cubin((const u8*)image, made->entries) : read_ptx((const char*)image, made->entries);
    if (code) return code;
    count(cubin ? "cubins_loaded" : "ptx_loaded");
    *out = made.get();
    current->modules[*out] = std::move(made);
    return SUCCESS;
}

CALL cuModuleUnload(Module* module) {
    OUTSIDE_CAPTURES;
    catch_up(*current);
    if (!current->modules.erase(module)) return INVALID_HANDLE;
    auto& functions = current->functions;
    for (auto at = functions.begin(); at != functions.end();) at = at->second->module == module ? functions.erase(at) : std::next(at);
    count("modules_unloaded");
    return SUCCESS;
}

CALL cuModuleGetFunction(Function** out, Module* module, const char* name) {
    ENTERED;
    if (!holds(current->modules, module)) return INVALID_HANDLE;
    auto found = module->entries.find(name);
    if (found == module->entries.end()) return NOT_FOUND;
    const Emulate emulate = (Emulate)own_symbol(std::string("emulate_") + name);
    const u64* bytes = (const u64*)own_symbol(std::string("arguments_of_") + name);
    if (!emulate || !bytes) {
        fprintf(stderr, "emulated GPU: the image has kernel %s, the emulator does not\n", name);
        return NOT_FOUND;
    }
    if (found->second.parameter_bytes && found->second.parameter_bytes != *bytes) {
        fprintf(stderr, "emulated GPU: %s takes %u bytes in its image and %llu in the emulator\n", name, found->second.parameter_bytes, *bytes);
        return INVALID_IMAGE;
    }
    auto made = std::make_unique<Function>();
    const u32 fixed = found->second.static_shared;
    *made = Function{module, found->second, emulate, (u32)*bytes, fixed < SHARED_WITHOUT_ASKING ? SHARED_WITHOUT_ASKING - fixed : 0};
    *out = made.get();
    current->functions[*out] = std::move(made);
    return SUCCESS;
}

CALL cuFuncSetAttribute(Function* function, int attribute, int value) {
    ENTERED;
    if (!holds(current->functions, function)) return INVALID_HANDLE;
    constexpr int MAX_DYNAMIC_SHARED_BYTES = 8;
    if (attribute != MAX_DYNAMIC_SHARED_BYTES || value < 0 || value + function->entry.static_shared > SHARED_LIMIT) return INVALID_VALUE;
    count("shared_memory_asked");
    function->dynamic_limit = (u32)value;
    return SUCCESS;
}

CALL cuLaunchKernel(Function* function, u32 x, u32 y, u32 z, u32 threads_x, u32 threads_y, u32 threads_z, u32 shared, Stream* handle, void** parameters, void** extra) {
    ON(stream, handle);
    if (!holds(current->functions, function)) return INVALID_HANDLE;
    const u64 threads = (u64)threads_x * threads_y * threads_z;
    if (!x || x > 0x7fffffffu || !y || y > 65535 || !z || z > 65535 || !threads || threads > function->entry.most_threads || threads_z > 64) return INVALID_VALUE;
    if (shared > function->dynamic_limit || !parameters || !parameters[0] || extra) return INVALID_VALUE;
    const u8* first = (const u8*)parameters[0];
    count("kernels_launched");
    return queue(stream, [=, emulate = function->emulate, given = std::vector<u8>(first, first + function->parameter_bytes)](Context& context) {
        // Where the struct lies in the parameters' memory: 64 where it holds a tensor map, never less than 8.
        alignas(64) u8 arguments[4096];
        memcpy(arguments, given.data(), given.size());
        const u32 grid[3] = {x, y, z}, block[3] = {threads_x, threads_y, threads_z};
        if (emulate(grid, block, shared, arguments)) fault(context, emulator_error());
    });
}

CALL cuMemAlloc_v2(u64* out, size_t bytes) {
    OUTSIDE_CAPTURES;
    if (!bytes) return INVALID_VALUE;
    const size_t taken = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (taken > MEMORY - current->used) return OUT_OF_MEMORY;
    const size_t reserved = taken + 2 * APART;
    u8* whole = (u8*)mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED) return OUT_OF_MEMORY;
    *out = (u64)(whole + APART);
    memset(whole + APART, 0xff, taken);
    current->memory[*out] = Allocation{whole, reserved, taken};
    current->used += taken;
    emulator_add_buffer(*out, bytes);
    count("allocations");
    return SUCCESS;
}

CALL cuMemFree_v2(u64 address) {
    OUTSIDE_CAPTURES;
    auto found = current->memory.find(address);
    if (found == current->memory.end()) return INVALID_VALUE;
    catch_up(*current);
    free_memory(*current, found);
    return SUCCESS;
}

CALL cuMemHostAlloc(void** out, size_t bytes, u32 flags) {
    OUTSIDE_CAPTURES;
    constexpr u32 PORTABLE = 1, DEVICE_MAP = 2, WRITE_COMBINED = 4;
    if (!out || !bytes || flags & ~(PORTABLE | DEVICE_MAP | WRITE_COMBINED)) return INVALID_VALUE;
    HostAllocation made{std::unique_ptr<u8[]>(new u8[bytes]), bytes, 0};
    memset(made.memory.get(), 0xff, bytes);
    *out = made.memory.get();
    current->host.emplace(made.memory.get(), std::move(made));
    count("host_allocations");
    return SUCCESS;
}

CALL cuMemFreeHost(void* memory) {
    OUTSIDE_CAPTURES;
    auto found = current->host.find((const u8*)memory);
    if (found == current->host.end()) return INVALID_VALUE;
    if (found->second.readers) fault(*current, "page-locked memory is freed before a queued copy has read it");
    current->host.erase(found);
    return SUCCESS;
}

CALL cuMemsetD8Async(u64 to, u8 value, size_t bytes, Stream* handle) {
    ON(stream, handle);
    if (!in_memory(to, bytes)) return INVALID_VALUE;
    return queue(stream, [=](Context&) { memset((void*)to, value, bytes); });
}

// To and from pageable memory the driver may wait for the stream, which a capture cannot.
CALL cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, Stream* handle) {
    ON(stream, handle);
    if (stream->capturing) {
        stream->invalidated = true;
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    if (bytes && (!from || !in_memory(to, bytes))) return INVALID_VALUE;
    count("copies_to_device");
    HostAllocation* host = host_memory(from);
    if (!host) {
        count("copies_from_pageable_memory");
        catch_up(stream);
        if (bytes && !current->broken) memcpy((void*)to, from, bytes);
        return current->broken;
    }
    const u8* first = (const u8*)from;
    if (bytes > host->bytes - (size_t)(first - host->memory.get())) return INVALID_VALUE;
    ++host->readers;
    return queue(stream, [=, promised = std::vector<u8>(first, first + bytes)](Context& context) {
        --host->readers;
        if (bytes && memcmp(first, promised.data(), bytes)) return fault(context, "page-locked memory was changed before a queued copy had read it");
        memcpy((void*)to, first, bytes);
    });
}

CALL cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream* handle) {
    ON(stream, handle);
    if (bytes && (!in_memory(to, bytes) || !in_memory(from, bytes))) return INVALID_VALUE;
    count("copies_on_device");
    return queue(stream, [=](Context&) { memmove((void*)to, (const void*)from, bytes); });
}

CALL cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, Stream* handle) {
    ON(stream, handle);
    if (stream->capturing) {
        stream->invalidated = true;
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    if (bytes && (!to || !in_memory(from, bytes))) return INVALID_VALUE;
    count("copies_to_host");
    catch_up(stream);
    if (bytes && !current->broken) memcpy(to, (const void*)from, bytes);
    return current->broken;
}

CALL cuEventCreate(Event** out, u32 flags) {
    ENTERED;
    constexpr u32 BLOCKING_WAIT = 1, NO_TIME = 2;
    if (!out || flags & ~(BLOCKING_WAIT | NO_TIME)) return INVALID_VALUE;
    if (current->events.size() == MOST_EVENTS) return OUT_OF_MEMORY;
    auto made = std::make_shared<Event>();
    made->has_time = !(flags & NO_TIME);
    *out = made.get();
    current->events[*out] = std::move(made);
    return SUCCESS;
}

CALL cuEventRecord(Event* event, Stream* handle) {
    ON(stream, handle);
    if (!holds(current->events, event)) return INVALID_HANDLE;
    if (stream->capturing) return SUCCESS;  // it orders streams, of which a capture here has one
    event->stream = stream;
    count("events_recorded");
    return queue(stream, [kept = current->events[event], which = ++event->recorded](Context&) {
        kept->reached = which;
        kept->at = Clock::now();
        changed().notify_all();
    });
}

CALL cuStreamWaitEvent(Stream* handle, Event* event, u32 flags) {
    ON(stream, handle);
    if (!holds(current->events, event)) return INVALID_HANDLE;
    if (flags || stream->capturing) return INVALID_VALUE;
    if (event->reached == event->recorded) return SUCCESS;
    count("waits_of_streams");
    return queue(stream, [kept = current->events[event], on = event->stream, which = event->recorded](Context&) {
        get_on(on, [&] { return kept->reached >= which; });
    });
}

CALL cuEventSynchronize(Event* event) {
    ENTERED;
    if (!holds(current->events, event)) return INVALID_HANDLE;
    // One that was never recorded has nothing to wait for.
    if (event->reached == event->recorded) return SUCCESS;
    count("event_waits");
    if (holds(current->streams, event->stream)) catch_up(event->stream, event);
    return current->broken;
}

CALL cuEventElapsedTime(float* out, Event* start, Event* end) {
    ENTERED;
    if (!holds(current->events, start) || !holds(current->events, end) || !start->recorded || !end->recorded) return INVALID_HANDLE;
    if (!start->has_time || !end->has_time) return INVALID_HANDLE;
    if (start->reached != start->recorded || end->reached != end->recorded) return NOT_READY;
    *out = std::chrono::duration<float, std::milli>(end->at - start->at).count();
    return SUCCESS;
}

CALL cuEventDestroy_v2(Event* event) {
    ENTERED;
    return current->events.erase(event) ? SUCCESS : INVALID_HANDLE;
}

// CUtensorMap, filled as hopper.h reads it. The rules are those of "cuTensorMapEncodeTiled" in the driver's manual.
CALL cuTensorMapEncodeTiled(TensorMap* out, int type, u32 rank, void* base, const u64* extent, const u64* stride, const u32* box, const u32* element_stride, int interleave, int swizzle, int l2_promotion, int fill) {
    LOCKED;
    if (!out || !extent || !stride || !box || !element_stride || rank < 1 || rank > 5) return INVALID_VALUE;
    constexpr int UINT8 = 0, FLOAT16 = 6, BFLOAT16 = 9;
    // The map itself lies at a multiple of 64. Other element types, interleaving and NaN as fill exist, but no kernel here reads them.
    if ((uintptr_t)out % 64 || (type != UINT8 && type != FLOAT16 && type != BFLOAT16) || interleave || fill) return INVALID_VALUE;
    if (!base || (uintptr_t)base % 16 || swizzle < 0 || swizzle > 3 || l2_promotion < 0 || l2_promotion > 3) return INVALID_VALUE;
    emulated::HostMap map{};
    map.magic = emulated::MAP_MAGIC;
    map.base = (u64)base;
    map.rank = rank;
    map.element_bytes = type == UINT8 ? 1 : 2;
    map.swizzle = (u32)swizzle;
    for (u32 d = 0; d < 5; ++d) {
        map.extent[d] = d < rank ? extent[d] : 1;
        map.box[d] = d < rank ? box[d] : 1;
        if (!map.extent[d] || map.extent[d] > 1ull << 32 || !map.box[d] || map.box[d] > 256) return INVALID_VALUE;
        if (d < rank && element_stride[d] != 1) return INVALID_VALUE;
        if (!d || d >= rank) continue;
        map.stride[d - 1] = stride[d - 1];
        const u64 least = d == 1 ? map.extent[0] * map.element_bytes : map.extent[d - 1] * map.stride[d - 2];
        if (stride[d - 1] % 16 || stride[d - 1] >= 1ull << 40 || stride[d - 1] < least) return INVALID_VALUE;
    }
    const u32 inner = map.box[0] * map.element_bytes;
    if (inner % 16 || (swizzle && inner > 16u << swizzle)) return INVALID_VALUE;
    memcpy(out, &map, sizeof map);
    count("tensor_maps");
    return SUCCESS;
}

// cuBLAS. Codes of cublas_api.h; like the driver's own calls they refuse what the library refuses.
namespace {
enum Status { BLAS_SUCCESS = 0, BLAS_NOT_INITIALIZED = 1, BLAS_INVALID_VALUE = 7, BLAS_EXECUTION_FAILED = 13, BLAS_NOT_SUPPORTED = 15 };
struct Blas { Context* context; Stream* stream = nullptr; u64 workspace = 0; };
std::map<Blas*, std::unique_ptr<Blas>>& blas() {
    static auto& all = *new std::map<Blas*, std::unique_ptr<Blas>>;
    return all;
}
enum Numbers { R32F = 0, R16F = 2, R16BF = 14 };
float number(u64 at, u64 element, int type) {
    if (type == R32F) return ((const float*)at)[element];
    return type == R16F ? to_f32(((const f16*)at)[element]) : to_f32(((const bf16*)at)[element]);
}
void put_number(u64 at, u64 element, int type, float x) {
    if (type == R32F) ((float*)at)[element] = x;
    else if (type == R16F) ((f16*)at)[element] = from_f32<f16>(x);
    else ((bf16*)at)[element] = from_f32<bf16>(x);
}
}  // namespace

#define OF_BLAS(handle)                                                      \
    LOCKED;                                                                  \
    if (usable() || !holds(blas(), handle)) return BLAS_NOT_INITIALIZED

CALL cublasCreate_v2(Blas** out) {
    LOCKED;
    if (usable() || forbidden_in_capture()) return BLAS_NOT_INITIALIZED;
    if (!out) return BLAS_INVALID_VALUE;
    std::unique_ptr<Blas> made(new Blas{current});
    *out = made.get();
    blas()[*out] = std::move(made);
    count("blas_handles");
    return BLAS_SUCCESS;
}

CALL cublasDestroy_v2(Blas* handle) {
    OF_BLAS(handle);
    catch_up(*handle->context);
    blas().erase(handle);
    count("blas_handles_destroyed");
    return BLAS_SUCCESS;
}

CALL cublasGetVersion_v2(Blas* handle, int* version) {
    OF_BLAS(handle);
    *version = 120901;
    return BLAS_SUCCESS;
}

CALL cublasSetStream_v2(Blas* handle, Stream* stream) {
    OF_BLAS(handle);
    if (!holds(current->streams, stream)) return BLAS_INVALID_VALUE;
    handle->stream = stream;
    handle->workspace = 0;  // the library goes back to its own
    return BLAS_SUCCESS;
}

CALL cublasSetWorkspace_v2(Blas* handle, void* workspace, size_t bytes) {
    OF_BLAS(handle);
    if ((u64)workspace % 256 || !in_memory((u64)workspace, bytes)) return BLAS_INVALID_VALUE;
    handle->workspace = (u64)workspace;
    return BLAS_SUCCESS;
}

// Column-major: C [m, n] = alpha op(A) op(B) + beta C, where A lies as [m, k] (or [k, m] if it is transposed) and B as [k, n] (or [n, k]).
CALL cublasGemmEx(Blas* handle, int turn_a, int turn_b, int m, int n, int k, const void* alpha, const void* a, int type_a, int lead_a, const void* b, int type_b, int lead_b,
                  const void* beta, void* c, int type_c, int lead_c, int arithmetic, int algorithm) {
    OF_BLAS(handle);
    Stream* stream = nullptr;
    if (stream_of(handle->stream, stream)) return BLAS_EXECUTION_FAILED;
    constexpr int COMPUTE_32F = 68, DEFAULT = -1;
    if (type_a != type_b || type_a != type_c || (type_a != R32F && type_a != R16F && type_a != R16BF) || arithmetic != COMPUTE_32F || algorithm != DEFAULT) return BLAS_NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || turn_a < 0 || turn_a > 1 || turn_b < 0 || turn_b > 1 || !alpha || !beta) return BLAS_INVALID_VALUE;
    const auto least = [](int rows) { return rows > 1 ? rows : 1; };
    if (lead_a < least(turn_a ? k : m) || lead_b < least(turn_b ? n : k) || lead_c < least(m)) return BLAS_INVALID_VALUE;
    const u64 size = type_a == R32F ? 4 : 2;
    const u64 bytes_a = size * lead_a * (turn_a ? m : k), bytes_b = size * lead_b * (turn_b ? k : n), bytes_c = size * lead_c * n;
    const float scale = *(const float*)alpha, keep = *(const float*)beta;  // the pointers are the host's
    count("blas_products");
    queue(stream, [=](Context& context) {
        if (!in_memory((u64)a, bytes_a) || !in_memory((u64)b, bytes_b) || !in_memory((u64)c, bytes_c)) return fault(context, "a product of the library reads or writes outside of its operands");
        for (int column = 0; column < n; ++column)
            for (int row = 0; row < m; ++row) {
                double sum = 0;
                for (int i = 0; i < k; ++i) {
                    const u64 of_a = turn_a ? (u64)row * lead_a + i : (u64)i * lead_a + row, of_b = turn_b ? (u64)i * lead_b + column : (u64)column * lead_b + i;
                    sum += (double)number((u64)a, of_a, type_a) * number((u64)b, of_b, type_b);
                }
                const u64 to = (u64)column * lead_c + row;
                put_number((u64)c, to, type_c, (float)(scale * sum + (keep ? keep * number((u64)c, to, type_c) : 0)));
            }
    });
    return BLAS_SUCCESS;
}

// NCCL. Results of nccl.h. A call is queued on its rank's stream and is done when all ranks' streams have got there, as kernels of the library
// do. Ranks are threads of a process, or processes of one machine, each with a device of its own: exchanges.h has the memory between them.
// Calls of a series are made one behind the other.
namespace {
enum Result { NCCL_SUCCESS = 0, NCCL_SYSTEM_ERROR = 2, NCCL_INVALID_ARGUMENT = 4, NCCL_INVALID_USAGE = 5, NCCL_REMOTE_ERROR = 6 };
enum Kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, SEND, RECEIVE };
// A call that was asked for, until its stream has got there.
struct Asked {
    Kind kind;
    int peer;     // of a message
    u64 which;    // its number among those of its kind: of all ranks, or from one to the other
    Stream* stream;
    bool here = false;
};
struct Comm {
    Comm(const std::string& id, int ranks, int rank, Context* context) : memory(id, ranks), ranks(ranks), rank(rank), context(context) {}
    exchanges::Memory memory;
    int ranks, rank;
    Context* context;
    u64 next = 0, sent[exchanges::MOST_RANKS] = {}, received[exchanges::MOST_RANKS] = {};
    std::deque<std::shared_ptr<Asked>> asked;
    bool given_up = false, gone = false;

    exchanges::Header& header() { return memory.header(); }
    // Whether another rank stands at the call.
    bool is_awaited(const Asked& call) {
        if (call.kind == SEND) return header().channels[rank][call.peer].wanted > call.which;
        if (call.kind == RECEIVE) return header().channels[call.peer][rank].sent > call.which;
        for (int other = 0; other < ranks; ++other)
            if (header().members[other].posted > call.which) return true;
        return false;
    }
    // The first whose stream stands still though another rank waits for it.
    std::shared_ptr<Asked> late() {
        while (!asked.empty() && asked.front()->here) asked.pop_front();
        for (auto& call : asked)
            if (!call->here && !call->stream->busy && is_awaited(*call)) return call;
        return nullptr;
    }
};
struct Id { char bytes[128]; };
std::map<Comm*, std::shared_ptr<Comm>>& comms() {
    static auto& all = *new std::map<Comm*, std::shared_ptr<Comm>>;
    return all;
}
thread_local int series = 0;  // ncclGroupStart without its end

constexpr int NCCL_UINT8 = 1, NCCL_UINT32 = 3, NCCL_FLOAT16 = 6, NCCL_FLOAT32 = 7, NCCL_BFLOAT16 = 9, NCCL_SUM = 0, NCCL_MAX = 2, NCCL_MIN = 3;
int numbers_of(int type) { return type == NCCL_FLOAT32 ? R32F : type == NCCL_FLOAT16 ? R16F : R16BF; }

// Looks again and again, the state's lock given up between, for what other processes may have done. False after a minute.
template <class Is> bool look_until(Is is) {
    std::unique_lock<std::recursive_mutex> held(state().one, std::adopt_lock);
    const auto end = Clock::now() + std::chrono::minutes(1);
    bool answer = is();
    while (!answer && Clock::now() < end) {
        changed().wait_for(held, std::chrono::microseconds(200));
        answer = is();
    }
    held.release();
    return answer;
}

// A rank of a group waits in an exchange. False where it shall go no further.
template <class Is> bool wait_in_exchange(Context& context, Comm& comm, Is is) {
    if (!look_until([&] { return comm.given_up || is(); })) fault(context, "a rank waited a minute for an exchange that the others did not come to");
    return !comm.given_up && !context.broken;
}

// A device gets on by itself where another waits for it, whatever its host does: a thread for each rank of a group.
void get_on_for_others(std::shared_ptr<Comm> comm) {
    LOCKED;
    while (!comm->gone) {
        if (const std::shared_ptr<Asked> call = comm->late()) get_on(call->stream, [&] { return call->here; });
        else {
            std::unique_lock<std::recursive_mutex> held(state().one, std::adopt_lock);
            changed().wait_for(held, std::chrono::microseconds(500));
            held.release();
        }
    }
}

// What the ranks have given, as one: of number `i` of the whole.
float merged(Comm& comm, Kind kind, size_t count_each, int type, int how, size_t i) {
    if (kind == ALL_GATHER) return number((u64)comm.memory.given((int)(i / count_each)), i % count_each, type);
    double value = number((u64)comm.memory.given(0), i, type);
    for (int other = 1; other < comm.ranks; ++other) {
        const double next = number((u64)comm.memory.given(other), i, type);
        value = how == NCCL_MIN ? smaller(value, next) : value + next;
    }
    return (float)value;
}

void exchange(Context& context, Comm& comm, Asked& call, u64 from, u64 to, size_t count_each, int type, int how) {
    const size_t size = type == NCCL_FLOAT32 || type == NCCL_UINT32 ? 4 : 2, ranks = comm.ranks;
    const size_t read = size * count_each * (call.kind == REDUCE_SCATTER ? ranks : 1), written = size * count_each * (call.kind == ALL_GATHER ? ranks : 1);
    if (!in_memory(from, read) || !in_memory(to, written)) return fault(context, "an exchange reads or writes outside of its operands");
    if (read > exchanges::MOST_BYTES) return fault(context, "an exchange is larger than the stand-in's memory for it");
    exchanges::Header& header = comm.header();
    const auto all = [&](auto is) {
        for (int other = 0; other < comm.ranks; ++other)
            if (!is(header.members[other])) return false;
        return true;
    };
    if (!wait_in_exchange(context, comm, [&] { return all([&](exchanges::Member& other) { return other.done >= call.which; }); })) return;
    exchanges::Member& own = header.members[comm.rank];
    const u64 asked[4] = {(u64)call.kind, count_each, (u64)type, (u64)how};
    memcpy(own.asked, asked, sizeof asked);
    memcpy(comm.memory.given(comm.rank), (const void*)from, read);
    own.posted = call.which + 1;
    if (!wait_in_exchange(context, comm, [&] { return all([&](exchanges::Member& other) { return other.posted > call.which; }); })) return;
    const bool alike = all([&](exchanges::Member& other) { return !memcmp(other.asked, own.asked, sizeof own.asked); });
    const size_t first = call.kind == REDUCE_SCATTER ? comm.rank * count_each : 0, length = written / size;
    if (alike && type == NCCL_UINT32) {
        for (size_t i = 0; i < length; ++i) {
            u32 most = 0;
            for (int other = 0; other < comm.ranks; ++other) most = std::max(most, ((const u32*)comm.memory.given(other))[i]);
            ((u32*)to)[i] = most;
        }
    } else if (alike) {
        for (size_t i = 0; i < length; ++i) put_number(to, i, numbers_of(type), merged(comm, call.kind, count_each, numbers_of(type), how, first + i));
    }
    own.done = call.which + 1;
    if (!alike) fault(context, "ranks came to different exchanges");
}

void message(Context& context, Comm& comm, Asked& call, u64 at, size_t bytes) {
    if (!in_memory(at, bytes)) return fault(context, "a message reads or writes outside of its operand");
    if (bytes > exchanges::MOST_BYTES) return fault(context, "a message is larger than the stand-in's memory for it");
    const int from = call.kind == SEND ? comm.rank : call.peer, to = call.kind == SEND ? call.peer : comm.rank;
    exchanges::Channel& channel = comm.header().channels[from][to];
    if (call.kind == SEND) {
        channel.bytes = bytes;
        memcpy(comm.memory.message(from, to), (const void*)at, bytes);
        channel.sent = call.which + 1;
        wait_in_exchange(context, comm, [&] { return channel.taken > call.which; });
        return;
    }
    channel.wanted = call.which + 1;
    if (!wait_in_exchange(context, comm, [&] { return channel.sent > call.which; })) return;
    const bool alike = channel.bytes == bytes;
    if (alike) memcpy((void*)at, comm.memory.message(from, to), bytes);
    channel.taken = call.which + 1;
    if (!alike) fault(context, "a message has another length than its receiver wants");
}

// Queues a call of a group.
template <class Do> int asked_of(Comm* handle, Stream* on, Kind kind, int peer, Do work) {
    auto found = comms().find(handle);
    if (usable() || found == comms().end() || handle->context != current) return NCCL_INVALID_ARGUMENT;
    const std::shared_ptr<Comm> comm = found->second;
    Stream* stream = nullptr;
    if (stream_of(on, stream) || stream->capturing) return NCCL_INVALID_USAGE;
    u64& next = kind == SEND ? comm->sent[peer] : kind == RECEIVE ? comm->received[peer] : comm->next;
    const std::shared_ptr<Asked> call(new Asked{kind, peer, next++, stream});
    comm->asked.push_back(call);
    count("nccl_calls");
    changed().notify_all();
    return queue(stream, [=](Context& context) {
        call->here = true;
        if (!comm->given_up) work(context, *comm, *call);
        changed().notify_all();
    });
}

int collective(Kind kind, const void* from, void* to, size_t count_each, int type, int how, Comm* comm, Stream* stream) {
    const bool is_bits = type == NCCL_UINT32 && how == NCCL_MAX && kind == ALL_REDUCE;
    const bool is_float = (type == NCCL_FLOAT16 || type == NCCL_FLOAT32 || type == NCCL_BFLOAT16) && (how == NCCL_SUM || how == NCCL_MIN);
    if (!is_bits && !is_float) return NCCL_INVALID_ARGUMENT;
    return asked_of(comm, stream, kind, 0, [=](Context& context, Comm& comm, Asked& call) { exchange(context, comm, call, (u64)from, (u64)to, count_each, type, how); });
}

int one_message(Kind kind, const void* at, size_t bytes, int type, int peer, Comm* comm, Stream* stream) {
    if (type != NCCL_UINT8 || !holds(comms(), comm) || peer < 0 || peer >= comm->ranks || peer == comm->rank) return NCCL_INVALID_ARGUMENT;
    count("nccl_messages");
    return asked_of(comm, stream, kind, peer, [=](Context& context, Comm& comm, Asked& call) { message(context, comm, call, (u64)at, bytes); });
}

int leave(Comm* handle, bool given_up) {
    auto found = comms().find(handle);
    if (found == comms().end()) return NCCL_INVALID_ARGUMENT;
    const std::shared_ptr<Comm> comm = found->second;
    comms().erase(found);
    comm->given_up = given_up;
    comm->gone = true;
    comm->header().members[comm->rank].gone = given_up ? 2 : 1;
    count(given_up ? "nccl_given_up" : "nccl_left");
    changed().notify_all();
    return NCCL_SUCCESS;
}
}  // namespace

CALL ncclGetVersion(int* version) {
    LOCKED;
    *version = 22703;
    return NCCL_SUCCESS;
}

CALL ncclGetUniqueId(Id* out) {
    LOCKED;
    static u64 made = 0;
    *out = Id{};
    const u64 now = (u64)std::chrono::system_clock::now().time_since_epoch().count();
    snprintf(out->bytes, sizeof out->bytes, "advisor-stand-in-%d-%llu-%llu", (int)getpid(), now, ++made);
    out->bytes[sizeof out->bytes - 1] = (char)0xff;  // all bytes travel
    return NCCL_SUCCESS;
}

CALL ncclCommInitRank(Comm** out, int ranks, Id id, int rank) {
    LOCKED;
    if (usable() || !out || ranks < 1 || ranks > exchanges::MOST_RANKS || rank < 0 || rank >= ranks || id.bytes[127] != (char)0xff) return NCCL_INVALID_ARGUMENT;
    const std::shared_ptr<Comm> made(new Comm(id.bytes, ranks, rank, current));
    if (!made->memory.is_usable()) return NCCL_SYSTEM_ERROR;
    exchanges::Header& header = made->header();
    header.members[rank].device = ((u64)host_number() << 32) + current->device + 1;
    ++header.joined;
    if (!look_until([&] { return header.joined == (u32)ranks; })) return NCCL_INVALID_USAGE;
    made->memory.forget_name();
    for (int k = 0; k < ranks; ++k)
        for (int other = 0; other < k; ++other)
            if (header.members[k].device == header.members[other].device) return NCCL_INVALID_USAGE;  // two ranks on one device
    *out = made.get();
    comms()[*out] = made;
    std::thread(get_on_for_others, made).detach();
    count("nccl_joined");
    return NCCL_SUCCESS;
}

CALL ncclCommDestroy(Comm* comm) {
    LOCKED;
    return leave(comm, false);
}

CALL ncclCommAbort(Comm* comm) {
    LOCKED;
    return leave(comm, true);
}

CALL ncclCommGetAsyncError(Comm* comm, int* out) {
    LOCKED;
    if (!holds(comms(), comm) || !out) return NCCL_INVALID_ARGUMENT;
    *out = NCCL_SUCCESS;
    for (int other = 0; other < comm->ranks; ++other)
        if (comm->header().members[other].gone == 2) *out = NCCL_REMOTE_ERROR;
    return NCCL_SUCCESS;
}

CALL ncclGroupStart() {
    ++series;
    return NCCL_SUCCESS;
}

CALL ncclGroupEnd() { return series-- > 0 ? NCCL_SUCCESS : NCCL_INVALID_USAGE; }

CALL ncclAllReduce(const void* from, void* to, size_t numbers, int type, int how, Comm* comm, Stream* stream) {
    LOCKED;
    return collective(ALL_REDUCE, from, to, numbers, type, how, comm, stream);
}

CALL ncclReduceScatter(const void* from, void* to, size_t part, int type, int how, Comm* comm, Stream* stream) {
    LOCKED;
    return collective(REDUCE_SCATTER, from, to, part, type, how, comm, stream);
}

CALL ncclAllGather(const void* from, void* to, size_t part, int type, Comm* comm, Stream* stream) {
    LOCKED;
    return collective(ALL_GATHER, from, to, part, type, NCCL_SUM, comm, stream);
}

CALL ncclSend(const void* from, size_t numbers, int type, int peer, Comm* comm, Stream* stream) {
    LOCKED;
    return one_message(SEND, from, numbers, type, peer, comm, stream);
}

CALL ncclRecv(void* to, size_t numbers, int type, int peer, Comm* comm, Stream* stream) {
    LOCKED;
    return one_message(RECEIVE, to, numbers, type, peer, comm, stream);
}
