// Sixteen lanes as one vector of AVX-512.

#ifndef RESCOLDO_LANES512_H
#define RESCOLDO_LANES512_H

#include "x86.h"

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
ALWAYS float f_reduce_add(vf x) { return _mm512_reduce_add_ps(x); }
// the sums of four vectors at once: half the instructions of four sums
ALWAYS void f_reduce_add4(const vf x[4], float *sums) {
  vf a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  vf b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  vf c = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  __m256 d = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1)));
}
enum { MIX_WIDE = 4 };  // vectors of a value's numbers at a time beside the sums of four queries
ALWAYS float f_reduce_max(vf x) { return _mm512_reduce_max_ps(x); }
ALWAYS int i_reduce_add(vi x) { return _mm512_reduce_add_epi32(x); }
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
// x where a byte reaches the threshold, else 0
ALWAYS vf f_where_bytes(vb bytes, int threshold, vf x) {
  return _mm512_maskz_mov_ps(_mm_cmpge_epu8_mask(bytes, _mm_set1_epi8((char)threshold)), x);
}
ALWAYS vf f_lookup(vf table, vi index) { return _mm512_permutexvar_ps(index, table); }
ALWAYS vi i_add_where(vi x, uint16_t set, int bit) { return _mm512_mask_add_epi32(x, set, x, i_set(bit)); }
ALWAYS vi i_add_if(vi x, vi test, int mask, int bit) {
  return _mm512_mask_add_epi32(x, _mm512_test_epi32_mask(test, i_set(mask)), x, i_set(bit));
}
ALWAYS vi i_bytes(vb x) { return _mm512_cvtepu8_epi32(x); }
ALWAYS vi i_signed_bytes(vb x) { return _mm512_cvtepi8_epi32(x); }
ALWAYS vi i_words(vw x) { return _mm512_cvtepu16_epi32(x); }
ALWAYS vi i_signed_words(vw x) { return _mm512_cvtepi16_epi32(x); }
ALWAYS vb to_bytes(vi x) { return _mm512_cvtepi32_epi8(x); }
ALWAYS vw to_words(vi x) { return _mm512_cvtepi32_epi16(x); }
ALWAYS vf as_f(vi x) { return _mm512_castsi512_ps(x); }

ALWAYS vw f_to_bf16(vf x) {
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
TWO(vi, i_and, and_si512)
TWO(vi, i_or, or_si512)
SHIFT(i_right, srli_epi32)
SHIFT(i_left, slli_epi32)
ONE(vf, vi, f_of, cvtepi32_ps)
ONE(vi, vf, i_of, cvtps_epi32)  // rounded to the nearest, to even

// the first n of 16, zeros behind them
ALWAYS vf h_load_some(const bf16 *p, i64 n) {
  return as_f(_mm512_slli_epi32(i_words(_mm256_maskz_loadu_epi16(first(n), p)), 16));
}
ALWAYS void h_store_some(bf16 *p, i64 n, vf x) { _mm256_mask_storeu_epi16(p, first(n), f_to_bf16(x)); }

// sum += each lane's two int16 of w · the two int16 at `pair`. Not the intrinsic: gcc 12 copies sums around it.
ALWAYS void i_add_dot(vi *sum, vi w, const void *pair) {
  int32_t two;
  memcpy(&two, pair, 4);
  vi x = i_set(two);
  __asm__("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
}

#ifdef __AVX512BF16__
#define HAS_BF16_DOT  // sum += each lane's two bf16 of w · the two bf16 at `pair`
ALWAYS void f_add_dot(vf *sum, vi w, const void *pair) {
  int32_t two;
  memcpy(&two, pair, 4);
  *sum = _mm512_dpbf16_ps(*sum, (__m512bh)i_set(two), (__m512bh)w);
}
#endif

// rows of a tile, and panels of 16 side by side: as many sums as there are registers for
enum { MR = 12, PANELS = 2 };
#define BY_ROWS(m, CALL)                                                                                      \
  switch (m) {                                                                                                \
    case 12: CALL(12); break; case 11: CALL(11); break; case 10: CALL(10); break; case 9: CALL(9); break;     \
    case 8: CALL(8); break; case 7: CALL(7); break; case 6: CALL(6); break; case 5: CALL(5); break;           \
    case 4: CALL(4); break; case 3: CALL(3); break; case 2: CALL(2); break; default: CALL(1); break;          \
  }
#define FULL_TILES(CALL) CALL(12) CALL(4) CALL(1)
#define FLOAT_TILES(CALL) FULL_TILES(CALL)

// 16 rows of 32 bytes -> 8 vectors: four bytes of each row. Three times the even words of two vectors go to one, the
// odd ones to the other: that takes one bit from the words' place to the vectors' and one of the rows' the other way.
ALWAYS void transpose_rows(const int8_t *rows, uint8_t *to) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1)), top = _mm512_set1_epi8((char)0x80);
  __m512i x[8], y[8];
  for (int i = 0; i < 8; i++) x[i] = _mm512_load_si512(rows + 64 * i);  // x[r3 r2 r1]: words r0 c2 c1 c0
  for (int i = 0; i < 4; i++) {
    y[i] = _mm512_permutex2var_epi32(x[2 * i], even, x[2 * i + 1]);
    y[4 + i] = _mm512_permutex2var_epi32(x[2 * i], odd, x[2 * i + 1]);  // y[c0 r3 r2]: r1 r0 c2 c1
  }
  for (int c = 0; c < 2; c++)
    for (int i = 0; i < 2; i++) {
      x[c * 2 + i] = _mm512_permutex2var_epi32(y[c * 4 + 2 * i], even, y[c * 4 + 2 * i + 1]);
      x[4 + c * 2 + i] = _mm512_permutex2var_epi32(y[c * 4 + 2 * i], odd, y[c * 4 + 2 * i + 1]);  // x[c1 c0 r3]
    }
  for (int c = 0; c < 4; c++) {
    y[c] = _mm512_permutex2var_epi32(x[2 * c], even, x[2 * c + 1]);
    y[4 + c] = _mm512_permutex2var_epi32(x[2 * c], odd, x[2 * c + 1]);  // y[c2 c1 c0]: rows
  }
  for (int i = 0; i < 8; i++) _mm512_storeu_si512(to + 64 * i, _mm512_xor_si512(y[i], top));
}

// 16 rows of 32-bit words, `stride` words apart, the first n of them -> each row's word k side by side in row k of `to`,
// `apart` words from row to row; nothing is read behind row n
ALWAYS void transpose_words(const void *from, i64 stride, i64 n, uint32_t *to, i64 apart) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  __m512i x[16], y[16];
  for (int i = 0; i < 16; i++)
    x[i] = i < n ? _mm512_loadu_si512((const uint32_t *)from + i * stride) : _mm512_setzero_si512();
#pragma GCC unroll 2
  for (int round = 0; round < 2; round++) {  // as in transpose_rows
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      y[i] = _mm512_permutex2var_epi32(x[2 * i], even, x[2 * i + 1]);
      y[8 + i] = _mm512_permutex2var_epi32(x[2 * i], odd, x[2 * i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      x[i] = _mm512_permutex2var_epi32(y[2 * i], even, y[2 * i + 1]);
      x[8 + i] = _mm512_permutex2var_epi32(y[2 * i], odd, y[2 * i + 1]);
    }
  }
  const __mmask16 some = first(n);
  for (int i = 0; i < 16; i++) _mm512_mask_storeu_epi32(to + i * apart, some, x[i]);
}

#endif
