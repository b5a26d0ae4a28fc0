// Sixteen lanes as four vectors of NEON, and bytes as inputs and weights of int8 products. Products of bf16 pairs are
// bfdot's where the CPU has it, else float32's: an int16 product would be no faster.

#ifndef RESCOLDO_LANESNEON_H
#define RESCOLDO_LANESNEON_H

#include <arm_neon.h>

#include "../kernels.h"

typedef struct { float32x4_t v[4]; } vf;
typedef struct { int32x4_t v[4]; } vi;
typedef uint8x16_t vb;
typedef struct { uint16x8_t a, b; } vw;

// of each vector l. Not a loop: clang unrolls it too late to keep the vectors in registers.
#define EACH(T, expression)                        \
  T y_;                                            \
  { enum { l = 0 }; y_.v[l] = expression; }        \
  { enum { l = 1 }; y_.v[l] = expression; }        \
  { enum { l = 2 }; y_.v[l] = expression; }        \
  { enum { l = 3 }; y_.v[l] = expression; }        \
  return y_

ALWAYS vf f_set(float x) { EACH(vf, vdupq_n_f32(x)); }
ALWAYS vi i_set(int x) { EACH(vi, vdupq_n_s32(x)); }
ALWAYS vf f_load(const float *p) { EACH(vf, vld1q_f32(p + 4 * l)); }
ALWAYS void f_store(float *p, vf x) {
  for (int l = 0; l < 4; l++) vst1q_f32(p + 4 * l, x.v[l]);
}
ALWAYS vi i_load(const void *p) { EACH(vi, vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)p + 16 * l))); }
ALWAYS void i_store(void *p, vi x) {
  for (int l = 0; l < 4; l++) vst1q_u8((uint8_t *)p + 16 * l, vreinterpretq_u8_s32(x.v[l]));
}
ALWAYS vf f_load_some(const float *p, i64 n) {
  float some[16] = {0};
  if (n >= 16) return f_load(p);
  for (i64 i = 0; i < n; i++) some[i] = p[i];
  return f_load(some);
}

ALWAYS vf f_add(vf x, vf y) { EACH(vf, vaddq_f32(x.v[l], y.v[l])); }
ALWAYS vf f_sub(vf x, vf y) { EACH(vf, vsubq_f32(x.v[l], y.v[l])); }
ALWAYS vf f_mul(vf x, vf y) { EACH(vf, vmulq_f32(x.v[l], y.v[l])); }
ALWAYS vf f_div(vf x, vf y) { EACH(vf, vdivq_f32(x.v[l], y.v[l])); }
ALWAYS vf f_max(vf x, vf y) { EACH(vf, vmaxq_f32(x.v[l], y.v[l])); }
// x y + z. Not the intrinsic: clang 20 copies and spills a tile's sums around it.
ALWAYS float32x4_t fma4(float32x4_t x, float32x4_t y, float32x4_t z) {
  __asm__("fmla %0.4s, %1.4s, %2.4s" : "+w"(z) : "w"(x), "w"(y));
  return z;
}
ALWAYS vf f_fma(vf x, vf y, vf z) { EACH(vf, fma4(x.v[l], y.v[l], z.v[l])); }
#define HAS_ELEMENTS  // x y + z for one number y. It is loaded without the vector pipes, which a load into all lanes takes.
typedef float element;
ALWAYS element load_element(const float *p) { return *p; }
ALWAYS float32x4_t fma4_element(float32x4_t x, element y, float32x4_t z) {
  __asm__("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(z) : "w"(x), "w"(y));
  return z;
}
ALWAYS vf f_fma_element(vf x, element y, vf z) { EACH(vf, fma4_element(x.v[l], y, z.v[l])); }
ALWAYS vf f_fms(vf x, vf y, vf z) { EACH(vf, vfmaq_f32(vnegq_f32(z.v[l]), x.v[l], y.v[l])); }   // x y - z
ALWAYS vf f_fnma(vf x, vf y, vf z) { EACH(vf, vfmsq_f32(z.v[l], x.v[l], y.v[l])); }             // z - x y
ALWAYS vf f_abs(vf x) { EACH(vf, vabsq_f32(x.v[l])); }
ALWAYS vf f_round(vf x) { EACH(vf, vrndnq_f32(x.v[l])); }
ALWAYS vi i_add(vi x, vi y) { EACH(vi, vaddq_s32(x.v[l], y.v[l])); }
ALWAYS vi i_sub(vi x, vi y) { EACH(vi, vsubq_s32(x.v[l], y.v[l])); }
ALWAYS vi i_and(vi x, vi y) { EACH(vi, vandq_s32(x.v[l], y.v[l])); }
ALWAYS vi i_or(vi x, vi y) { EACH(vi, vorrq_s32(x.v[l], y.v[l])); }
ALWAYS vi i_left(vi x, int n) { EACH(vi, vshlq_s32(x.v[l], vdupq_n_s32(n))); }
ALWAYS vi i_right(vi x, int n) {
  EACH(vi, vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x.v[l]), vdupq_n_s32(-n))));
}
ALWAYS vf f_of(vi x) { EACH(vf, vcvtq_f32_s32(x.v[l])); }
ALWAYS vi i_of(vf x) { EACH(vi, vcvtnq_s32_f32(x.v[l])); }  // rounded to the nearest, to even
ALWAYS vf as_f(vi x) { EACH(vf, vreinterpretq_f32_s32(x.v[l])); }
// x 2^n, n whole, -126..127
ALWAYS vf f_scale(vf x, vf n) {
  EACH(vf, vmulq_f32(x.v[l], vreinterpretq_f32_s32(
                                 vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v[l]), vdupq_n_s32(127)), 23))));
}
ALWAYS float f_reduce_add(vf x) {
  return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3])));
}
// the sums of four vectors at once
ALWAYS void f_reduce_add4(const vf x[4], float *sums) {
  float32x4_t y[4];
  for (int i = 0; i < 4; i++) y[i] = vaddq_f32(vaddq_f32(x[i].v[0], x[i].v[2]), vaddq_f32(x[i].v[1], x[i].v[3]));
  vst1q_f32(sums, vpaddq_f32(vpaddq_f32(y[0], y[1]), vpaddq_f32(y[2], y[3])));
}
enum { MIX_WIDE = 1 };  // vectors of a value's numbers at a time beside the sums of four queries
ALWAYS float f_reduce_max(vf x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3])));
}
ALWAYS int i_reduce_add(vi x) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[2]), vaddq_s32(x.v[1], x.v[3])));
}

