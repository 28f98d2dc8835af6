// CUDA's driver and runtime as far as CuPy asks for them, without a GPU: memory is the
// host's and zero at first, kernels do nothing, and all work is done when it is asked
// for. What CUDA refuses while a stream is captured is refused, and noted.

#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_MEMORY = 2, INVALID = 1, NOT_CAPTURED = 900 };
enum { DEVICES = 2, MOST_BLOCKS = 2147483647, MOST_THREADS = 1024 };

long stub_held;  // bytes of device memory
static int device;
static void *capturing;  // the stream that is
static uintptr_t handles = 0x1000;

char stub_log[1 << 22];  // a line each: what was launched or copied; '!' is a refusal
static size_t end;

void stub_forget(void) { stub_log[end = 0] = 0; }

static void note(const char *what, const char *name, unsigned blocks) {
    size_t room = sizeof stub_log - end;
    int n = snprintf(stub_log + end, room, "%s %.300s %u\n", what, name, blocks);
    if (n > 0 && (size_t)n < room) end += n;
}

static int refuse(const char *name) {
    if (!capturing) return OK;
    note("!", name, 0);
    return NOT_CAPTURED;
}

static int new_handle(void **handle) {
    *handle = (void *)(handles += 0x100);
    return OK;
}

// The runtime, whose functions are linked into CuPy: see cuda_stub.py.

int stub_cudaGetDevice(int *d) { *d = device; return OK; }
int stub_cudaSetDevice(int d) { device = d; return OK; }
int stub_cudaGetDeviceCount(int *n) { *n = DEVICES; return OK; }
int stub_cudaDeviceGetAttribute(int *value, int which, int d) {
    enum { WARP = 10, PROCESSORS = 16, MAJOR = 75, MINOR = 76, POOLS = 115 };
    *value = which == MAJOR ? 9 : which == MINOR ? 0 : which == PROCESSORS ? 132
           : which == WARP ? 32 : which == POOLS ? 1 : MOST_THREADS;
    return OK;
}
int stub_cudaGetDeviceProperties(void *p, int d) {
    memset(p, 0, 700);  // of a thousand bytes: the name comes first
    strcpy(p, "stub");
    return OK;
}
int stub_cudaMalloc(void **p, size_t n) {
    if (posix_memalign(p, 512, n ? n : 512)) return OUT_OF_MEMORY;
    memset(*p, 0, n);
    stub_held += malloc_usable_size(*p);
    return OK;
}
int stub_cudaFree(void *p) {
    if (p) stub_held -= malloc_usable_size(p);
    free(p);
    return refuse("cudaFree");
}
int stub_cudaHostAlloc(void **p, size_t n, unsigned flags) {
    return (*p = calloc(1, n ? n : 1)) ? OK : OUT_OF_MEMORY;
}
int stub_cudaFreeHost(void *p) { free(p); return OK; }
int stub_cudaMemGetInfo(size_t *rest, size_t *all) {
    *rest = *all = 64ull << 30;
    return OK;
}
int stub_cudaPointerGetAttributes(int *a, const void *p) {
    a[0] = 2, a[1] = device;  // of the device's memory
    return OK;
}
int stub_cudaMemcpy(void *to, const void *from, size_t n, int kind) {
    memcpy(to, from, n);
    return refuse("cudaMemcpy");
}
int stub_cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
    memcpy(to, from, n);
    enum { FROM_HOST = 1, TO_HOST = 2 };  // either waits, as memory is not pinned
    int host = kind == FROM_HOST || kind == TO_HOST;
    return host && stream == capturing ? refuse("cudaMemcpyAsync") : OK;
}
int stub_cudaMemset(void *to, int value, size_t n) {
    memset(to, value, n);
    return refuse("cudaMemset");
}
int stub_cudaMemsetAsync(void *to, int value, size_t n, void *stream) {
    memset(to, value, n);
    return OK;
}
int stub_cudaStreamCreate(void **s) { return new_handle(s); }
int stub_cudaStreamCreateWithFlags(void **s, unsigned f) { return new_handle(s); }
int stub_cudaStreamCreateWithPriority(void **s, unsigned f, int p) {
    return new_handle(s);
}
int stub_cudaStreamSynchronize(void *s) { return refuse("cudaStreamSynchronize"); }
int stub_cudaDeviceSynchronize(void) { return refuse("cudaDeviceSynchronize"); }
int stub_cudaEventCreate(void **e) { return new_handle(e); }
int stub_cudaEventCreateWithFlags(void **e, unsigned f) { return new_handle(e); }
int stub_cudaEventSynchronize(void *e) { return refuse("cudaEventSynchronize"); }
int stub_cudaEventElapsedTime(float *ms, void *from, void *to) { *ms = 1; return OK; }
int stub_cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
int stub_cudaStreamBeginCapture(void *s, int mode) { capturing = s; return OK; }
int stub_cudaStreamIsCapturing(void *s, int *is) {
    *is = s && s == capturing;
    return OK;
}
int stub_cudaStreamEndCapture(void *s, void **graph) {
    capturing = NULL;
    note("graph", "recorded", 0);
    return new_handle(graph);
}
int stub_cudaGraphInstantiate(void **e, void *graph, unsigned long long flags) {
    return new_handle(e);
}
int stub_cudaGraphLaunch(void *e, void *s) { note("graph", "launched", 0); return OK; }

// The driver.

int cuInit(unsigned flags) { return OK; }
int cuModuleLoadData(void **module, const void *data) { return new_handle(module); }
int cuModuleUnload(void *module) { return OK; }
int cuModuleGetFunction(void **f, void *module, const char *name) {
    return (*f = strdup(name)) ? OK : OUT_OF_MEMORY;
}
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned threads,
                   unsigned ty, unsigned tz, unsigned shared, void *stream, void **args,
                   void **extra) {
    note(capturing && stream != capturing ? "! beside the graph:" : "kernel", f, x);
    return x && x <= MOST_BLOCKS && threads <= MOST_THREADS ? OK : INVALID;
}
int cuFuncGetAttribute(int *value, int which, void *f) { *value = 1024; return OK; }
int cuFuncSetAttribute(void *f, int which, int value) { return OK; }
int cuCtxGetCurrent(void **c) { *c = (void *)1; return OK; }
int cuCtxSetCurrent(void *c) { return OK; }
int cuCtxGetDevice(int *d) { *d = device; return OK; }
int cuGetErrorName(int e, const char **s) { *s = "stub"; return OK; }
int cuGetErrorString(int e, const char **s) { *s = "refused by the stub"; return OK; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int b, size_t s) {
    *n = 8;
    return OK;
}
int cuOccupancyMaxPotentialBlockSize(int *blocks, int *threads, void *f, void *c,
                                     size_t s, int most) {
    *blocks = 132, *threads = 256;
    return OK;
}
