// Eq. 3 inside its W_m, forward:  y_mq = Σ_lk A_mlqk Σ_corner g · value_m[corner].
//
// value (N, S, M, Cv)  loc (N, Nq, M, L, K, 2) as x, y  A (N, Nq, M, L, K)
// y (N, Nq, M, Cv)     levels (L, 4): see geometry.cuh
//
// v1 … v5 compute the same; each adds one idea to the one before. An element of y has
// one writer, so there are no atomics, and the bits are the same in every run. Corners
// outside the map are read at the border with weight 0: no branch waits for another.

#include "types.cuh"
#include "geometry.cuh"

// v1: one thread per element of y. Channels are fastest: at Cv = 32 a warp reads 128
// bytes side by side at each corner.
template <class T, class P>
__global__ void forward_v1(const T *value, const int *levels, const P *loc, const P *A,
                           T *y, int N, int Nq, int M, int L, int K, int S, int Cv) {
    using F = sum_t<T>;
    long long element = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= (long long)N * Nq * M * Cv) return;
    long long item = element / Cv;  // (n, q, m)
    int c = element % Cv, m = item % M;
    long long n = item / M / Nq, pitch = (long long)M * Cv;
    const T *v = value + n * S * pitch + m * Cv + c;
    loc += 2 * item * L * K;
    A += item * L * K;
    F sum = 0;
    for (int l = 0; l < L; l++) {
        Level level = level_of(levels, l);
        for (int p = l * K; p < (l + 1) * K; p++) {
            Point<F> point = locate_own<F>(loc, p, level);
            for (int j = 0; j < 2; j++)
                for (int i = 0; i < 2; i++) {
                    Corner<F> at = corner(point, i, j, level.H, level.W);
                    F x = widen(v[(level.token + at.pixel) * pitch]);
                    sum += at.g * F(widen(A[p])) * x;
                }
        }
    }
    narrow(sum, y[element]);
}

// v2: a thread has V channels. Loads of 16 bytes, and the geometry, which all channels
// of a head share, is computed V times less often.
template <class T, class P, int V>
__global__ void forward_v2(const T *value, const int *levels, const P *loc, const P *A,
                           T *y, int N, int Nq, int M, int L, int K, int S, int Cv) {
    using F = sum_t<T>;
    long long element = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (element >= (long long)N * Nq * M * Cv) return;
    long long item = element / Cv;
    int c = element % Cv, m = item % M;
    long long n = item / M / Nq, pitch = (long long)M * Cv;
    const T *v = value + n * S * pitch + m * Cv + c;
    loc += 2 * item * L * K;
    A += item * L * K;
    F sum[V] = {};
    for (int l = 0; l < L; l++) {
        Level level = level_of(levels, l);
        for (int p = l * K; p < (l + 1) * K; p++) {
            Point<F> point = locate_own<F>(loc, p, level);
            for (int j = 0; j < 2; j++)
                for (int i = 0; i < 2; i++) {
                    Corner<F> at = corner(point, i, j, level.H, level.W);
                    F weight = at.g * F(widen(A[p]));
                    Channels<T, V> x = load<V>(v + (level.token + at.pixel) * pitch);
                    for (int r = 0; r < V; r++) sum[r] += weight * F(widen(x.at[r]));
                }
        }
    }
    store(sum, y + element);
}

// v3: LANES neighbouring threads have one query and head, LANES · V ≥ Cv. Each finds
// one point's four tokens and weights and leaves them in shared memory, where all of
// them read: a point's geometry is computed once. LANES is a power of two, at most 32:
// the lanes are of one warp and wait for nobody else.
template <class F> struct alignas(16) Read {
    int token[4];
    F weight[4];
};

template <class F, class P>
__device__ Read<F> find(const int *levels, const P *loc, const P *A, int p, int K) {
    Level level = level_of(levels, p / K);
    Point<F> point = locate_own<F>(loc, p, level);
    F a = widen(A[p]);
    Read<F> read;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        Corner<F> at = corner(point, r % 2, r / 2, level.H, level.W);
        read.token[r] = level.token + at.pixel;
        read.weight[r] = at.g * a;
    }
    return read;
}

