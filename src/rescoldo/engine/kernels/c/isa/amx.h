// AMX: int8 products in tiles of 16 rows by 16 outputs by up to 64 inputs (tdpbsud), and attention's products of bf16 pairs
// in tiles of 16 by 16 by up to 32 (tdpbf16ps); everything else as with AVX-512. A panel of the weights, (K/4, 16, 4), is a
// column of tiles as it stands, and so are attention's packed operands, [K/2][16][2].

#ifndef RESCOLDO_ISA_H
#define RESCOLDO_ISA_H

#include <sys/syscall.h>
#include <unistd.h>

#include "bytes512.h"

enum { PRODUCT_ROWS = 32 };

// Linux gives a process the tiles' registers when it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)
static inline int isa_start(void) { return syscall(SYS_arch_prctl, 0x1023, 18) != 0; }

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];  // of a row, by tile
  uint8_t rows[16];
} TileShapes;

static _Thread_local int shapes_now;  // rows and inputs of the tiles as they are configured; 0: not

ALWAYS void product_begin(void) { shapes_now = 0; }
ALWAYS void product_end(void) { _tile_release(); }

// tiles 0..3: sums of rows 0..15 and 16..31 by two panels; 4, 5: the rows; 6, 7: the panels
static inline void set_shapes(int m, int inputs) {
  if (shapes_now == m * 128 + inputs) return;
  TileShapes shapes = {.palette = 1};
  uint8_t rows[2] = {(uint8_t)(m < 16 ? m : 16), (uint8_t)(m < 16 ? 0 : m - 16)};
  for (int i = 0; i < 4; i++) shapes.bytes[i] = 64, shapes.rows[i] = rows[i / 2];
  for (int i = 0; i < 2; i++) {
    shapes.bytes[4 + i] = (uint16_t)inputs, shapes.rows[4 + i] = rows[i];
    shapes.bytes[6 + i] = 64, shapes.rows[6 + i] = (uint8_t)(inputs / 4);
  }
  for (int i = 0; i < 8; i++)
    if (!shapes.rows[i]) shapes.bytes[i] = 0;
  _tile_loadconfig(&shapes);
  shapes_now = m * 128 + inputs;
}

// inputs of a tile: k, a multiple of 4, in equal parts of at most 64
ALWAYS int tile_inputs(i64 k) {
  i64 n = (k + 63) / 64;
  while (k / 4 % n) n++;
  return (int)(k / n);
}

