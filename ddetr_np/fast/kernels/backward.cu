// The gradients of Eq. 3, from u = ⟨dy_mq, value_m[corner]⟩ at each corner read:
//
//     dvalue[corner] += A g dy      dA = Σ_corner g u
//     dloc = A Σ_corner (W ∂g/∂x, H ∂g/∂y) u
//
// Arrays as in forward.cu; dvalue is of type F, zero before. dA and dloc have one
// writer an element from v2 on. Many points read one token, so dvalue is summed by
// atomics, in an order that differs from run to run: with SCATTER false it is left
// alone, and gather.cu has a way whose bits are always the same.

#include "types.cuh"
#include "geometry.cuh"

// v1: one thread per element of dy, and atomics for all three.
template <class T, class P, class F>
__global__ void backward_v1(const T *dy, const T *value, const int *levels,
                            const P *loc, const P *A, F *dvalue, F *dloc, F *dA, int N,
                            int Nq, int M, int L, int K, int S, int Cv) {
    long long element = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= (long long)N * Nq * M * Cv) return;
    long long item = element / Cv;  // (n, q, m)
    int c = element % Cv, m = item % M;
    long long n = item / M / Nq, pitch = (long long)M * Cv;
    long long own = item * L * K, head = n * S * pitch + m * Cv + c;
    F d = widen(dy[element]);
    for (int l = 0; l < L; l++) {
        Level level = level_of(levels, l);
        for (int p = l * K; p < (l + 1) * K; p++) {
            Point<F> point = locate_own<F>(loc + 2 * own, p, level);
            F a = widen(A[own + p]), da = 0, dx = 0, dy_ = 0;
            for (int j = 0; j < 2; j++)
                for (int i = 0; i < 2; i++) {
                    Corner<F> at = corner(point, i, j, level.H, level.W);
                    long long x = head + (level.token + at.pixel) * pitch;
                    F u = d * F(widen(value[x]));
                    da += at.g * u;
                    dx += at.g_x * u;
                    dy_ += at.g_y * u;
                    // what is not a number is not 0, and passes
                    if (at.g != 0) atomicAdd(dvalue + x, a * at.g * d);
                }
            atomicAdd(dA + own + p, da);
            atomicAdd(dloc + 2 * (own + p), a * dx * level.W);
            atomicAdd(dloc + 2 * (own + p) + 1, a * dy_ * level.H);
        }
    }
}

// The sum of x over LANES neighbouring lanes, in each of them.
template <int LANES, class F> __device__ F sum_of_lanes(F x) {
#pragma unroll
    for (int n = 1; n < LANES; n *= 2) x += __shfl_xor_sync(~0u, x, n);
    return x;
}

// V neighbouring sums in memory, each a multiple of 4 channels from the array's begin:
// from compute capability 9.0 four at a time.
template <int V, class F> __device__ void add(const F (&x)[V], F *to) {
#if __CUDA_ARCH__ >= 900
    if constexpr (V % 4 == 0 && sizeof(F) == 4) {
#pragma unroll
        for (int i = 0; i < V; i += 4)
            atomicAdd(reinterpret_cast<float4 *>(to + i),
                      make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]));
        return;
    }
#endif
#pragma unroll
    for (int i = 0; i < V; i++) atomicAdd(to + i, x[i]);
}

// v2: LANES neighbouring threads have one query and head, in turns if Cv is greater
// than LANES · V. They add up dA and dloc among themselves, and one of them writes.
template <class T, class P, class F, int V, int LANES, bool SCATTER>
__global__ void __launch_bounds__(THREADS)
    backward_v2(const T *dy, const T *value, const int *levels, const P *loc,
                const P *A, F *dvalue, P *dloc, P *dA, int N, int Nq, int M, int L,
                int K, int S, int Cv) {
    long long items = (long long)N * Nq * M;
    long long own = (long long)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    // all lanes of a warp stay, since they wait for each other
    bool real = own < items;
    long long item = real ? own : items - 1, n = item / M / Nq;
    int lane = threadIdx.x % LANES, m = item % M, end = real ? Cv : 0;
    long long pitch = (long long)M * Cv, head = n * S * pitch + m * Cv;
    dy += item * Cv;
    loc += 2 * item * L * K;
    A += item * L * K;
    dloc += 2 * item * L * K;
    dA += item * L * K;
    for (int l = 0; l < L; l++) {
        Level level = level_of(levels, l);
        for (int p = l * K; p < (l + 1) * K; p++) {
            Point<F> point = locate_own<F>(loc, p, level);
            F a = widen(A[p]), da = 0, dx = 0, dy_ = 0;
            for (int r = 0; r < 4; r++) {
                Corner<F> at = corner(point, r % 2, r / 2, level.H, level.W);
                long long x = head + (level.token + at.pixel) * pitch;
                F u = 0;
                for (int c = lane * V; c < end; c += LANES * V) {
                    Channels<T, V> d = load<V>(dy + c), v = load<V>(value + x + c);
                    F part[V];
                    for (int i = 0; i < V; i++) {
                        u += F(widen(d.at[i])) * F(widen(v.at[i]));
                        part[i] = a * at.g * F(widen(d.at[i]));
                    }
                    if (SCATTER && at.g != 0) add(part, dvalue + x + c);
                }
                da += at.g * u;
                dx += at.g_x * u;
                dy_ += at.g_y * u;
            }
            da = sum_of_lanes<LANES>(da);
            dx = sum_of_lanes<LANES>(dx);
            dy_ = sum_of_lanes<LANES>(dy_);
            if (real && lane == 0) {
                narrow(da, dA[p]);
                narrow(a * dx * level.W, dloc[2 * p]);
                narrow(a * dy_ * level.H, dloc[2 * p + 1]);
            }
        }
    }
}

