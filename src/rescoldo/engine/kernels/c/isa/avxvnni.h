// AVX-VNNI: AVX2's lanes, and vpdpbusd and vpdpwssd in 256 bits: products of bytes and of words at twice vpmaddwd's rate.
// vpdpbusd takes unsigned times signed bytes, so 128 times the row's sum is taken off again.

#ifndef RESCOLDO_ISA_H
#define RESCOLDO_ISA_H

#include "lanes256.h"

typedef int8_t level;
enum { QMAX = 127, WEIGHT_BYTES = 1, CHUNK_BYTES = 1 << 18, PRODUCT_ROWS = MR };
ALWAYS int isa_start(void) { return 0; }
ALWAYS void product_begin(void) {}
ALWAYS void product_end(void) {}
ALWAYS void store_levels(level *q, vi n) { b_store(q, to_bytes(n)); }
ALWAYS vi load_levels(const level *q) { return i_signed_bytes(b_load(q)); }

// sum += each lane's two int16 of w · the two int16 at `pair`
ALWAYS void i_add_dot(vi *sum, vi w, const void *pair) {
  __m256i x;
  __asm__("vpbroadcastd %3, %2\n\t"
          "%{vex%} vpdpwssd %2, %4, %0\n\t"
          "%{vex%} vpdpwssd %2, %5, %1"
          : "+x"(sum->a), "+x"(sum->b), "=&x"(x)
          : "m"(*(const int16_t(*)[2])pair), "x"(w.a), "x"(w.b));
}

// sums of one row += w (unsigned) · the four levels at `four`
ALWAYS void dot4(vi *sum, vi w, const void *four) {
  __m256i x;
  __asm__("vpbroadcastd %3, %2\n\t"
          "%{vex%} vpdpbusd %2, %4, %0\n\t"
          "%{vex%} vpdpbusd %2, %5, %1"
          : "+x"(sum->a), "+x"(sum->b), "=&x"(x)
          : "m"(*(const char(*)[4])four), "x"(w.a), "x"(w.b));
}

ALWAYS void tile_fixed(const int m, const Int8Product *p, i64 t, i64 g0, i64 g1, const uint8_t *w, float *C, int add) {
  const level *a = (const level *)p->q + t * p->K + g0 * p->group;
  for (i64 g = g0; g < g1; g++) {
    i64 k4 = (p->K - g * p->group < p->group ? p->K - g * p->group : p->group) / 4;
    vi acc[MR];
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) acc[r] = i_set(-p->sum[(t + r) * p->groups + g]);
    for (i64 k = 0; k < k4; k++) {
      vi weights = i_load(w + k * 64);
#pragma GCC unroll 6
      for (int r = 0; r < m; r++) dot4(&acc[r], weights, a + r * p->K + 4 * k);
    }
    int more = add || g > g0;
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) {
      vf s = f_set(p->scale[(t + r) * p->groups + g]), f = f_of(acc[r]);
      float *c = C + r * PANELS * 16;
      f_store(c, more ? f_fma(f, s, f_load(c)) : f_mul(f, s));
    }
    a += p->group, w += k4 * 64;
  }
}

static inline void product_tile(i64 m, int nv, const Int8Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart,
                                float *C) {
  (void)nv, (void)apart;  // one panel
#define CALL(M) tile_fixed(M, p, t, g0, g1, b, C, g0 > 0)
  BY_ROWS(m, CALL)
#undef CALL
}

// four inputs' numbers of four outputs each, in lanes of 16 bytes -> four outputs' numbers of four inputs each
ALWAYS void transpose_panel(const uint8_t *from, i64 n, i64 deep, uint8_t *to) {
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (i64 i = 0; i < n; i += 16)
    for (int outputs = 0; outputs < 4; outputs++)   // four of them
      for (int inputs = 0; inputs < 4; inputs += 2) {  // four and four of them
        const uint8_t *s = from + i * 16 + outputs * 64 + inputs * 16;
        uint8_t *o = to + i / 16 * deep + inputs * 64 + outputs * 16;
        __m256i x = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)s), order);
        _mm_store_si128((__m128i *)o, _mm256_castsi256_si128(x));
        _mm_store_si128((__m128i *)(o + 64), _mm256_extracti128_si256(x, 1));
      }
}

#endif