// y of one query and head; v, loc, A and y are its own. UNROLL points are loaded
// before the first of them is used. All lanes of a warp come here, since they wait for
// each other; those whose query does not exist (`!real`) write nothing.
template <int V, int LANES, int UNROLL, class T, class P>
__device__ void attend(const T *v, const int *levels, const P *loc, const P *A, T *y,
                       int M, int L, int K, int Cv, bool real) {
    using F = sum_t<T>;
    __shared__ Read<F> all[THREADS];
    Read<F> *reads = all + threadIdx.x / LANES * LANES;
    int lane = threadIdx.x % LANES, c = lane * V, points = L * K;
    long long pitch = (long long)M * Cv;
    real = real && c < Cv;
    F sum[V] = {};
    for (int first = 0; first < points; first += LANES) {
        int batch = min(LANES, points - first);
        if (lane < batch) reads[lane] = find<F>(levels, loc, A, first + lane, K);
        __syncwarp();
        for (int p = 0; real && p < batch; p += UNROLL) {
            Channels<T, V> x[UNROLL][4];
#pragma unroll
            for (int u = 0; u < UNROLL; u++)
                if (p + u < batch)
#pragma unroll
                    for (int r = 0; r < 4; r++)
                        x[u][r] = load<V>(v + reads[p + u].token[r] * pitch + c);
#pragma unroll
            for (int u = 0; u < UNROLL; u++)
                if (p + u < batch)
#pragma unroll
                    for (int r = 0; r < 4; r++)
#pragma unroll
                        for (int i = 0; i < V; i++)
                            sum[i] += reads[p + u].weight[r] * F(widen(x[u][r].at[i]));
        }
        __syncwarp();  // nobody may still read what the next batch replaces
    }
    if (real) store(sum, y + c);
}

template <class T, class P, int V, int LANES, int UNROLL>
__device__ void attend_in_order(const T *value, const int *levels, const P *loc,
                                const P *A, T *y, int N, int Nq, int M, int L, int K,
                                int S, int Cv) {
    long long items = (long long)N * Nq * M;
    long long own = (long long)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    long long item = own < items ? own : items - 1, n = item / M / Nq;
    int m = item % M;
    attend<V, LANES, UNROLL>(value + (n * S * M + m) * Cv, levels,
                             loc + 2 * item * L * K, A + item * L * K, y + item * Cv,
                             M, L, K, Cv, own < items);
}

template <class T, class P, int V, int LANES>
__global__ void __launch_bounds__(THREADS)
    forward_v3(const T *value, const int *levels, const P *loc, const P *A, T *y, int N,
               int Nq, int M, int L, int K, int S, int Cv) {
    attend_in_order<T, P, V, LANES, 1>(value, levels, loc, A, y, N, Nq, M, L, K, S, Cv);
}

// v4: the loads of several points are under way before the first is used. A thread
// waits for memory once for all of them.
template <class T, class P, int V, int LANES, int UNROLL>
__global__ void __launch_bounds__(THREADS)
    forward_v4(const T *value, const int *levels, const P *loc, const P *A, T *y, int N,
               int Nq, int M, int L, int K, int S, int Cv) {
    attend_in_order<T, P, V, LANES, UNROLL>(value, levels, loc, A, y, N, Nq, M, L, K, S,
                                            Cv);
}

// v5: a block has one head of neighbouring queries, not all heads of a few. In an
// encoder their points lie about each other, so that they share pixels, which the
// first to come leaves in the multiprocessor's own cache: of the corners that 16
// queries of one head read 37 % are different pixels, of two queries' 8 heads 72 %.
template <class T, class P, int V, int LANES, int UNROLL>
__global__ void __launch_bounds__(THREADS)
    forward_v5(const T *value, const int *levels, const P *loc, const P *A, T *y, int N,
               int Nq, int M, int L, int K, int S, int Cv) {
    constexpr int QUERIES = THREADS / LANES;
    int tiles = (Nq - 1) / QUERIES + 1, head = blockIdx.x / tiles;  // (n, m)
    int own = blockIdx.x % tiles * QUERIES + threadIdx.x / LANES;
    long long n = head / M, item = (n * Nq + min(own, Nq - 1)) * M + head % M;
    attend<V, LANES, UNROLL>(value + (n * S * M + head % M) * Cv, levels,
                             loc + 2 * item * L * K, A + item * L * K, y + item * Cv,
                             M, L, K, Cv, own < Nq);
}
