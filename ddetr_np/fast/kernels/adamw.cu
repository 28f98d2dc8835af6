// AdamW on one parameter: p, m and v are read and written once, g is read. The plain
// operation's arithmetic, step by step, so that a step has the host's bits (but below
// 1e-38, which CuPy has kernels take for zero).
// One thread per element. p, g, m, v (n,), contiguous.

// a product that no compiler fuses with a sum
__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double times(double a, double b) { return __dmul_rn(a, b); }

template <typename T>
__global__ void adamw(T *p, const T *g, T *m, T *v, long long n, T beta1, T beta2,
                      T to_m, T to_v, T eps, T rate, T kept) {
    long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    T root = times(to_v, g[i]);
    T mi = times(m[i], beta1) + times(to_m, g[i]);
    T vi = times(v[i], beta2) + times(root, root);
    T size = sqrt(vi);
    m[i] = mi;
    v[i] = vi;
    p[i] = times(p[i], kept) - times(mi / (size + eps), rate);
}
