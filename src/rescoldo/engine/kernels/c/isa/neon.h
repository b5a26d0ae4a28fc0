// NEON with sdot: products of signed bytes, four at a time.

#ifndef RESCOLDO_ISA_H
#define RESCOLDO_ISA_H

#include "lanesneon.h"

ALWAYS void tile_fixed(const int m, const Int8Product *p, i64 t, i64 g0, i64 g1, const int8_t *w, float *C, int add) {
  const level *a = (const level *)p->q + t * p->K + g0 * p->group;
  for (i64 g = g0; g < g1; g++) {
    i64 k = p->K - g * p->group < p->group ? p->K - g * p->group : p->group;
    vi acc[MR];
    int8x16_t x[MR];
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) acc[r] = i_set(0);
    for (i64 i = 0; i < k; i += 16, w += 256) {
#pragma GCC unroll 6
      for (int r = 0; r < m; r++) x[r] = vld1q_s8(a + r * p->K + i);
#define FOUR_INPUTS(STEP)                                                                            \
  _Pragma("GCC unroll 4") for (int l = 0; l < 4; l++) {                                              \
    int8x16_t b = vld1q_s8(w + STEP * 64 + 16 * l);                                                  \
    _Pragma("GCC unroll 6") for (int r = 0; r < m; r++) acc[r].v[l] = vdotq_laneq_s32(acc[r].v[l], b, x[r], STEP); \
  }
      FOUR_INPUTS(0)
      FOUR_INPUTS(1)
      FOUR_INPUTS(2)
      FOUR_INPUTS(3)
#undef FOUR_INPUTS
    }
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) add_group(acc[r], p->scale[(t + r) * p->groups + g], C + r * 16, add || g > g0);
    a += p->group;
  }
}

static inline void product_tile(i64 m, int nv, const Int8Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart,
                                float *C) {
  (void)nv, (void)apart;  // one panel
#define CALL(M) tile_fixed(M, p, t, g0, g1, b, C, g0 > 0)
  BY_ROWS(m, CALL)
#undef CALL
}

ALWAYS void prepare_panel(const uint8_t *from, i64 n, void *to) {
  for (i64 i = 0; i < n * 16; i += 16) vst1q_u8((uint8_t *)to + i, veorq_u8(vld1q_u8(from + i), vdupq_n_u8(0x80)));
}

ALWAYS void transpose_panel(const uint8_t *from, i64 n, i64 deep, uint8_t *to) {
  for (i64 i = 0; i < n; i += 16)
    for (int outputs = 0; outputs < 4; outputs++)
      for (int inputs = 0; inputs < 4; inputs++)
        vst1q_u8(to + i / 16 * deep + inputs * 64 + outputs * 16,
                 transpose4(from + i * 16 + outputs * 64 + inputs * 16));
}

#endif