// Sums over LANES lanes of x[0], … x[POINTS − 1]: lane i is left with that of
// x[i % POINTS]. A lane gives the half that it is not to keep and is given the half
// that it is: POINTS − 1 exchanges, not POINTS · log2 of them.
template <int LANES, int POINTS, class F> __device__ F share_out(F (&x)[POINTS]) {
#pragma unroll
    for (int n = POINTS / 2; n; n /= 2) {
        bool upper = threadIdx.x & n;
#pragma unroll
        for (int i = 0; i < n; i++) {
            F given = upper ? x[i] : x[i + n], kept = upper ? x[i + n] : x[i];
            x[i] = kept + __shfl_xor_sync(~0u, given, n);
        }
    }
    F sum = x[0];
#pragma unroll
    for (int n = POINTS; n < LANES; n *= 2) sum += __shfl_xor_sync(~0u, sum, n);
    return sum;
}

// v3: as forward_v5, a block has one head of neighbouring queries, dy stays in
// registers (LANES · V ≥ Cv), and a point's geometry is computed once, by the lane
// that is left with the point's four sums and writes its gradients.
template <class F> struct alignas(16) Corners {
    int token[4];
    F g[4];
    F a;
};

template <class T, class P, class F, int V, int LANES, bool SCATTER>
__global__ void __launch_bounds__(THREADS)
    backward_v3(const T *dy, const T *value, const int *levels, const P *loc,
                const P *A, F *dvalue, P *dloc, P *dA, int N, int Nq, int M, int L,
                int K, int S, int Cv) {
    constexpr int QUERIES = THREADS / LANES, POINTS = LANES < 8 ? LANES : 8;
    __shared__ Corners<F> all[QUERIES * POINTS];
    Corners<F> *corners = all + threadIdx.x / LANES * POINTS;
    int tiles = (Nq - 1) / QUERIES + 1, m = blockIdx.x / tiles % M;
    long long n = blockIdx.x / tiles / M;
    int q = blockIdx.x % tiles * QUERIES + threadIdx.x / LANES;
    bool real = q < Nq;
    long long item = (n * Nq + min(q, Nq - 1)) * M + m;
    int lane = threadIdx.x % LANES, c = lane * V, points = L * K;
    long long pitch = (long long)M * Cv, head = n * S * pitch + m * Cv + c;
    bool reads = real && c < Cv;
    loc += 2 * item * points;
    A += item * points;
    dloc += 2 * item * points;
    dA += item * points;
    F d[V] = {};
    if (reads) {
        Channels<T, V> x = load<V>(dy + item * Cv + c);
        for (int i = 0; i < V; i++) d[i] = widen(x.at[i]);
    }
    for (int first = 0; first < points; first += POINTS) {
        int p = first + lane;
        bool writes = lane < POINTS && p < points;
        Point<F> point = {};
        Level level = {};
        F a = 0;
        if (writes) {
            level = level_of(levels, p / K);
            point = locate_own<F>(loc, p, level);
            corners[lane].a = a = widen(A[p]);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                Corner<F> at = corner(point, r % 2, r / 2, level.H, level.W);
                corners[lane].token[r] = level.token + at.pixel;
                corners[lane].g[r] = at.g;
            }
        }
        __syncwarp();
        F u[4][POINTS] = {};
#pragma unroll
        for (int i = 0; i < POINTS; i++)
            if (reads && first + i < points) {
                const Corners<F> &at = corners[i];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    long long x = head + at.token[r] * pitch;
                    Channels<T, V> v = load<V>(value + x);
                    F weight = at.a * at.g[r], part[V];
#pragma unroll
                    for (int k = 0; k < V; k++) {
                        u[r][i] += d[k] * F(widen(v.at[k]));
                        part[k] = weight * d[k];
                    }
                    if (SCATTER && at.g[r] != 0) add(part, dvalue + x);
                }
            }
        F da = 0, dx = 0, dy_ = 0;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            F sum = share_out<LANES>(u[r]);
            Corner<F> at = corner(point, r % 2, r / 2, level.H, level.W);
            da += at.g * sum;
            dx += at.g_x * sum;
            dy_ += at.g_y * sum;
        }
        if (real && writes) {
            narrow(da, dA[p]);
            narrow(a * dx * level.W, dloc[2 * p]);
            narrow(a * dy_ * level.H, dloc[2 * p + 1]);
        }
        __syncwarp();  // nobody may still read what the next batch replaces
    }
}