ALWAYS float32x4_t f4_where(float32x4_t x, uint32x4_t mask) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), mask));
}
// 0 where `by` is below (or is) the bound
ALWAYS vf f_not_below(vf x, vf by, float bound) {
  EACH(vf, f4_where(x.v[l], vmvnq_u32(vcltq_f32(by.v[l], vdupq_n_f32(bound)))));
}
ALWAYS vf f_not_zero(vf x, vf by) { EACH(vf, f4_where(x.v[l], vmvnq_u32(vceqzq_f32(by.v[l])))); }
// x in lanes whose index, counted from `at`, is in from..to-1, else 0
ALWAYS vf f_within(vf x, i64 at, i64 from, i64 to) {
  static const int32_t four[4] = {0, 1, 2, 3};
  const int32x4_t lane = vaddq_s32(vld1q_s32(four), vdupq_n_s32((int)at));
  const int32x4_t first = vdupq_n_s32((int)from), end = vdupq_n_s32((int)to);
  if (at >= from && at + 16 <= to) return x;
  EACH(vf, f4_where(x.v[l], vandq_u32(vcgeq_s32(vaddq_s32(lane, vdupq_n_s32(4 * l)), first),
                                      vcltq_s32(vaddq_s32(lane, vdupq_n_s32(4 * l)), end))));
}

