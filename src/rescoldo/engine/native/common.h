// What the kernels share: bf16 values travel as uint16_t; work is split over OpenMP threads so that each writes its own
// and results do not depend on timing.

#ifndef RESCOLDO_COMMON_H
#define RESCOLDO_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

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

#ifdef __AVX512F__
ALWAYS __m512 load_up(const bf16 *x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

ALWAYS __m256i down512(__m512 x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  __m512i u = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
  __m512i nan = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan));
#endif
}

// C[MR, 16 NV] (+)= A[MR, K] B[K, 16 NV]; A's element (r, k) stands at A + r * rs + k * ks
ALWAYS void tile_f32(const int MR, const int NV, i64 K, const float *A, i64 rs, i64 ks, const float *B, i64 ldb,
                     float *C, i64 ldc, int add) {
  __m512 acc[12][2];
#pragma GCC unroll 12
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[r][v] = add ? _mm512_loadu_ps(C + r * ldc + v * 16) : _mm512_setzero_ps();
  for (i64 k = 0; k < K; k++) {
    __m512 b[2];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) b[v] = _mm512_loadu_ps(B + k * ldb + v * 16);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      __m512 a = _mm512_set1_ps(A[r * rs + k * ks]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][v] = _mm512_fmadd_ps(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) _mm512_storeu_ps(C + r * ldc + v * 16, acc[r][v]);
}

// M any, N a multiple of 16
static inline void gemm_f32(i64 M, i64 N, i64 K, const float *A, i64 rs, i64 ks, const float *B, i64 ldb, float *C,
                            i64 ldc, int add) {
  for (i64 n = 0; n < N;) {
    int nv = N - n >= 32 ? 2 : 1;
    const float *b = B + n;
    float *c = C + n;
    i64 m = 0;
#define RUN(MR)                                                                          \
  for (; m + MR <= M; m += MR) {                                                         \
    if (nv == 2) tile_f32(MR, 2, K, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);  \
    else tile_f32(MR, 1, K, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);          \
  }
    RUN(12) RUN(4) RUN(1)
#undef RUN
    n += nv * 16;
  }
}
#endif

#endif
