// What the kernels share: bf16 values travel as uint16_t.

#ifndef RESCOLDO_COMMON_H
#define RESCOLDO_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t i64;

#define SIMD _Pragma("omp simd")
#define ALWAYS static inline __attribute__((always_inline))
#define PAD(n, to) (((n) + (to) - 1) / (to) * (to))

static inline float bf16_to_f32(bf16 x) {
  union { uint32_t u; float f; } v = {.u = (uint32_t)x << 16};
  return v.f;
}

static inline bf16 f32_to_bf16(float x) {  // to nearest even; not-a-number stays one
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

// NormalFloat4: the quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E)
static const float NF4_LEVELS[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

static inline float soft_capped(float x, float cap) {  // cap · tanh(x / cap)
  float y = x / cap;
  y = y > 20.0f ? 20.0f : y < -20.0f ? -20.0f : y;
  float e = fast_exp(-2.0f * y);
  return cap * ((1.0f - e) / (1.0f + e));
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