ALWAYS vb b_load(const void *p) { return vld1q_u8(p); }
ALWAYS void b_store(void *p, vb x) { vst1q_u8(p, x); }
ALWAYS vw w_load(const void *p) { return (vw){vld1q_u16(p), vld1q_u16((const uint16_t *)p + 8)}; }
ALWAYS void w_store(void *p, vw x) { vst1q_u16(p, x.a), vst1q_u16((uint16_t *)p + 8, x.b); }
ALWAYS vi i_words(vw x) {
  return (vi){{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(x.a))), vreinterpretq_s32_u32(vmovl_high_u16(x.a)),
               vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(x.b))), vreinterpretq_s32_u32(vmovl_high_u16(x.b))}};
}
ALWAYS vi i_signed_words(vw x) {
  int16x8_t a = vreinterpretq_s16_u16(x.a), b = vreinterpretq_s16_u16(x.b);
  return (vi){{vmovl_s16(vget_low_s16(a)), vmovl_high_s16(a), vmovl_s16(vget_low_s16(b)), vmovl_high_s16(b)}};
}
ALWAYS vi i_bytes(vb x) { return i_words((vw){vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x)}); }
ALWAYS vi i_signed_bytes(vb x) {
  int8x16_t s = vreinterpretq_s8_u8(x);
  return i_signed_words((vw){vreinterpretq_u16_s16(vmovl_s8(vget_low_s8(s))), vreinterpretq_u16_s16(vmovl_high_s8(s))});
}
// of numbers in the range of what they become
ALWAYS vw to_words(vi x) {
  return (vw){vreinterpretq_u16_s16(vmovn_high_s32(vmovn_s32(x.v[0]), x.v[1])),
              vreinterpretq_u16_s16(vmovn_high_s32(vmovn_s32(x.v[2]), x.v[3]))};
}
ALWAYS vb to_bytes(vi x) {
  vw w = to_words(x);
  return vmovn_high_u16(vmovn_u16(w.a), w.b);
}
// x where a byte reaches the threshold, else 0
ALWAYS vf f_where_bytes(vb bytes, int threshold, vf x) {
  vi mask = i_signed_bytes(vcgeq_u8(bytes, vdupq_n_u8((uint8_t)threshold)));
  EACH(vf, f4_where(x.v[l], vreinterpretq_u32_s32(mask.v[l])));
}
ALWAYS vf f_lookup(vf table, vi index) {
  uint8x16x4_t bytes = {{vreinterpretq_u8_f32(table.v[0]), vreinterpretq_u8_f32(table.v[1]),
                         vreinterpretq_u8_f32(table.v[2]), vreinterpretq_u8_f32(table.v[3])}};
  EACH(vf, vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_s32(vmlaq_n_s32(
                                                      vdupq_n_s32(0x03020100), index.v[l], 0x04040404)))));
}
ALWAYS vi i_add_where(vi x, uint16_t set, int bit) {
  static const uint32_t bits[4] = {1, 2, 4, 8};
  const uint32x4_t four = vld1q_u32(bits);
  EACH(vi, vaddq_s32(x.v[l], vandq_s32(vreinterpretq_s32_u32(vtstq_u32(vdupq_n_u32(set >> (4 * l)), four)),
                                       vdupq_n_s32(bit))));
}
ALWAYS vi i_add_if(vi x, vi test, int mask, int bit) {
  EACH(vi, vaddq_s32(x.v[l], vandq_s32(vreinterpretq_s32_u32(vtstq_s32(test.v[l], vdupq_n_s32(mask))),
                                       vdupq_n_s32(bit))));
}

