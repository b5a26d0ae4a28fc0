// Sixteen lanes at a time: one vector of AVX-512, or two of AVX2. f_… work on floats, i_… on 32-bit integers, h_… on
// bf16 in memory. A panel of 16 outputs is one such value.

#ifndef RESCOLDO_SIMD_H
#define RESCOLDO_SIMD_H

#include "common.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    !defined(RESCOLDO_AVX2)
#define LANES_512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LANES_256
#endif

#if defined(LANES_512) || defined(LANES_256)
#define HAS_LANES
#include <immintrin.h>

#ifdef LANES_512

typedef __m512 vf;
typedef __m512i vi;
#define ONE(T, U, name, op) ALWAYS T name(U x) { return _mm512_##op(x); }
#define TWO(T, name, op) ALWAYS T name(T x, T y) { return _mm512_##op(x, y); }
#define THREE(T, name, op) ALWAYS T name(T x, T y, T z) { return _mm512_##op(x, y, z); }
#define SHIFT(name, op) ALWAYS vi name(vi x, int n) { return _mm512_##op(x, n); }

ALWAYS __mmask16 first(i64 n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

ALWAYS vf f_set(float x) { return _mm512_set1_ps(x); }
ALWAYS vi i_set(int x) { return _mm512_set1_epi32(x); }
ALWAYS vf f_load(const float *p) { return _mm512_loadu_ps(p); }
ALWAYS void f_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
ALWAYS void i_store(void *p, vi x) { _mm512_storeu_si512(p, x); }
ALWAYS vi i_load(const void *p) { return _mm512_loadu_si512(p); }
ALWAYS vf f_load_some(const float *p, i64 n) { return _mm512_maskz_loadu_ps(first(n), p); }
ALWAYS float f_sum(vf x) { return _mm512_reduce_add_ps(x); }
ALWAYS float f_top(vf x) { return _mm512_reduce_max_ps(x); }
ALWAYS int i_sum(vi x) { return _mm512_reduce_add_epi32(x); }
ALWAYS vf f_abs(vf x) { return _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(0x7FFFFFFF))); }
ALWAYS vf f_round(vf x) { return _mm512_roundscale_ps(x, 0); }
ALWAYS vf f_scale(vf x, vf n) { return _mm512_scalef_ps(x, n); }  // x 2^n, n whole
// 0 where `by` is below (or is) the bound
ALWAYS vf f_not_below(vf x, vf by, float bound) {
  return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(by, _mm512_set1_ps(bound), _CMP_LT_OQ), _mm512_setzero_ps());
}
ALWAYS vf f_not_zero(vf x, vf by) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(by, _mm512_setzero_ps(), _CMP_NEQ_OQ), x);
}
// x in lanes whose index, counted from `at`, is in from..to-1, else 0
ALWAYS vf f_within(vf x, i64 at, i64 from, i64 to) {
  const vi lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  vi index = _mm512_add_epi32(lane, i_set((int)at));
  return _mm512_maskz_mov_ps(
      _mm512_cmpge_epi32_mask(index, i_set((int)from)) & _mm512_cmplt_epi32_mask(index, i_set((int)to)), x);
}
// `value` where a byte reaches the threshold, else 0
ALWAYS vf f_where_bytes(__m128i bytes, int threshold, float value) {
  return _mm512_maskz_mov_ps(_mm_cmpge_epu8_mask(bytes, _mm_set1_epi8((char)threshold)), f_set(value));
}
ALWAYS vf f_lookup(vf table, vi index) { return _mm512_permutexvar_ps(index, table); }
ALWAYS vi i_add_where(vi x, uint16_t set, int bit) { return _mm512_mask_add_epi32(x, set, x, i_set(bit)); }
ALWAYS vi i_add_if(vi x, vi test, int mask, int bit) {
  return _mm512_mask_add_epi32(x, _mm512_test_epi32_mask(test, i_set(mask)), x, i_set(bit));
}
ALWAYS vi i_bytes(__m128i x) { return _mm512_cvtepu8_epi32(x); }
ALWAYS vi i_signed_bytes(__m128i x) { return _mm512_cvtepi8_epi32(x); }
ALWAYS vi i_words(__m256i x) { return _mm512_cvtepu16_epi32(x); }
ALWAYS vi i_signed_words(__m256i x) { return _mm512_cvtepi16_epi32(x); }
ALWAYS __m128i to_bytes(vi x) { return _mm512_cvtepi32_epi8(x); }
ALWAYS __m256i to_words(vi x) { return _mm512_cvtepi32_epi16(x); }
ALWAYS vf as_f(vi x) { return _mm512_castsi512_ps(x); }

