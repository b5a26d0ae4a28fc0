// AVX-512 with VNNI: vpdpbusd takes unsigned times signed bytes, so 128 times the row's sum is taken off again. Built with
// and without AVX512_BF16, whose product of pairs attention then uses.

#ifndef RESCOLDO_ISA_H
#define RESCOLDO_ISA_H

#include "bytes512.h"

enum { PRODUCT_ROWS = MR };
ALWAYS int isa_start(void) { return 0; }
ALWAYS void product_begin(void) {}
ALWAYS void product_end(void) {}

// sum += w (unsigned) · x (signed), four at a time. Not the intrinsic: gcc 12 copies each sum twice around it.
ALWAYS void dot4(__m512i *sum, __m512i w, __m512i x) { __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x)); }

// groups g0..g1-1 of rows t..t+m-1 into C (m, 16 PANELS) f32; b and the panels `apart` bytes behind it stand at group g0
ALWAYS void tile_fixed(const int m, const int NV, const Int8Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart,
                      float *C, int add) {
  const uint8_t *b0 = b, *b1 = b0 + apart;
  const int8_t *a = (const int8_t *)p->q + t * p->K + g0 * p->group;
  for (i64 g = g0; g < g1; g++) {
    i64 k4 = (p->K - g * p->group < p->group ? p->K - g * p->group : p->group) / 4;
    vi acc[MR][2];
#pragma GCC unroll 12
    for (int r = 0; r < m; r++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][v] = i_set(-p->sum[(t + r) * p->groups + g]);
    for (i64 k = 0; k < k4; k++) {
      vi w0 = _mm512_loadu_si512(b0 + k * 64), w1 = NV == 2 ? _mm512_loadu_si512(b1 + k * 64) : w0;
#pragma GCC unroll 12
      for (int r = 0; r < m; r++) {
        int32_t four;
        memcpy(&four, a + r * p->K + 4 * k, 4);
        vi x = i_set(four);
        dot4(&acc[r][0], w0, x);
        if (NV == 2) dot4(&acc[r][1], w1, x);
      }
    }
    int more = add || g > g0;
#pragma GCC unroll 12
    for (int r = 0; r < m; r++) {
      vf s = f_set(p->scale[(t + r) * p->groups + g]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) {
        vf f = f_of(acc[r][v]);
        float *c = C + r * 32 + v * 16;
        f_store(c, more ? f_fma(f, s, f_load(c)) : f_mul(f, s));
      }
    }
    a += p->group, b0 += k4 * 64, b1 += k4 * 64;
  }
}

static inline void product_tile(i64 m, int nv, const Int8Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart, float *C) {
#define CALL(M)                                                              \
  if (nv == PANELS) tile_fixed(M, PANELS, p, t, g0, g1, b, apart, C, g0 > 0); \
  else tile_fixed(M, 1, p, t, g0, g1, b, apart, C, g0 > 0)
  BY_ROWS(m, CALL)
#undef CALL
}

#endif