ALWAYS uint32x4_t bf16_bits(float32x4_t x) {  // in the low words of four lanes; to nearest even, not-a-number stays one
  uint32x4_t u = vreinterpretq_u32_f32(x), high = vshrq_n_u32(u, 16), odd = vandq_u32(high, vdupq_n_u32(1));
  uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
  return vbslq_u32(vceqq_f32(x, x), rounded, vorrq_u32(high, vdupq_n_u32(0x40)));
}
ALWAYS vw f_to_bf16(vf x) {
  return (vw){vmovn_high_u32(vmovn_u32(bf16_bits(x.v[0])), bf16_bits(x.v[1])),
              vmovn_high_u32(vmovn_u32(bf16_bits(x.v[2])), bf16_bits(x.v[3]))};
}
// the first n of 16, zeros behind them
ALWAYS vf h_load_some(const bf16 *p, i64 n) {
  if (n >= 16) return as_f(i_left(i_words(w_load(p)), 16));
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

ALWAYS float half_to_f32(uint16_t h) {
  __fp16 x;
  memcpy(&x, &h, 2);
  return (float)x;
}
// the 32 numbers of four bits in x, the lower half of each byte first
ALWAYS void b_nibbles(vb x, vb *first, vb *second) {
  vb low = vandq_u8(x, vdupq_n_u8(15)), high = vshrq_n_u8(x, 4);
  *first = vzip1q_u8(low, high), *second = vzip2q_u8(low, high);
}
// mix32 of x, x + step, x + 2 step, x + 3 step, as 16 bytes
ALWAYS vb b_mix32(uint32_t seed, uint32_t step) {
  const uint32_t seeds[4] = {seed, seed + step, seed + 2 * step, seed + 3 * step};
  uint32x4_t x = vld1q_u32(seeds);
  x = veorq_u32(x, vshrq_n_u32(x, 16));
  x = vmulq_n_u32(x, 0x7FEB352Du);
  x = veorq_u32(x, vshrq_n_u32(x, 15));
  x = vmulq_n_u32(x, 0x846CA68Bu);
  return vreinterpretq_u8_u32(veorq_u32(x, vshrq_n_u32(x, 16)));
}

#define HAS_BF16_DOT  // sum += each lane's two bf16 of w · the two bf16 at `pair`
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
ALWAYS float32x4_t dot4_element(float32x4_t sum, int32x4_t w, element pair) {
  __asm__("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(sum) : "w"(w), "w"(pair));
  return sum;
}
ALWAYS vf f_dot_element(vf sum, vi w, element pair) { EACH(vf, dot4_element(sum.v[l], w.v[l], pair)); }
ALWAYS void f_add_dot(vf *sum, vi w, const void *pair) {
  element two;
  memcpy(&two, pair, 4);
  *sum = f_dot_element(*sum, w, two);
}
#else
ALWAYS vf f_even(vi w) { EACH(vf, vreinterpretq_f32_s32(vshlq_n_s32(w.v[l], 16))); }
ALWAYS vf f_odd(vi w) { EACH(vf, vreinterpretq_f32_s32(vandq_s32(w.v[l], vdupq_n_s32((int32_t)0xFFFF0000)))); }
ALWAYS void f_add_dot(vf *sum, vi w, const void *pair) {
  bf16 two[2];
  memcpy(two, pair, 4);
  *sum = f_fma(f_odd(w), f_set(bf16_to_f32(two[1])), f_fma(f_even(w), f_set(bf16_to_f32(two[0])), *sum));
}
#endif

// rows of a tile, and panels of 16 side by side: as many sums as there are registers for
enum { MR = 6, PANELS = 1 };
#define BY_ROWS(m, CALL)                                                                                      \
  switch (m) {                                                                                                \
    case 6: CALL(6); break; case 5: CALL(5); break; case 4: CALL(4); break; case 3: CALL(3); break;           \
    case 2: CALL(2); break; default: CALL(1); break;                                                          \
  }
#define FULL_TILES(CALL) CALL(6) CALL(2) CALL(1)
#define FLOAT_TILES(CALL) CALL(6) CALL(4) CALL(2) CALL(1)  // sums of two rows wait for each other

// 16 rows of 32 bytes -> 8 times four bytes of each row, plus 128
ALWAYS void transpose_rows(const int8_t *rows, uint8_t *to) {
  for (int c = 0; c < 8; c++)
    for (int r = 0; r < 16; r++) {
      uint32_t four;
      memcpy(&four, rows + r * 32 + c * 4, 4);
      four ^= 0x80808080u;
      memcpy(to + c * 64 + r * 4, &four, 4);
    }
}

typedef int8_t level;
#define PREPARES_PANELS  // weights as signed bytes, so row sums are not needed
enum { QMAX = 127, WEIGHT_BYTES = 1, CHUNK_BYTES = 1 << 18, PRODUCT_ROWS = MR };
ALWAYS int isa_start(void) { return 0; }
ALWAYS void product_begin(void) {}
ALWAYS void product_end(void) {}
ALWAYS void store_levels(level *q, vi n) { b_store(q, to_bytes(n)); }
ALWAYS vi load_levels(const level *q) { return i_signed_bytes(b_load(q)); }

// four inputs' numbers of four outputs each -> four outputs' numbers of four inputs each, as signed bytes
ALWAYS vb transpose4(const uint8_t *from) {
  static const uint8_t index[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return veorq_u8(vqtbl1q_u8(vld1q_u8(from), vld1q_u8(index)), vdupq_n_u8(0x80));
}

// one row's 16 sums of a group times its scale -> C
ALWAYS void add_group(vi sums, float scale, float *c, int more) {
  vf s = f_set(scale), f = f_of(sums);
  f_store(c, more ? f_fma(f, s, f_load(c)) : f_mul(f, s));
}

#endif
