// What the kernels share: bf16 values travel as uint16_t; work is split over OpenMP threads so that each writes its own
// and results do not depend on timing.

#ifndef RESCOLDO_COMMON_H
#define RESCOLDO_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t i64;

#define ROWS _Pragma("omp parallel for schedule(static)")
#define SIMD _Pragma("omp simd")
#define ALWAYS static inline __attribute__((always_inline))
#define PAD(n, to) (((n) + (to) - 1) / (to) * (to))

static inline float up(bf16 x) {
  union { uint32_t u; float f; } v = {.u = (uint32_t)x << 16};
  return v.f;
}

static inline bf16 down(float x) {  // to nearest even; not-a-number stays one
  union { float f; uint32_t u; } v = {.f = x};
  uint32_t rounded = (v.u + 0x7FFF + ((v.u >> 16) & 1)) >> 16;
  uint32_t nan = (v.u >> 16) | 0x40;
  return (bf16)(((v.u & 0x7FFFFFFF) > 0x7F800000) ? nan : rounded);
}

static inline float fast_exp(float x) {  // relative error below 3e-7; 0 below -87
  x = x > 88.0f ? 88.0f : x;
  float y = x < -87.0f ? -87.0f : x;
  float n = rintf(y * 1.44269504f);
  float r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  union { int32_t i; float f; } s = {.i = ((int32_t)n + 127) << 23};
  return x < -87.0f ? 0.0f : p * s.f;
}

static inline uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

static inline void draw64(uint32_t row, i64 word, uint32_t *random) {  // 64 random bytes from 16 words
  SIMD for (int j = 0; j < 16; j++) random[j] = mix32(row + (uint32_t)(word + j) * 0x9E3779B9u);
}

#endif
