// The arrays' types, the type of their sums, and several channels at once.
//
// T is the type of value, y, dy and dvalue: __half, __nv_bfloat16, float or double.
// P is that of loc and A: T or, of half a precision, float. Half a precision tells
// places on a map of 100 pixels a tenth of a pixel apart: give locations in float.
// F, the type of all arithmetic and sums, is float; double where T is double.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> struct Sum { using type = float; };
template <> struct Sum<double> { using type = double; };
template <class T> using sum_t = typename Sum<T>::type;

__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }

__device__ inline void narrow(float x, __half &y) { y = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16 &y) { y = __float2bfloat16_rn(x); }
__device__ inline void narrow(float x, float &y) { y = x; }
__device__ inline void narrow(double x, double &y) { y = x; }

// V neighbouring channels, read and written by one instruction: V · sizeof(T) is a
// power of two, at most 16, and the address a multiple of it.
template <class T, int V> struct alignas(sizeof(T) * V) Channels {
    T at[V];
};

template <int V, class T> __device__ Channels<T, V> load(const T *from) {
    return *reinterpret_cast<const Channels<T, V> *>(from);
}

template <int V, class T, class F> __device__ void store(const F (&x)[V], T *to) {
    Channels<T, V> y;
    for (int i = 0; i < V; i++) narrow(x[i], y.at[i]);
    *reinterpret_cast<Channels<T, V> *>(to) = y;
}
