// Dropout: y = x mask scale. The mask is drawn as NumPy's Philox 4x64-10 draws it, so
// that a key gives the same mask on any machine (see ops/dropout.py).
//
// One thread per 64-bit word of the generator: its four 16-bit numbers decide on four
// neighbouring elements. Four threads share a count of the generator and compute it
// each: that is cheaper than telling one another, and a warp's accesses stay together.
// x, y (n,), contiguous; y is written once.

#include "types.cuh"

typedef unsigned long long u64;

__device__ inline u64 philox(u64 count, u64 key0, u64 key1, int word) {
    u64 c0 = count, c1 = 0, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; ++round) {
        const u64 m0 = 0xD2E7470EE14C6C93ULL, m1 = 0xCA5A826395121157ULL;
        u64 hi0 = __umul64hi(m0, c0), lo0 = m0 * c0;
        u64 hi1 = __umul64hi(m1, c2), lo1 = m1 * c2;
        c0 = hi1 ^ c1 ^ key0;
        c1 = lo1;
        c2 = hi0 ^ c3 ^ key1;
        c3 = lo0;
        key0 += 0x9E3779B97F4A7C15ULL;  // the golden ratio
        key1 += 0xBB67AE8584CAA73BULL;  // the root of 3, less 1
    }
    return word == 0 ? c0 : word == 1 ? c1 : word == 2 ? c2 : c3;
}

template <typename T>
__global__ void dropout(const T *x, T *y, long long n, u64 key0, u64 key1,
                        int threshold, sum_t<T> scale) {
    long long q = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (4 * q >= n) return;
    // NumPy counts before it draws: the first count is 1
    u64 bits = philox(q / 4 + 1, key0, key1, q % 4);
    for (int j = 0; j < 4 && 4 * q + j < n; ++j) {
        sum_t<T> kept = (int)(bits >> (16 * j) & 0xFFFF) >= threshold;
        narrow(widen(x[4 * q + j]) * kept * scale, y[4 * q + j]);
    }
}
