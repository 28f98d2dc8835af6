// AdamW on one parameter: p, m and v are read and written once, g is read. The plain
// operation's arithmetic, step by step and compiled without fused multiply-adds, so
// that a step has the host's bits.
// One thread per element. p, g, m, v (n,), contiguous.

template <typename T>
__global__ void adamw(
    T* p, const T* g, T* m, T* v, long long n,
    T beta1, T beta2, T to_m, T to_v, T eps, T rate, T kept
) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    T mi = m[i] * beta1 + to_m * g[i];
    T root = to_v * g[i];
    T vi = v[i] * beta2 + root * root;
    m[i] = mi;
    v[i] = vi;
    p[i] = p[i] * kept - mi / (sqrt(vi) + eps) * rate;
}