ALWAYS void tile_group(const int high, const int two, i64 k, int inputs, const int8_t *a, i64 stride, const uint8_t *b0,
                       const uint8_t *b1, int32_t *sums) {
  _tile_zero(0);
  if (two) _tile_zero(1);
  if (high) _tile_zero(2);
  if (high && two) _tile_zero(3);
  for (i64 i = 0; i < k; i += inputs) {
    _tile_loadd(4, a + i, stride);
    _tile_loadd(6, b0 + i * 16, 64);
    if (two) _tile_loadd(7, b1 + i * 16, 64);
    _tile_dpbsud(0, 4, 6);
    if (two) _tile_dpbsud(1, 4, 7);
    if (high) {
      _tile_loadd(5, a + 16 * stride + i, stride);
      _tile_dpbsud(2, 5, 6);
      if (two) _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 128);
  if (two) _tile_stored(1, sums + 16, 128);
  if (high) _tile_stored(2, sums + 512, 128);
  if (high && two) _tile_stored(3, sums + 528, 128);
}

// --- attention's products ----------------------------------------------------------------------------------------------

#define HAS_BF16_TILES  // gemm_pairs

// sums of up to 32 rows by up to 32 columns over `pairs` pairs of inputs, a tile's `deep` at a time
ALWAYS void tile_pairs(const int high, const int two, i64 pairs, int deep, const bf16 *a, i64 stride, const bf16 *b,
                       i64 ldb, float *c, i64 ldc, int add) {
  if (add) {
    _tile_loadd(0, c, ldc * 4);
    if (two) _tile_loadd(1, c + 16, ldc * 4);
    if (high) _tile_loadd(2, c + 16 * ldc, ldc * 4);
    if (high && two) _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
  } else {
    _tile_zero(0);
    if (two) _tile_zero(1);
    if (high) _tile_zero(2);
    if (high && two) _tile_zero(3);
  }
  for (i64 k = 0; k < pairs; k += deep) {
    _tile_loadd(4, a + 2 * k, stride * 2);
    _tile_loadd(6, b + k * ldb * 2, ldb * 4);
    if (two) _tile_loadd(7, b + k * ldb * 2 + 32, ldb * 4);
    _tile_dpbf16ps(0, 4, 6);
    if (two) _tile_dpbf16ps(1, 4, 7);
    if (high) {
      _tile_loadd(5, a + 16 * stride + 2 * k, stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      if (two) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, ldc * 4);
  if (two) _tile_stored(1, c + 16, ldc * 4);
  if (high) _tile_stored(2, c + 16 * ldc, ldc * 4);
  if (high && two) _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
}

// C (M, N) f32 (+)= A · B of bf16. A's pair (r, k) stands at A + r * rs + k * ks, ks 2, or rs 2 and K at most 2 MOST_PAIRS;
// rows up to the next multiple of 16 can be read. B is packed as [K/2][ldb][2]. M any, N a multiple of 16, K even.
enum { MOST_PAIRS = 96 };
static void gemm_pairs(i64 M, i64 N, i64 K, const bf16 *A, i64 rs, i64 ks, const bf16 *B, i64 ldb, float *C, i64 ldc,
                       int add) {
  _Alignas(64) uint32_t turned[32 * MOST_PAIRS];
  _Alignas(64) float edge[32 * 32];
  const int deep = tile_inputs(K * 2) / 4;
  shapes_now = 0;
  set_shapes(32, deep * 4);
  for (i64 m = 0; m < M; m += 32) {
    const i64 rows = M - m < 32 ? M - m : 32, stride = ks == 2 ? rs : K;
    const bf16 *a = A + m * rs;
    if (ks != 2) {
      for (i64 r = 0; r < rows; r += 16)
        for (i64 k = 0; k < K / 2; k += 16)
          transpose_words(a + r * rs + k * ks, ks / 2, K / 2 - k, turned + r * (K / 2) + k, K / 2);
      a = (const bf16 *)turned;
    }
    for (i64 n = 0; n < N; n += 32) {
      const int high = rows > 16, two = N - n > 16, whole = rows % 16 == 0;
      float *c = whole ? C + m * ldc + n : edge;
      const i64 wide = whole ? ldc : 32;
      const bf16 *b = B + n * 2;
      for (i64 r = 0; r < rows && add && !whole; r++) memcpy(edge + r * 32, C + (m + r) * ldc + n, two ? 128 : 64);
      if (high && two) tile_pairs(1, 1, K / 2, deep, a, stride, b, ldb, c, wide, add);
      else if (high) tile_pairs(1, 0, K / 2, deep, a, stride, b, ldb, c, wide, add);
      else if (two) tile_pairs(0, 1, K / 2, deep, a, stride, b, ldb, c, wide, add);
      else tile_pairs(0, 0, K / 2, deep, a, stride, b, ldb, c, wide, add);
      for (i64 r = 0; r < rows && !whole; r++) memcpy(C + (m + r) * ldc + n, edge + r * 32, two ? 128 : 64);
    }
  }
  _tile_release();
}

// --- int8 --------------------------------------------------------------------------------------------------------------

// sums (m, 32) of a group, less what the weights' offset has added, times each row's scale -> C (m, 32)
ALWAYS void scale_sums(const int NV, const int add, i64 m, const int32_t *sums, const int32_t *less, const float *scale,
                       i64 groups, float *C) {
  for (i64 r = 0; r < m; r++) {
    const vf s = f_set(scale[r * groups]);
    const vi l = i_set(less[r * groups]);
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      vf f = f_of(i_sub(i_load(sums + r * 32 + v * 16), l));
      float *c = C + r * 32 + v * 16;
      f_store(c, add ? f_fma(f, s, f_load(c)) : f_mul(f, s));
    }
  }
}

static inline void product_tile(i64 m, int nv, const Int8Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart,
                                float *C) {
  _Alignas(64) int32_t sums[32 * 32];
  const uint8_t *b0 = b, *b1 = b0 + apart;
  const int8_t *a = (const int8_t *)p->q + t * p->K + g0 * p->group;
  for (i64 g = g0; g < g1; g++) {
    i64 k = p->K - g * p->group < p->group ? p->K - g * p->group : p->group;
    int inputs = tile_inputs(k);
    set_shapes((int)m, inputs);
    if (m > 16 && nv == 2) tile_group(1, 1, k, inputs, a, p->K, b0, b1, sums);
    else if (m > 16) tile_group(1, 0, k, inputs, a, p->K, b0, b1, sums);
    else if (nv == 2) tile_group(0, 1, k, inputs, a, p->K, b0, b1, sums);
    else tile_group(0, 0, k, inputs, a, p->K, b0, b1, sums);
    const int32_t *less = p->sum + t * p->groups + g;
    const float *scale = p->scale + t * p->groups + g;
    if (nv == 2 && g > 0) scale_sums(2, 1, m, sums, less, scale, p->groups, C);
    else if (nv == 2) scale_sums(2, 0, m, sums, less, scale, p->groups, C);
    else scale_sums(1, g > 0, m, sums, less, scale, p->groups, C);
    a += p->group, b0 += k * 16, b1 += k * 16;
  }
}

#endif