ALWAYS __m256i h_from(vf x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  vi u = _mm512_castps_si512(x);
  vi odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  vi rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
  vi nan = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan));
#endif
}

#else

typedef struct { __m256 a, b; } vf;
typedef struct { __m256i a, b; } vi;
#define ONE(T, U, name, op) ALWAYS T name(U x) { return (T){_mm256_##op(x.a), _mm256_##op(x.b)}; }
#define TWO(T, name, op) ALWAYS T name(T x, T y) { return (T){_mm256_##op(x.a, y.a), _mm256_##op(x.b, y.b)}; }
#define THREE(T, name, op) \
  ALWAYS T name(T x, T y, T z) { return (T){_mm256_##op(x.a, y.a, z.a), _mm256_##op(x.b, y.b, z.b)}; }
#define SHIFT(name, op) ALWAYS vi name(vi x, int n) { return (vi){_mm256_##op(x.a, n), _mm256_##op(x.b, n)}; }

ALWAYS vf f_set(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ALWAYS vi i_set(int x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
ALWAYS vf f_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ALWAYS void f_store(float *p, vf x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
ALWAYS void i_store(void *p, vi x) {
  _mm256_storeu_si256((__m256i *)p, x.a), _mm256_storeu_si256((__m256i *)p + 1, x.b);
}
ALWAYS vi i_load(const void *p) {
  return (vi){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
ALWAYS vi first_lanes(i64 n) {  // all bits of the first n lanes
  int m = n >= 16 ? 16 : (int)n;
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (vi){_mm256_cmpgt_epi32(_mm256_set1_epi32(m), lane), _mm256_cmpgt_epi32(_mm256_set1_epi32(m - 8), lane)};
}
ALWAYS vf f_load_some(const float *p, i64 n) {
  if (n >= 16) return f_load(p);
  vi m = first_lanes(n);
  return (vf){_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
ALWAYS float f_sum(vf x) {
  __m256 y = _mm256_add_ps(x.a, x.b);
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
ALWAYS float f_top(vf x) {
  __m256 y = _mm256_max_ps(x.a, x.b);
  __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
ALWAYS int i_sum(vi x) {
  __m256i y = _mm256_add_epi32(x.a, x.b);
  __m128i z = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
  z = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(z, _mm_shuffle_epi32(z, 0xB1)));
}
ALWAYS vf f_and(vf x, __m256i a, __m256i b) {
  return (vf){_mm256_and_ps(x.a, _mm256_castsi256_ps(a)), _mm256_and_ps(x.b, _mm256_castsi256_ps(b))};
}
ALWAYS vf f_abs(vf x) {
  const __m256i all = _mm256_set1_epi32(0x7FFFFFFF);
  return f_and(x, all, all);
}
ALWAYS vf f_round(vf x) {
  enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
  return (vf){_mm256_round_ps(x.a, NEAREST), _mm256_round_ps(x.b, NEAREST)};
}
ALWAYS __m256 scale256(__m256 x, __m256 n) {
  __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
}
ALWAYS vf f_scale(vf x, vf n) { return (vf){scale256(x.a, n.a), scale256(x.b, n.b)}; }  // x 2^n, n whole, -126..127
ALWAYS vf f_not_below(vf x, vf by, float bound) {
  __m256 limit = _mm256_set1_ps(bound);
  return (vf){_mm256_andnot_ps(_mm256_cmp_ps(by.a, limit, _CMP_LT_OQ), x.a),
              _mm256_andnot_ps(_mm256_cmp_ps(by.b, limit, _CMP_LT_OQ), x.b)};
}
ALWAYS vf f_not_zero(vf x, vf by) {
  __m256 zero = _mm256_setzero_ps();
  return (vf){_mm256_and_ps(_mm256_cmp_ps(by.a, zero, _CMP_NEQ_OQ), x.a),
              _mm256_and_ps(_mm256_cmp_ps(by.b, zero, _CMP_NEQ_OQ), x.b)};
}
ALWAYS __m256i within256(i64 at, i64 from, i64 to) {
  __m256i index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int)at));
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)from), index),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32((int)to), index));
}
ALWAYS vf f_within(vf x, i64 at, i64 from, i64 to) {
  if (at >= from && at + 16 <= to) return x;
  return f_and(x, within256(at, from, to), within256(at + 8, from, to));
}
ALWAYS vf f_where_bytes(__m128i bytes, int threshold, float value) {
  __m128i reached = _mm_cmpeq_epi8(_mm_max_epu8(bytes, _mm_set1_epi8((char)threshold)), bytes);
  return f_and(f_set(value), _mm256_cvtepi8_epi32(reached), _mm256_cvtepi8_epi32(_mm_srli_si128(reached, 8)));
}
ALWAYS __m256 lookup256(vf table, __m256i index) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.a, index), _mm256_permutevar8x32_ps(table.b, index),
                          _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));  // bit 3 as the sign
}
ALWAYS vf f_lookup(vf table, vi index) { return (vf){lookup256(table, index.a), lookup256(table, index.b)}; }
ALWAYS __m256i add_if256(__m256i x, __m256i test, __m256i mask, int bit) {
  __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(test, mask), mask);  // one bit of each lane
  return _mm256_add_epi32(x, _mm256_and_si256(set, _mm256_set1_epi32(bit)));
}
ALWAYS vi i_add_where(vi x, uint16_t set, int bit) {
  const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256i bits = _mm256_set1_epi32(set);
  return (vi){add_if256(x.a, bits, low, bit), add_if256(x.b, bits, _mm256_slli_epi32(low, 8), bit)};
}
ALWAYS vi i_add_if(vi x, vi test, int mask, int bit) {
  __m256i m = _mm256_set1_epi32(mask);
  return (vi){add_if256(x.a, test.a, m, bit), add_if256(x.b, test.b, m, bit)};
}
ALWAYS vi i_bytes(__m128i x) { return (vi){_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))}; }
ALWAYS vi i_signed_bytes(__m128i x) {
  return (vi){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
ALWAYS vi i_words(__m256i x) {
  return (vi){_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
ALWAYS vi i_signed_words(__m256i x) {
  return (vi){_mm256_cvtepi16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(x, 1))};
}
// of numbers in the range of what they become
ALWAYS __m256i to_words(vi x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8); }
ALWAYS __m128i to_bytes(vi x) {
  __m256i words = to_words(x);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
ALWAYS vf as_f(vi x) { return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

ALWAYS __m256i h_from256(__m256 x) {  // in the low words of eight lanes
  __m256i u = _mm256_castps_si256(x);
  __m256i high = _mm256_srli_epi32(u, 16), odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
}
ALWAYS __m256i h_from(vf x) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(h_from256(x.a), h_from256(x.b)), 0xD8);
}

#endif

TWO(vf, f_add, add_ps)
TWO(vf, f_sub, sub_ps)
TWO(vf, f_mul, mul_ps)
TWO(vf, f_div, div_ps)
TWO(vf, f_max, max_ps)
THREE(vf, f_fma, fmadd_ps)    // x y + z
THREE(vf, f_fms, fmsub_ps)    // x y - z
THREE(vf, f_fnma, fnmadd_ps)  // z - x y
TWO(vi, i_add, add_epi32)
TWO(vi, i_sub, sub_epi32)
#ifdef LANES_512
TWO(vi, i_and, and_si512)
TWO(vi, i_or, or_si512)
#else
TWO(vi, i_and, and_si256)
TWO(vi, i_or, or_si256)
#endif
SHIFT(i_right, srli_epi32)
SHIFT(i_left, slli_epi32)
ONE(vf, vi, f_of, cvtepi32_ps)
ONE(vi, vf, i_of, cvtps_epi32)  // rounded to the nearest, to even

ALWAYS vf f_zero(void) { return f_set(0.0f); }

// sum += each lane's two int16 of w · the two int16 at `pair`. Not the intrinsics: gcc 12 copies sums around VNNI's, and
// loads AVX2's operands so early that it spills.
ALWAYS void i_add_dot(vi *sum, vi w, const void *pair) {
#ifdef LANES_512
  int32_t two;
  memcpy(&two, pair, 4);
  vi x = i_set(two);
#ifdef __AVX512VNNI__
  __asm__("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
#else
  *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(w, x));
#endif
#else
  __m256i x, y;
  __asm__("vpbroadcastd %4, %2\n\t"
          "vpmaddwd %5, %2, %3\n\t"
          "vpmaddwd %6, %2, %2\n\t"
          "vpaddd %3, %0, %0\n\t"
          "vpaddd %2, %1, %1"
          : "+x"(sum->a), "+x"(sum->b), "=&x"(x), "=&x"(y)
          : "m"(*(const int16_t(*)[2])pair), "x"(w.a), "x"(w.b));
#endif
}
ALWAYS vi i_zero(void) { return i_set(0); }
ALWAYS vf h_up(__m256i x) { return as_f(i_left(i_words(x), 16)); }
ALWAYS vf h_load(const bf16 *p) { return h_up(_mm256_loadu_si256((const __m256i *)p)); }
ALWAYS void h_store(bf16 *p, vf x) { _mm256_storeu_si256((__m256i *)p, h_from(x)); }

// the first n of 16, zeros behind them
ALWAYS vf h_load_some(const bf16 *p, i64 n) {
#ifdef LANES_512
  return h_up(_mm256_maskz_loadu_epi16(first(n), p));
#else
  if (n >= 16) return h_load(p);
  bf16 some[16] = {0};
  for (i64 i = 0; i < n; i++) some[i] = p[i];
  return h_load(some);
#endif
}
ALWAYS void h_store_some(bf16 *p, i64 n, vf x) {
#ifdef LANES_512
  _mm256_mask_storeu_epi16(p, first(n), h_from(x));
#else
  if (n >= 16) {
    h_store(p, x);
    return;
  }
  bf16 some[16];
  h_store(some, x);
  for (i64 i = 0; i < n; i++) p[i] = some[i];
#endif
}

ALWAYS vf f_exp(vf x) {  // common.h's fast_exp
  vf y = f_max(x, f_set(-87.0f));
  vf n = f_round(f_mul(y, f_set(1.44269504f)));
  vf r = f_fnma(n, f_set(0.693359375f), y);
  r = f_fma(n, f_set(2.12194440e-4f), r);
  vf p = f_set(1.9875691500e-4f);
  p = f_fma(p, r, f_set(1.3981999507e-3f));
  p = f_fma(p, r, f_set(8.3334519073e-3f));
  p = f_fma(p, r, f_set(4.1665795894e-2f));
  p = f_fma(p, r, f_set(1.6666665459e-1f));
  p = f_fma(p, r, f_set(5.0000001201e-1f));
  p = f_add(f_fma(f_mul(p, r), r, r), f_set(1.0f));
  return f_not_below(f_scale(p, n), x, -87.0f);
}

// --- float products ---------------------------------------------------------------------------------------------------

// rows of a tile, and panels of 16 side by side: as many sums as there are registers for
#ifdef LANES_512
enum { MR = 12, PANELS = 2 };
#define BY_ROWS(m, CALL)                                                                                      \
  switch (m) {                                                                                                \
    case 12: CALL(12); break; case 11: CALL(11); break; case 10: CALL(10); break; case 9: CALL(9); break;     \
    case 8: CALL(8); break; case 7: CALL(7); break; case 6: CALL(6); break; case 5: CALL(5); break;           \
    case 4: CALL(4); break; case 3: CALL(3); break; case 2: CALL(2); break; default: CALL(1); break;          \
  }
#else
enum { MR = 6, PANELS = 1 };
#define BY_ROWS(m, CALL)                                                                                      \
  switch (m) {                                                                                                \
    case 6: CALL(6); break; case 5: CALL(5); break; case 4: CALL(4); break; case 3: CALL(3); break;           \
    case 2: CALL(2); break; default: CALL(1); break;                                                          \
  }
#endif

// C[M, 16 NV] (+)= A[M, K] B[K, 16 NV]; A's element (r, k) stands at A + r * rs + k * ks
ALWAYS void tile_f32(const int M, const int NV, i64 K, const float *A, i64 rs, i64 ks, const float *B, i64 ldb,
                     float *C, i64 ldc, int add) {
  vf acc[MR][PANELS];
#pragma GCC unroll 12
  for (int r = 0; r < M; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[r][v] = add ? f_load(C + r * ldc + v * 16) : f_zero();
  for (i64 k = 0; k < K; k++) {
    vf b[PANELS];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) b[v] = f_load(B + k * ldb + v * 16);
#pragma GCC unroll 12
    for (int r = 0; r < M; r++) {
      vf a = f_set(A[r * rs + k * ks]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][v] = f_fma(a, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) f_store(C + r * ldc + v * 16, acc[r][v]);
}

// M any, N a multiple of 16
static inline void gemm_f32(i64 M, i64 N, i64 K, const float *A, i64 rs, i64 ks, const float *B, i64 ldb, float *C,
                            i64 ldc, int add) {
  for (i64 n = 0; n < N;) {
    int nv = N - n >= 16 * PANELS ? PANELS : 1;
    const float *b = B + n;
    float *c = C + n;
    i64 m = 0;
#define RUN_TILES(M_)                                                                                       \
  for (; m + M_ <= M; m += M_) {                                                                            \
    if (nv == PANELS) tile_f32(M_, PANELS, K, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);           \
    else tile_f32(M_, 1, K, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);                             \
  }
#ifdef LANES_512
    RUN_TILES(12) RUN_TILES(4) RUN_TILES(1)
#else
    RUN_TILES(6) RUN_TILES(2) RUN_TILES(1)
#endif
#undef RUN_TILES
    n += nv * 16;
  }
}

#endif
#endif
