// As much of CUDA's language as our kernels use, on one core of a CPU.
//
// The threads of a block are fibers. Each runs until it waits for its warp, for its
// block, or ends; then the next one's turn comes. The first wait for whoever is missing
// for good, a warp whose threads are not all there, is an error, as it is on a GPU
// (there unseen): kernels must keep their warps whole while they exchange values.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

using std::floor;
using std::max;
using std::min;

#define __global__ static
#define __device__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

struct dim {
    int x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}

static dim threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr int WARP = 32, STACK = 1 << 16, SLOT = 16;
enum State { READY, AT_WARP, AT_BLOCK, ENDED };

struct Fiber {
    ucontext_t context;
    State state;
    int exchanges;  // so far: values pass through two slots in turn
    alignas(SLOT) char slot[2][SLOT];
};

static ucontext_t scheduler;
static Fiber *fibers;
static int current;
static void (*body)(const void *);
static const void *arguments;

static void wait_for(State what) {
    fibers[current].state = what;
    swapcontext(&fibers[current].context, &scheduler);
}

static void begin() {
    body(arguments);
    fibers[current].state = ENDED;
    // returns to the scheduler: uc_link
}

// One block. False if threads wait for some that have ended, or wait elsewhere.
static bool run_block(int threads, char *stacks) {
    for (int t = 0; t < threads; t++) {
        Fiber &f = fibers[t];
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks + (size_t)t * STACK;
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = &scheduler;
        f.state = READY;
        f.exchanges = 0;
        makecontext(&f.context, begin, 0);
    }
    auto all = [&](int from, int to, State state) {
        return std::all_of(fibers + from, fibers + to,
                           [=](const Fiber &f) { return f.state == state; });
    };
    for (;;) {
        bool progress = false;
        for (int first = 0; first < threads; first += WARP) {
            int end = min(first + WARP, threads);
            for (int t = first; t < end; t++)
                if (fibers[t].state == READY) {
                    current = t;
                    threadIdx.x = t;
                    swapcontext(&scheduler, &fibers[t].context);
                    progress = true;
                }
            if (all(first, end, AT_WARP))
                for (int t = first; t < end; t++) fibers[t].state = READY;
        }
        if (all(0, threads, ENDED)) return true;
        if (all(0, threads, AT_BLOCK)) {
            for (int t = 0; t < threads; t++) fibers[t].state = READY;
            progress = true;
        }
        if (!progress) return false;
    }
}

template <class T> T exchange(T x, int lane) {
    static_assert(sizeof(T) <= SLOT);
    Fiber &own = fibers[current];
    int slot = own.exchanges++ % 2;
    std::memcpy(own.slot[slot], &x, sizeof x);
    wait_for(AT_WARP);
    std::memcpy(&x, fibers[current / WARP * WARP + lane].slot[slot], sizeof x);
    return x;
}

// Runs a kernel's blocks in an order given; 0, or 1 where threads wait in vain.
template <class... A>
int launch(void (*kernel)(A...), int blocks, int threads, const int *order,
           const void *const *args) {
    using Call = std::pair<void (*)(A...), std::tuple<A...>>;
    int next = 0;
    // in braces the arguments are taken in order
    Call call{kernel, std::tuple<A...>{*static_cast<const A *>(args[next++])...}};
    arguments = &call;
    body = [](const void *at) {
        auto &call = *static_cast<const Call *>(at);
        std::apply(call.first, call.second);
    };
    // not cleared: memory that no thread touches is not even mapped
    std::unique_ptr<char[]> stacks(new char[(size_t)threads * STACK]);
    std::vector<Fiber> storage(threads);
    fibers = storage.data();
    blockDim = {threads, 1, 1};
    gridDim = {blocks, 1, 1};
    for (int b = 0; b < blocks; b++) {
        blockIdx = {order[b], 0, 0};
        if (!run_block(threads, stacks.get())) return 1;
    }
    return 0;
}

}  // namespace shim

static inline void __syncwarp() { shim::wait_for(shim::AT_WARP); }
static inline void __syncthreads() { shim::wait_for(shim::AT_BLOCK); }

template <class T> T __shfl_xor_sync(unsigned, T x, int mask) {
    return shim::exchange(x, threadIdx.x % shim::WARP ^ mask);
}

template <class T> void atomicAdd(T *to, T x) { *to += x; }
static inline void atomicAdd(float4 *to, float4 x) {
    *to = {to->x + x.x, to->y + x.y, to->z + x.z, to->w + x.w};
}
