// AVX2: int16 of 14 bits, and the weights made int16 block by block: vpmaddwd sums without losing a bit, where AVX2's
// product of bytes would saturate. Half the rate of bytes, and nothing lost but the weights' rounding.

#ifndef RESCOLDO_ISA_H
#define RESCOLDO_ISA_H

#include "lanes256.h"

typedef int16_t level;
#define PREPARES_PANELS
enum { QMAX = 8191, WEIGHT_BYTES = 2, CHUNK_BYTES = 1 << 18, PRODUCT_ROWS = MR };  // 127 · 8191 · 2048 fits into 31 bits
ALWAYS void store_levels(level *q, vi n) { w_store(q, to_words(n)); }
ALWAYS int isa_start(void) { return 0; }
ALWAYS void product_begin(void) {}
ALWAYS void product_end(void) {}
ALWAYS vi load_levels(const level *q) { return i_signed_words(w_load(q)); }

// sum += each lane's two int16 of w · the two int16 at `pair`. Not the intrinsics: gcc 12 loads the operands so early that
// it spills.
ALWAYS void i_add_dot(vi *sum, vi w, const void *pair) {
  __m256i x, y;
  __asm__("vpbroadcastd %4, %2\n\t"
          "vpmaddwd %5, %2, %3\n\t"
          "vpmaddwd %6, %2, %2\n\t"
          "vpaddd %3, %0, %0\n\t"
          "vpaddd %2, %1, %1"
          : "+x"(sum->a), "+x"(sum->b), "=&x"(x), "=&x"(y)
          : "m"(*(const int16_t(*)[2])pair), "x"(w.a), "x"(w.b));
}

// sums of one row += w0, w1 (8 times two weights) · the two levels at FROM. Not the intrinsics: gcc 12 loads first and then
// spills; and a loop with an address for each row has more instructions than the CPU takes in.
#define DOT2(ROW, FROM)                                    \
  __asm__("vpbroadcastd " FROM ", %2\n\t"                  \
          "vpmaddwd %4, %2, %3\n\t"                        \
          "vpmaddwd %5, %2, %2\n\t"                        \
          "vpaddd %3, %0, %0\n\t"                          \
          "vpaddd %2, %1, %1"                              \
          : "+x"(acc[ROW][0]), "+x"(acc[ROW][1]), "=&x"(x), "=&x"(y) \
          : "x"(w0), "x"(w1), "r"(ROW < 3 ? upper : lower), "r"(stride), "m"(*(const char(*)[1 << 30])upper))

// AT: bytes from the first level, as text and as a number
#define ALL_ROWS(AT, TEXT)                                                     \
  do {                                                                         \
    __m256i w0 = _mm256_load_si256((const __m256i *)(w + k * 32 + AT * 8));      \
    __m256i w1 = _mm256_load_si256((const __m256i *)(w + k * 32 + AT * 8 + 16)); \
    __m256i x, y;                                                              \
    DOT2(0, TEXT "(%6)");                                                      \
    if (m > 1) DOT2(1, TEXT "(%6,%7)");                                        \
    if (m > 2) DOT2(2, TEXT "(%6,%7,2)");                                      \
    if (m > 3) DOT2(3, TEXT "(%6)");                                           \
    if (m > 4) DOT2(4, TEXT "(%6,%7)");                                        \
    if (m > 5) DOT2(5, TEXT "(%6,%7,2)");                                      \
  } while (0)

// groups g0..g1-1 of rows t..t+m-1 into C (m, 16 PANELS) f32; b and the panels `apart` bytes behind it stand at group g0
ALWAYS void tile_rows(const int m, const Int8Product *p, i64 t, i64 g0, i64 g1, const int16_t *w, float *C, int add) {
  const i64 stride = p->K * 2;
  const char *upper = (const char *)((const level *)p->q + t * p->K + g0 * p->group), *lower = upper + 3 * stride;
  for (i64 g = g0; g < g1; g++) {
    i64 k2 = (p->K - g * p->group < p->group ? p->K - g * p->group : p->group) / 2;
    __m256i acc[6][2];
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (i64 k = 0; k < k2; k += 4, upper += 16, lower += 16) {
      ALL_ROWS(0, "");
      ALL_ROWS(4, "4");
      ALL_ROWS(8, "8");
      ALL_ROWS(12, "12");
    }
    int more = add || g > g0;
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) {
      __m256 s = _mm256_set1_ps(p->scale[(t + r) * p->groups + g]);
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        __m256 f = _mm256_cvtepi32_ps(acc[r][h]);
        float *c = C + r * PANELS * 16 + h * 8;
        _mm256_storeu_ps(c, more ? _mm256_fmadd_ps(f, s, _mm256_loadu_ps(c)) : _mm256_mul_ps(f, s));
      }
    }
    w += k2 * 32;
  }
}

static inline void product_tile(i64 m, int nv, const Int8Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart, float *C) {
  (void)nv, (void)apart;  // one panel
#define CALL(M) tile_rows(M, p, t, g0, g1, b, C, g0 > 0)
  BY_ROWS(m, CALL)
#undef CALL
}

// bytes + 128 in two lanes -> int16; `order` says which byte goes into the upper half of each
ALWAYS __m256i widened(__m256i bytes, __m256i order) {
  return _mm256_srai_epi16(_mm256_shuffle_epi8(_mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80)), order), 8);
}

// panel (n/4, 16, 4) of bytes -> (n/2, 16, 2) int16
ALWAYS void prepare_panel(const uint8_t *from, i64 n, void *panel) {
  int16_t *to = panel;
  const __m256i low = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
  const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  for (i64 i = 0; i < n / 4; i++)
    for (int h = 0; h < 2; h++) {
      __m256i x = _mm256_loadu_si256((const __m256i *)(from + i * 64 + h * 32));
      _mm256_store_si256((__m256i *)(to + i * 64 + h * 16), widened(x, low));
      _mm256_store_si256((__m256i *)(to + i * 64 + 32 + h * 16), widened(x, high));
    }
}

ALWAYS void transpose_panel(const uint8_t *from, i64 n, i64 deep, uint8_t *to) {
  const __m256i low = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7));
  const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15));
  for (i64 i = 0; i < n; i += 16)
    for (int four = 0; four < 4; four++)  // inputs
      for (int h = 0; h < 2; h++) {       // outputs
        const uint8_t *s = from + i * 16 + h * 128 + four * 16;
        __m256i x = _mm256_loadu2_m128i((const __m128i *)(s + 64), (const __m128i *)s);
        int16_t *o = (int16_t *)(to + i / 16 * deep) + four * 64 + h * 16;
        _mm256_store_si256((__m256i *)o, widened(x, low));
        _mm256_store_si256((__m256i *)(o + 32), widened(x, high));
      }
}

#endif
