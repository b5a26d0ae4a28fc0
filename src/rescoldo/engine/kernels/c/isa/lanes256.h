// Sixteen lanes as two vectors of AVX2.

#ifndef RESCOLDO_LANES256_H
#define RESCOLDO_LANES256_H

#include "x86.h"

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
ALWAYS float f_reduce_add(vf x) {
  __m256 y = _mm256_add_ps(x.a, x.b);
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
// the sums of four vectors at once: half the instructions of four sums
ALWAYS void f_reduce_add4(const vf x[4], float *sums) {
  __m256 y[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) y[i] = _mm256_add_ps(x[i].a, x[i].b);
  __m256 z = _mm256_hadd_ps(_mm256_hadd_ps(y[0], y[1]), _mm256_hadd_ps(y[2], y[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1)));
}
enum { MIX_WIDE = 1 };  // vectors of a value's numbers at a time beside the sums of four queries
ALWAYS float f_reduce_max(vf x) {
  __m256 y = _mm256_max_ps(x.a, x.b);
  __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
ALWAYS int i_reduce_add(vi x) {
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
ALWAYS vf f_where_bytes(vb bytes, int threshold, vf x) {
  __m128i reached = _mm_cmpeq_epi8(_mm_max_epu8(bytes, _mm_set1_epi8((char)threshold)), bytes);
  return f_and(x, _mm256_cvtepi8_epi32(reached), _mm256_cvtepi8_epi32(_mm_srli_si128(reached, 8)));
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
ALWAYS vi i_bytes(vb x) { return (vi){_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))}; }
ALWAYS vi i_signed_bytes(vb x) {
  return (vi){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
}
ALWAYS vi i_words(vw x) {
  return (vi){_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
ALWAYS vi i_signed_words(vw x) {
  return (vi){_mm256_cvtepi16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(x, 1))};
}
// of numbers in the range of what they become
ALWAYS vw to_words(vi x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8); }
ALWAYS vb to_bytes(vi x) {
  __m256i words = to_words(x);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
ALWAYS vf as_f(vi x) { return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

ALWAYS __m256i f_to_bf16_256(__m256 x) {  // in the low words of eight lanes
  __m256i u = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i number = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q));  // what is none is cut off: it stays none, quiet
  __m256i half = _mm256_and_si256(_mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)), number);
  return _mm256_srli_epi32(_mm256_add_epi32(u, half), 16);
}
#define HAS_H_LOAD  // from memory each half needs one shuffle less
ALWAYS vf h_load(const bf16 *p) {
  const __m128i *words = (const __m128i *)p;
  return (vf){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(words)), 16)),
              _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(words + 1)), 16))};
}
ALWAYS vw f_to_bf16(vf x) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(f_to_bf16_256(x.a), f_to_bf16_256(x.b)), 0xD8);
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
TWO(vi, i_and, and_si256)
TWO(vi, i_or, or_si256)
SHIFT(i_right, srli_epi32)
SHIFT(i_left, slli_epi32)
ONE(vf, vi, f_of, cvtepi32_ps)
ONE(vi, vf, i_of, cvtps_epi32)  // rounded to the nearest, to even

// the first n of 16, zeros behind them
ALWAYS vf h_load_some(const bf16 *p, i64 n) {
  if (n >= 16) return h_load(p);
  bf16 some[16] = {0};
  for (i64 i = 0; i < n; i++) some[i] = p[i];
  return as_f(i_left(i_words(w_load(some)), 16));
}
ALWAYS void h_store_some(bf16 *p, i64 n, vf x) {
  bf16 some[16];
  if (n >= 16) {
    w_store(p, f_to_bf16(x));
    return;
  }
  w_store(some, f_to_bf16(x));
  for (i64 i = 0; i < n; i++) p[i] = some[i];
}

// rows of a tile, and panels of 16 side by side: as many sums as there are registers for
enum { MR = 6, PANELS = 1 };
#define BY_ROWS(m, CALL)                                                                                      \
  switch (m) {                                                                                                \
    case 6: CALL(6); break; case 5: CALL(5); break; case 4: CALL(4); break; case 3: CALL(3); break;           \
    case 2: CALL(2); break; default: CALL(1); break;                                                          \
  }
#define FULL_TILES(CALL) CALL(6) CALL(2) CALL(1)
#define FLOAT_TILES(CALL) CALL(6) CALL(4) CALL(2) CALL(1)  // sums of two rows wait for each other

// 8 rows of 8 words -> each word of all of them side by side, 64 bytes from word to word
ALWAYS void transpose_rows8(const int8_t *rows, uint8_t *to) {
  const __m256i top = _mm256_set1_epi8((char)0x80);
  __m256i x[8], y[8];
  for (int r = 0; r < 8; r++) x[r] = _mm256_load_si256((const __m256i *)(rows + 32 * r));
  for (int r = 0; r < 8; r += 2) {
    y[r] = _mm256_unpacklo_epi32(x[r], x[r + 1]);      // words 0 1 | 4 5 of two rows
    y[r + 1] = _mm256_unpackhi_epi32(x[r], x[r + 1]);  // words 2 3 | 6 7
  }
  for (int r = 0; r < 8; r += 4)
    for (int h = 0; h < 2; h++) {
      x[r + 2 * h] = _mm256_unpacklo_epi64(y[r + h], y[r + 2 + h]);      // word 2h | 2h + 4 of four rows
      x[r + 2 * h + 1] = _mm256_unpackhi_epi64(y[r + h], y[r + 2 + h]);  // word 2h + 1 | 2h + 5
    }
  for (int c = 0; c < 4; c++) {
    __m256i low = _mm256_permute2x128_si256(x[c], x[4 + c], 0x20), high = _mm256_permute2x128_si256(x[c], x[4 + c], 0x31);
    _mm256_storeu_si256((__m256i *)(to + 64 * c), _mm256_xor_si256(low, top));
    _mm256_storeu_si256((__m256i *)(to + 64 * (c + 4)), _mm256_xor_si256(high, top));
  }
}

// 16 rows of 32 bytes -> 8 times four bytes of each row
ALWAYS void transpose_rows(const int8_t *rows, uint8_t *to) { transpose_rows8(rows, to), transpose_rows8(rows + 256, to + 32); }

#endif
