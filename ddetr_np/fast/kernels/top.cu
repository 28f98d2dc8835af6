// Where the n largest of S scores are, best first; of equals the first, NaN last.
//
// One thread a score: it counts those before its own, a tile of all scores at a time in
// shared memory. So each knows its place, and nobody waits for a sort. The work grows
// with S²: 4e8 comparisons for 20,000 scores, spread over all of the card.
// scores (N, S), contiguous; places (N, n) is written, each place once.

#include "types.cuh"

template <class F> __device__ bool before(F a, int i, F b, int j) {
    if (a != a || b != b) return a != a ? b != b && i < j : true;
    return a > b || (a == b && i < j);
}

template <class T>
__global__ void top(const T *scores, long long *places, int S, int n) {
    __shared__ sum_t<T> tile[THREADS];
    int blocks = (S + THREADS - 1) / THREADS;
    int picture = blockIdx.x / blocks;
    int i = blockIdx.x % blocks * THREADS + threadIdx.x;
    scores += (long long)picture * S;
    sum_t<T> own = widen(scores[min(i, S - 1)]);
    int place = 0;
    for (int start = 0; start < S; start += THREADS) {
        int count = min(THREADS, S - start);
        __syncthreads();  // the tile before has been read
        if (threadIdx.x < count) tile[threadIdx.x] = widen(scores[start + threadIdx.x]);
        __syncthreads();
        for (int j = 0; j < count; j++) place += before(tile[j], start + j, own, i);
    }
    if (i < S && place < n) places[(long long)picture * n + place] = i;
}
