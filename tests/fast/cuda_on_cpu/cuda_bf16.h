// CUDA's __nv_bfloat16: the upper half of a float.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 h) {
    uint32_t bits = uint32_t(h.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// To nearest, ties to even; what is not a number stays so.
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return {0x7fff};
    bits += 0x7fff + (bits >> 16 & 1);
    return {uint16_t(bits >> 16)};
}
