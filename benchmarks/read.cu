// How fast a card reads: 16 bytes a load, four loads under way, the same bytes again
// and again. As many as fit the second-level cache measure that cache.
__global__ void read(const float4 *x, float *unused, int count, int times) {
    int threads = gridDim.x * blockDim.x, own = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < times; t++) {
        int shift = t * 4099;  // to another multiprocessor each time: past its own cache
#pragma unroll 4
        for (int i = own; i < count; i += threads) {
            int at = i + shift;
            float4 v = x[at < count ? at : at % count];
            sum += v.x + v.y + v.z + v.w;
        }
    }
    if (sum == 1e30f) *unused = sum;  // never; but the compiler cannot know
}
