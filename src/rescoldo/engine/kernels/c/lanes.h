// Sixteen lanes at a time, whatever the instruction set: f_… work on floats (vf), i_… on 32-bit integers (vi), h_… on bf16
// in memory, b_… on 16 bytes (vb), w_… on 16 words of 16 bits (vw). A panel of 16 outputs is one vf or vi. All intrinsics
// are in the header of the instruction set, isa/NAME.h, which the build names; it has
//
//   vf, vi, vb, vw and the operations on them that this file and its users call
//   isa_start        at load: whatever the system must be asked for; not 0: it refuses
//   MR, PANELS, BY_ROWS, FULL_TILES     the shape of a tile of sums in registers; FLOAT_TILES: of products of floats
//   i_add_dot, and f_add_dot where HAS_BF16_DOT is defined: products of pairs for attention
//   transpose_rows                      16 rows of 32 bytes -> 8 times four bytes of each row, plus 128
//
// and the product of int8.c:
//
//   level, QMAX, store_levels, load_levels   what inputs are quantized to
//   WEIGHT_BYTES     of a weight in a product. Where PREPARES_PANELS is defined, prepare_panel makes what it takes of n
//                    inputs of a panel, and transpose_panel gives the same
//   CHUNK_BYTES      of weights that stay in cache while the rows go by
//   PRODUCT_ROWS     of a tile, and product_tile, which computes one: groups g0..g1-1 of rows t..t+m-1 into C (m, 16
//                    PANELS) f32, added if g0 > 0; b and the panel `apart` bytes behind it stand at group g0. Between
//                    product_begin and product_end
//   transpose_panel  a panel of 16 inputs, its outputs n (a multiple of 16) of them, as the backward product wants it: in
//                    each panel of 16 outputs, `deep` bytes apart, the inputs' numbers side by side

#ifndef RESCOLDO_LANES_H
#define RESCOLDO_LANES_H

#include "kernels.h"
#include RESCOLDO_ISA

ALWAYS vf f_zero(void) { return f_set(0.0f); }
ALWAYS vi i_zero(void) { return i_set(0); }
ALWAYS vf f_from_bf16(vw x) { return as_f(i_left(i_words(x), 16)); }
#ifndef HAS_H_LOAD
ALWAYS vf h_load(const bf16 *p) { return f_from_bf16(w_load(p)); }
#endif
ALWAYS void h_store(bf16 *p, vf x) { w_store(p, f_to_bf16(x)); }

#ifndef HAS_ELEMENTS  // x y + z for one number y
typedef vf element;
ALWAYS element load_element(const float *p) { return f_set(*p); }
ALWAYS vf f_fma_element(vf x, element y, vf z) { return f_fma(x, y, z); }
#endif

ALWAYS vf f_exp_within(vf x, vf y) {  // common.h's fast_exp; y: x, but at least -87
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

ALWAYS vf f_exp(vf x) { return f_exp_within(x, f_max(x, f_set(-87.0f))); }

// not-a-number stays one: x86's maximum is its second operand then
ALWAYS vf f_exp_or_nan(vf x) { return f_exp_within(x, f_max(f_set(-87.0f), x)); }

ALWAYS vf f_tanh(vf x) {
  vf y = f_sub(f_zero(), f_max(f_sub(f_zero(), f_max(x, f_set(-20.0f))), f_set(-20.0f)));  // within -20..20
  vf e = f_exp(f_mul(y, f_set(-2.0f)));
  return f_div(f_sub(f_set(1.0f), e), f_add(f_set(1.0f), e));
}

// --- softmax ----------------------------------------------------------------------------------------------------------

// log(sum(exp(row))), row (n,)
static inline float log_sum_exp(const bf16 *row, i64 n) {
  vf top[2] = {f_set(-INFINITY), f_set(-INFINITY)}, sum[2] = {f_zero(), f_zero()};
  float largest = -INFINITY, rest = 0;
  i64 i = 0;
  for (; i + 32 <= n; i += 32)
    for (int v = 0; v < 2; v++) top[v] = f_max(top[v], h_load(row + i + 16 * v));
  for (i64 j = i; j < n; j++) largest = bf16_to_f32(row[j]) > largest ? bf16_to_f32(row[j]) : largest;
  float most = f_reduce_max(f_max(top[0], top[1]));
  largest = most > largest ? most : largest;
  for (i = 0; i + 32 <= n; i += 32)
    for (int v = 0; v < 2; v++) sum[v] = f_add(sum[v], f_exp_or_nan(f_sub(h_load(row + i + 16 * v), f_set(largest))));
  for (; i < n; i++) rest += fast_exp(bf16_to_f32(row[i]) - largest);
  return largest + logf(f_reduce_add(f_add(sum[0], sum[1])) + rest);
}

// to = weight * (softmax - onehot) of columns start..end-1 of a row of logits, for its log_sum_exp; may be the row itself
static inline void softmax_gradient(const bf16 *row, i64 start, i64 end, i64 target, float lse, float weight, bf16 *to) {
  const float hit = target >= start && target < end ? bf16_to_f32(row[target]) : 0;
  row += start;
  for (i64 i = 0, n = end - start; i < n; i += 16)
    h_store_some(to + i, n - i, f_mul(f_set(weight), f_exp_or_nan(f_sub(h_load_some(row + i, n - i), f_set(lse)))));
  if (target >= start && target < end) to[target - start] = f32_to_bf16(weight * (expf(hit - lse) - 1.0f));
}

// --- float products ---------------------------------------------------------------------------------------------------

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
      element a = load_element(A + r * rs + k * ks);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][v] = f_fma_element(b[v], a, acc[r][v]);
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
    FLOAT_TILES(RUN_TILES)
#undef RUN_TILES
    n += nv * 16;
  }
}

#endif
