// Layer normalisation of rows of C channels, forward and backward.
//
// A warp has a row: its lanes read neighbouring channels, and what they have summed goes
// round by shuffles. A row is read twice or three times, but from memory only once: 1 KB
// stays in the first-level cache. A block has THREADS / 32 rows.
// x, y, x_hat, dy, dx (rows, C), inv (rows,), weight and bias (C,), contiguous.

template <class T> __device__ T of_warp(T x) {
    for (int n = 1; n < 32; n *= 2) x += __shfl_xor_sync(~0u, x, n);
    return x;
}

// y = x_hat w + b, x_hat = (x - mean) inv, inv = 1 / sqrt(var + eps)
template <class T>
__global__ void layer_norm(const T *x, const T *weight, const T *bias, T *y, T *x_hat,
                           T *inv, int rows, int C, T eps) {
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;  // all of a warp, or none
    long long start = (long long)row * C;
    T sum = 0;
    for (int c = lane; c < C; c += 32) sum += x[start + c];
    T mean = of_warp(sum) / C;
    sum = 0;
    for (int c = lane; c < C; c += 32) {
        T d = x[start + c] - mean;
        sum += d * d;
    }
    T scale = 1 / sqrt(of_warp(sum) / C + eps);
    if (lane == 0) inv[row] = scale;
    for (int c = lane; c < C; c += 32) {
        T h = (x[start + c] - mean) * scale;
        x_hat[start + c] = h;
        y[start + c] = h * weight[c] + bias[c];
    }
}

// dx = (g - <g> - x_hat <g x_hat>) inv, g = dy w, <> the mean of a row
template <class T>
__global__ void layer_norm_backward(const T *dy, const T *x_hat, const T *inv,
                                    const T *weight, T *dx, int rows, int C) {
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    long long start = (long long)row * C;
    T sum = 0, dot = 0;
    for (int c = lane; c < C; c += 32) {
        T g = dy[start + c] * weight[c];
        sum += g;
        dot += g * x_hat[start + c];
    }
    T mean = of_warp(sum) / C, slope = of_warp(dot) / C;
    for (int c = lane; c < C; c += 32) {
        T g = dy[start + c] * weight[c];
        dx[start + c] = (g - mean - x_hat[start + c] * slope) * inv[row];
    }
}
