// NEON with smmla: two outputs' by two rows' products of signed bytes, eight at a time. Panels are prepared as
// (K/8, 16, 8).

#ifndef RESCOLDO_ISA_H
#define RESCOLDO_ISA_H

#include "lanesneon.h"

ALWAYS void tile_fixed(const int m, const Int8Product *p, i64 t, i64 g0, i64 g1, const int8_t *w, float *C, int add) {
  const level *a = (const level *)p->q + t * p->K + g0 * p->group;
  const i64 second = p->K;
  for (i64 g = g0; g < g1; g++) {
    i64 k = p->K - g * p->group < p->group ? p->K - g * p->group : p->group;
    int32x4_t acc[MR / 2][8];  // of two rows: outputs n, n + 1 by the rows
#pragma GCC unroll 3
    for (int r = 0; r < (m + 1) / 2; r++)
#pragma GCC unroll 8
      for (int l = 0; l < 8; l++) acc[r][l] = vdupq_n_s32(0);
    for (i64 i = 0; i < k; i += 8, w += 128) {
      int8x16_t x[MR / 2];
#pragma GCC unroll 3
      for (int r = 0; r < (m + 1) / 2; r++) {
        const level *row = a + 2 * r * p->K + i;
        x[r] = vcombine_s8(vld1_s8(row), vld1_s8(2 * r + 1 < m ? row + second : row));
      }
#pragma GCC unroll 8
      for (int l = 0; l < 8; l++) {
        int8x16_t b = vld1q_s8(w + 16 * l);
#pragma GCC unroll 3
        for (int r = 0; r < (m + 1) / 2; r++) acc[r][l] = vmmlaq_s32(acc[r][l], b, x[r]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < m; r++) {
      vi sums;
#pragma GCC unroll 4
      for (int l = 0; l < 4; l++)
        sums.v[l] = r % 2 ? vuzp2q_s32(acc[r / 2][2 * l], acc[r / 2][2 * l + 1])
                          : vuzp1q_s32(acc[r / 2][2 * l], acc[r / 2][2 * l + 1]);
      add_group(sums, p->scale[(t + r) * p->groups + g], C + r * 16, add || g > g0);
    }
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

// four outputs' numbers of inputs 0..3 and 4..7 -> of inputs 0..7
ALWAYS void interleave(vb first, vb second, uint8_t *to) {
  uint32x4_t x = vreinterpretq_u32_u8(first), y = vreinterpretq_u32_u8(second);
  vst1q_u8(to, vreinterpretq_u8_u32(vzip1q_u32(x, y))), vst1q_u8(to + 16, vreinterpretq_u8_u32(vzip2q_u32(x, y)));
}

ALWAYS void prepare_panel(const uint8_t *from, i64 n, void *to) {
  const vb top = vdupq_n_u8(0x80);
  for (i64 i = 0; i < n * 16; i += 128)
    for (int four = 0; four < 4; four++)
      interleave(veorq_u8(vld1q_u8(from + i + four * 16), top), veorq_u8(vld1q_u8(from + i + 64 + four * 16), top),
                 (uint8_t *)to + i + four * 32);
}

ALWAYS void transpose_panel(const uint8_t *from, i64 n, i64 deep, uint8_t *to) {
  for (i64 i = 0; i < n; i += 16)
    for (int outputs = 0; outputs < 4; outputs++)
      for (int inputs = 0; inputs < 4; inputs += 2) {
        const uint8_t *s = from + i * 16 + outputs * 64 + inputs * 16;
        interleave(transpose4(s), transpose4(s + 16), to + i / 16 * deep + inputs * 64 + outputs * 32);
      }
}

#endif
