// Threads of the host on the stand-in at once, each with a stream, memory and a recorded piece of its own, as the ranks of a layout have
// them. Compiled with -fsanitize=thread, as are the stand-in, the emulator and the kernels: two threads that touch one thing without an
// order between them end it. Argument: a cubin of rows.cu for the capability that the stand-in pretends.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

typedef uint32_t u32;
typedef unsigned long long u64;

extern "C" {
int cuInit(u32);
int cuDeviceGet(int*, int);
int cuDevicePrimaryCtxRetain(void**, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void*);
int cuStreamCreate(void**, u32);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, u64);
int cuGraphLaunch(void*, void*);
int cuGraphExecDestroy(void*);
int cuGraphDestroy(void*);
int cuModuleLoadData(void**, const void*);
int cuModuleUnload(void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuLaunchKernel(void*, u32, u32, u32, u32, u32, u32, u32, void*, void**, void**);
int cuMemAlloc_v2(u64*, size_t);
int cuMemFree_v2(u64);
int cuMemcpyHtoDAsync_v2(u64, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, u64, size_t, void*);
}

#define CHECKED(call)                                                   \
    do {                                                                \
        if (const int code = (call)) {                                  \
            fprintf(stderr, "%s failed with %d\n", #call, code);        \
            exit(2);                                                    \
        }                                                               \
    } while (0)

// Of kernels/rows.cu.
struct SoftmaxArguments { u64 x, y; u32 rows, columns; };

// Rows that a warp holds, and rows of a block, which meets at barriers.
static void work(const std::vector<char>& image, int number) {
    const u32 rows = 9, columns = number % 2 ? 100 : 1500, count = rows * columns;
    void *context, *module, *function, *stream, *graph, *executable;
    CHECKED(cuDevicePrimaryCtxRetain(&context, 0));
    CHECKED(cuCtxSetCurrent(context));
    CHECKED(cuStreamCreate(&stream, 1));
    CHECKED(cuModuleLoadData(&module, image.data()));
    CHECKED(cuModuleGetFunction(&function, module, number % 2 ? "softmax_f32" : "softmax_long_f32"));
    SoftmaxArguments arguments{0, 0, rows, columns};
    CHECKED(cuMemAlloc_v2(&arguments.x, 4 * count));
    CHECKED(cuMemAlloc_v2(&arguments.y, 4 * count));
    void* parameters[] = {&arguments};
    // 1: a capture of this thread alone.
    CHECKED(cuStreamBeginCapture_v2(stream, 1));
    CHECKED(cuLaunchKernel(function, rows, 1, 1, 256, 1, 1, 0, stream, parameters, nullptr));
    CHECKED(cuStreamEndCapture(stream, &graph));
    CHECKED(cuGraphInstantiateWithFlags(&executable, graph, 0));
    std::vector<float> data(count);
    for (int round = 0; round < 4; ++round) {
        for (u32 k = 0; k < count; ++k) data[k] = (float)((k * 7 + number + round) % 13);
        CHECKED(cuMemcpyHtoDAsync_v2(arguments.x, data.data(), 4 * count, stream));
        CHECKED(cuGraphLaunch(executable, stream));
        CHECKED(cuMemcpyDtoHAsync_v2(data.data(), arguments.y, 4 * count, stream));
        CHECKED(cuStreamSynchronize(stream));
        for (u32 r = 0; r < rows; ++r) {
            double sum = 0.0;
            for (u32 c = 0; c < columns; ++c) sum += data[r * columns + c];
            if (!(std::fabs(sum - 1.0) < 1e-4)) {
                fprintf(stderr, "thread %d, round %d: row %u sums to %g\n", number, round, r, sum);
                exit(3);
            }
        }
    }
    CHECKED(cuGraphExecDestroy(executable));
    CHECKED(cuGraphDestroy(graph));
    CHECKED(cuMemFree_v2(arguments.x));
    CHECKED(cuMemFree_v2(arguments.y));
    CHECKED(cuModuleUnload(module));
    CHECKED(cuStreamDestroy_v2(stream));
    CHECKED(cuDevicePrimaryCtxRelease_v2(0));
}

int main(int, char** arguments) {
    std::ifstream file(arguments[1], std::ios::binary);
    const std::vector<char> image((std::istreambuf_iterator<char>(file)), {});
    CHECKED(cuInit(0));
    std::vector<std::thread> threads;
    for (int number = 0; number < 4; ++number) threads.emplace_back(work, std::cref(image), number);
    for (std::thread& thread : threads) thread.join();
    puts("4 threads of the host, nothing shared without an order");
}
