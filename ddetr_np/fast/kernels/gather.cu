// dvalue with the same bits in every run: each token gathers what it is owed, in an
// order that depends on the arguments alone. No atomics.
//
// A point's four corners follow from the one left of and above it. So points are
// sorted, a quarter as many as corners, by that pixel: it lies in −1 … H − 1 and
// −1 … W − 1, the (H + 1)·(W + 1) cells of a level. A token then finds its readers in
// four cells: as their upper left corner in its own, as their upper right in the cell
// to the left, and so on.
//
//     keys   = cells(loc)                     which cell, and which point
//     keys   = sort(keys)                     the library's; all keys differ, so that
//                                             any sort gives one and the same order
//     starts = searchsorted(keys, cells)      the library's
//     dvalue = gather(keys, starts, dy, …)

#include "types.cuh"
#include "geometry.cuh"

// keys (N, Nq, M, L, K): the cell, among those of all (n, m), above `bits` bits that
// hold q·K + k. Points that read nothing are in the cell behind the last.
template <class T, class P>
__global__ void cells(const int *levels, const P *loc, long long *keys, int N, int Nq,
                      int M, int L, int K, int cells_of_head, int bits) {
    using F = sum_t<T>;
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (long long)N * Nq * M * L * K) return;
    int p = at % (L * K), l = p / K;
    long long item = at / (L * K), m = item % M, n = item / M / Nq;
    int q = item / M % Nq;
    Level level = level_of(levels, l);
    Point<F> point = locate_own<F>(loc + 2 * item * L * K, p, level);
    bool number = point.x == point.x && point.y == point.y;
    bool reads = point.column >= -1 && point.column < level.W && point.row >= -1 &&
                 point.row < level.H;
    // what is not a number must show: `corner` puts it on the map's border
    int column = min(max(point.column, -1), level.W - 1) + 1;
    int row = min(max(point.row, -1), level.H - 1) + 1;
    long long cell = (long long)N * M * cells_of_head;
    if (reads || !number)
        cell = (n * M + m) * cells_of_head + level.cell + row * (level.W + 1) + column;
    keys[at] = cell << bits | (q * K + p % K);
}

// A warp has one token of one head; 32 / LANES walkers share out its readers, and
// their sums are added up in a fixed order. LANES lanes have V channels each, in turns
// if Cv is greater than LANES · V. Left to itself, the assembler spills to memory for
// the sake of a ninth block on a multiprocessor.
template <class T, class P, int V, int LANES>
__global__ void __launch_bounds__(THREADS, 8)
    gather(const T *dy, const int *levels, const P *loc, const P *A,
           const long long *keys, const long long *starts, T *dvalue, int N, int Nq,
           int M, int L, int K, int S, int Cv, int cells_of_head, int bits) {
    using F = sum_t<T>;
    constexpr int WALKERS = 32 / LANES, TOKENS = THREADS / 32;
    int tiles = (S - 1) / TOKENS + 1, head = blockIdx.x / tiles;  // (n, m)
    int token = blockIdx.x % tiles * TOKENS + threadIdx.x / 32;
    if (token >= S) return;  // a whole warp, or none of it
    int lane = threadIdx.x % LANES, walker = threadIdx.x % 32 / LANES;
    long long n = head / M, m = head % M;
    int l = L - 1;
    while (level_of(levels, l).token > token) l--;
    Level level = level_of(levels, l);
    int row = (token - level.token) / level.W, column = (token - level.token) % level.W;
    starts += (long long)head * cells_of_head + level.cell;
    for (int first = 0; first < Cv; first += LANES * V) {
        int c = first + lane * V;
        F sum[V] = {};
        for (int r = 0; r < 4; r++) {
            int i = r % 2, j = r / 2;
            int cell = (row - j + 1) * (level.W + 1) + column - i + 1;
            long long end = starts[cell + 1];
            for (long long at = starts[cell] + walker; at < end; at += WALKERS) {
                unsigned reader = keys[at] & ((1ll << bits) - 1);  // q·K + k
                long long item = (n * Nq + reader / K) * M + m;
                long long p = (item * L + l) * K + reader % K;
                Point<F> point = locate_own<F>(loc + 2 * p, 0, level);
                F weight = corner(point, i, j, level.H, level.W).g * F(widen(A[p]));
                if (c < Cv) {
                    Channels<T, V> d = load<V>(dy + item * Cv + c);
                    for (int k = 0; k < V; k++) sum[k] += weight * F(widen(d.at[k]));
                }
            }
        }
#pragma unroll
        for (int k = 0; k < V; k++)
            for (int w = LANES; w < 32; w *= 2)
                sum[k] += __shfl_xor_sync(~0u, sum[k], w);
        if (walker == 0 && c < Cv)
            store(sum, dvalue + ((n * S + token) * M + m) * Cv + c);
    }
}
