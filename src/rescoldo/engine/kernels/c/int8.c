// An int8 linear with its adapter, forward and backward: three passes, each of which reads its input once.
//
//   int8_input    rows quantized by groups of columns; on the way their small float products (adapter, columns apart)
//   int8_product  (T, K) · (K, N) int8, scaled; the small products' other half added while a tile is at hand
//   outer_rows    zᵀ · x, the gradients of the adapter's matrices
//
// Weights are held once, as unsigned bytes (value + 128) in panels of 16 outputs: (N/16, K/4, 16, 4). The backward
// product's panels are made from them block by block, in cache. What rows become depends on the CPU:
//
//   AVX512_VNNI   int8: vpdpbusd takes unsigned times signed bytes; 128 times the row's sum is taken off again
//   AVX2          int16 of 14 bits, and the weights made int16 block by block: vpmaddwd sums without losing a bit, where
//                 AVX2's product of bytes would saturate. Half the rate of bytes, and nothing lost but the weights' rounding

#include "blocks.h"

#ifdef HAS_LANES

#include <omp.h>

#if defined(LANES_512) && defined(__AVX512VNNI__)
#define BYTES
typedef int8_t level;
enum { LEVELS = 127, CHUNK_BYTES = 1 << 19 };
#else
typedef int16_t level;
enum { LEVELS = 8191, CHUNK_BYTES = 1 << 18 };  // 127 · 8191 · 2048 fits into 31 bits
#endif

int has_int8(void) { return 1; }
int int8_levels(void) { return LEVELS; }

enum { BLOCK = 2048, FLOATS = 1024, ROWS_AT_ONCE = 768 };

typedef struct {
  const i64 *rows;  // (T,) what each row's mask is drawn from; NULL: no dropout
  i64 key, threshold;
  float scale;
} Mask;

// 16 floats of row `seed` from column `at` (a multiple of 16): scale where kept, else 0
ALWAYS vf kept(uint32_t seed, i64 at, int threshold, float scale) {
  __m128i x = _mm_add_epi32(_mm_set1_epi32((int)(seed + (uint32_t)(at / 4) * 0x9E3779B9u)),
                            _mm_setr_epi32(0, (int)0x9E3779B9u, (int)0x3C6EF372u, (int)0xDAA66D2Bu));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 16));
  x = _mm_mullo_epi32(x, _mm_set1_epi32(0x7FEB352D));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 15));
  x = _mm_mullo_epi32(x, _mm_set1_epi32((int)0x846CA68Bu));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 16));
  return f_where_bytes(x, threshold, scale);
}

// --- quantizing -------------------------------------------------------------------------------------------------------

ALWAYS vf times(const bf16 *row, const float *columns, i64 i, i64 K) {
  vf x = h_load_some(row + i, K - i);
  return columns ? f_mul(x, f_load_some(columns + i, K - i)) : x;
}

ALWAYS void store_levels(int8_t *q, vi n) { _mm_storeu_si128((__m128i *)q, to_bytes(n)); }
ALWAYS void store_words(int16_t *q, vi n) { _mm256_storeu_si256((__m256i *)q, to_words(n)); }

// columns start..end-1 of a row (K,) bf16 times columns (K,) or 1 -> q: int8, or int16 for more levels. Returns the scale;
// `sum` is that of the levels.
ALWAYS float quantize(const int levels, const bf16 *row, const float *columns, i64 K, i64 start, i64 end, void *q,
                      int *sum) {
  vf largest = f_zero();
  for (i64 i = start; i < end; i += 16) largest = f_max(largest, f_abs(times(row, columns, i, K)));
  float top = f_top(largest);
  vf inverse = f_set(top > 1e-30f ? (float)levels / top : 0.0f);
  vi total = i_zero();
  for (i64 i = start; i < end; i += 16) {
    vi n = i_of(f_mul(times(row, columns, i, K), inverse));
    total = i_add(total, n);
    if (levels == 127) store_levels((int8_t *)q + i, n);
    else store_words((int16_t *)q + i, n);
  }
  *sum = i_sum(total);
  return top / (float)levels;
}

// row (K,) bf16 times columns (K,) or 1 -> q (Kp,), each group's scale and 128 times its sum
static void quantize_row(const bf16 *row, const float *columns, i64 K, i64 Kp, i64 group, level *q, float *scale,
                         int32_t *sum) {
  for (i64 g = 0, start = 0; start < Kp; g++, start += group) {
    int total;
    scale[g] = quantize(LEVELS, row, columns, K, start, start + group < Kp ? start + group : Kp, q, &total);
    if (sum) sum[g] = 128 * total;
  }
}

// x (T, K) bf16, in place: what quantizing it (times columns (K,)) has lost
void int8_residual(bf16 *x, const float *columns, i64 T, i64 K, i64 Kp, i64 group, i64 groups, const level *q,
                   const float *scale) {
  ROWS for (i64 t = 0; t < T; t++)
    for (i64 i = 0; i < K; i += 16) {
      vf c = columns ? f_load_some(columns + i, K - i) : f_set(1.0f);
#ifdef BYTES
      vi levels = i_signed_bytes(_mm_loadu_si128((const __m128i *)(q + t * Kp + i)));
#else
      vi levels = i_signed_words(_mm256_loadu_si256((const __m256i *)(q + t * Kp + i)));
#endif
      vf n = f_mul(f_of(levels), f_set(scale[t * groups + i / group]));
      vf lost = f_sub(h_load_some(x + t * K + i, K - i), f_div(n, c));
      h_store_some(x + t * K + i, K - i, f_not_zero(lost, c));
    }
}

typedef struct {
  i64 from, to;    // columns of x
  const float *b;  // (to - from, np) float
  i64 n, np;       // outputs, and padded to a multiple of 16
  i64 at;          // first column of z
} Segment;

typedef struct {
  i64 T, K, Kp, group, groups;
  const bf16 *x;         // (T, K)
  const float *columns;  // (K,) or NULL
  level *q;              // (T, Kp), or NULL: not quantized
  float *scale;          // (T, groups)
  int32_t *sum;          // (T, groups), NULL for int16
  i64 segments, Z;       // small products, columns of z
  const Segment *segment;
  float *z;              // (T, Z)
  i64 n_apart, apart_at;
  const i64 *apart;      // columns of x copied to z from column apart_at on
  Mask mask;             // of the small products' input
} Input;

int int8_input(const Input *p) {
  int failed = 0;
  i64 room = 0;
  for (i64 s = 0; s < p->segments; s++) room += MR * p->segment[s].np;
#pragma omp parallel
  {
    float *rows = aligned_alloc(64, sizeof(float) * MR * FLOATS), *sums = aligned_alloc(64, PAD(sizeof(float) * room, 64) + 64);
    if (!rows || !sums) {
#pragma omp atomic write
      failed = 1;
    } else {
#pragma omp for schedule(static)
      for (i64 block = 0; block < (p->T + MR - 1) / MR; block++) {
        i64 t0 = block * MR, m = p->T - t0 < MR ? p->T - t0 : MR;
        for (i64 r = 0; r < m && p->q; r++) {
          i64 t = t0 + r;
          quantize_row(p->x + t * p->K, p->columns, p->K, p->Kp, p->group, p->q + t * p->Kp, p->scale + t * p->groups,
                       p->sum ? p->sum + t * p->groups : NULL);
        }
        for (i64 r = 0; r < m; r++)
          for (i64 e = 0; e < p->n_apart; e++)
            p->z[(t0 + r) * p->Z + p->apart_at + e] = up(p->x[(t0 + r) * p->K + p->apart[e]]);
        for (i64 k0 = 0; k0 < p->K && p->segments; k0 += FLOATS) {
          i64 k1 = k0 + FLOATS < p->K ? k0 + FLOATS : p->K;
          for (i64 r = 0; r < m; r++) {
            const bf16 *x = p->x + (t0 + r) * p->K;
            uint32_t seed = p->mask.rows ? mix32((uint32_t)p->mask.rows[t0 + r] ^ (uint32_t)p->mask.key) : 0;
            for (i64 i = k0; i < k1; i += 16) {
              vf v = h_load_some(x + i, k1 - i);
              if (p->mask.rows) {
                v = f_mul(v, kept(seed, i, (int)p->mask.threshold, p->mask.scale));
                v = h_up(h_from(v));
              }
              f_store(rows + r * FLOATS + i - k0, v);
            }
          }
          float *c = sums;
          for (i64 s = 0; s < p->segments; s++) {
            const Segment *g = p->segment + s;
            i64 lo = g->from > k0 ? g->from : k0, hi = g->to < k1 ? g->to : k1;
            if (lo < hi)
              gemm_f32(m, g->np, hi - lo, rows + lo - k0, FLOATS, 1, g->b + (lo - g->from) * g->np, g->np, c, g->np,
                       lo > g->from);
            c += MR * g->np;
          }
        }
        float *c = sums;
        for (i64 s = 0; s < p->segments; s++) {
          const Segment *g = p->segment + s;
          for (i64 r = 0; r < m; r++) memcpy(p->z + (t0 + r) * p->Z + g->at, c + r * g->np, sizeof(float) * g->n);
          c += MR * g->np;
        }
      }
    }
    free(rows), free(sums);
  }
  return failed;
}

// --- the product ------------------------------------------------------------------------------------------------------

// weight (N, K) bf16 times columns (K,) -> panels (N/16, Kp/4, 16, 4), padding zero, and each row's scale (N,)
int int8_pack(const bf16 *weight, const float *columns, i64 N, i64 K, uint8_t *panels, float *scale) {
  i64 Kp = PAD(K, 16);
  int failed = 0;
#pragma omp parallel
  {
    int8_t *rows = aligned_alloc(64, PAD(16 * Kp, 64));
    if (!rows) {
#pragma omp atomic write
      failed = 1;
    } else {
#pragma omp for schedule(static)
      for (i64 panel = 0; panel < (N + 15) / 16; panel++) {
        memset(rows, 0, 16 * Kp);
        for (i64 r = 0; r < 16 && panel * 16 + r < N; r++) {
          i64 n = panel * 16 + r;
          int sum;
          scale[n] = quantize(127, weight + n * K, columns, K, 0, Kp, rows + r * Kp, &sum);
        }
        uint32_t *to = (uint32_t *)(panels + panel * Kp * 16);
        for (i64 k = 0; k < Kp / 4; k++)
          for (i64 r = 0; r < 16; r++) {
            uint32_t four;
            memcpy(&four, rows + r * Kp + 4 * k, 4);
            to[k * 16 + r] = four ^ 0x80808080u;
          }
      }
    }
    free(rows);
  }
  return failed;
}

typedef struct {
  i64 T, K, N;           // rows, inputs padded to 16, outputs
  i64 group, groups;     // inputs under one scale of a row
  const level *q;        // (T, K)
  const float *scale;    // (T, groups)
  const int32_t *sum;    // (T, groups), NULL for int16
  const uint8_t *w;      // panels; forward (N/16, K/4, 16, 4), backward (K/16, N/4, 16, 4)
  const Stored *stored;  // or the weight's blocks, unpacked piece by piece in cache
  i64 backward;
  const float *columns;  // (N,) what each output is multiplied by
  // the small products: y[t, n] += sum_s z[t, at[n/16] + s] own[n/16, s, n%16], s < n_own, and the same for z from
  // `common_at` on, s < n_common, and `common`; the sum times the mask
  const float *z, *own, *common;
  i64 Z, n_own, n_common, common_at;
  const int32_t *at;     // (N/16,), -1: none of its own
  Mask mask;
  const bf16 *bias;      // (N,) or NULL
  bf16 *y;               // (T, N)
} Product;

#ifdef BYTES

enum { WORD = 1 };  // bytes of a weight in a product

// sum += w (unsigned) · x (signed), four at a time. Not the intrinsic: gcc 12 copies each sum twice around it.
ALWAYS void dot4(__m512i *sum, __m512i w, __m512i x) { __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x)); }

// groups g0..g1-1 of rows t..t+m-1 into C (m, 16 PANELS) f32; b and the panels `apart` bytes behind it stand at group g0
ALWAYS void tile_int8(const int m, const int NV, const Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart,
                      float *C, int add) {
  const uint8_t *b0 = b, *b1 = b0 + apart;
  const int8_t *a = p->q + t * p->K + g0 * p->group;
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

#else

enum { WORD = 2 };

// sums of one row += w0, w1 (8 times two weights) · the two levels at FROM. Not the intrinsics: gcc 12 loads first and then
// spills; and a loop with an address for each row has more instructions than the CPU takes in.
#define DOT2(ROW, FROM)                                    \
  __asm__("vpbroadcastd " FROM ", %2\n\t"                  \
          "vpmaddwd %4, %2, %3\n\t"                        \
          "vpmaddwd %5, %2, %2\n\t"                        \
          "vpaddd %3, %0, %0\n\t"                          \
          "vpaddd %2, %1, %1"                              \
          : "+x"(acc[ROW][0]), "+x"(acc[ROW][1]), "=&x"(x), "=&x"(y) \
          : "x"(w0), "x"(w1), "r"(ROW < 3 ? upper : lower), "r"(stride), "m"(*(const char(*)[])upper))

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
ALWAYS void tile_rows(const int m, const Product *p, i64 t, i64 g0, i64 g1, const int16_t *w, float *C, int add) {
  const i64 stride = p->K * 2;
  const char *upper = (const char *)(p->q + t * p->K + g0 * p->group), *lower = upper + 3 * stride;
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

ALWAYS void tile_int8(const int m, const int NV, const Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart,
                      float *C, int add) {
  for (int v = 0; v < NV; v++)
    for (int r = 0; r < m; r += 6) {
      const int16_t *w = (const int16_t *)((const char *)b + v * apart);
      float *c = C + (r * PANELS + v) * 16;
      if (m - r >= 6) tile_rows(6, p, t + r, g0, g1, w, c, add);
      else tile_rows(m - r, p, t + r, g0, g1, w, c, add);
    }
}

#endif

ALWAYS void finish(const int m, const int NV, const Product *p, i64 t, i64 panel, const float *C) {
  vf acc[MR][PANELS];
#pragma GCC unroll 12
  for (int r = 0; r < m; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[r][v] = f_zero();
  for (int part = 0; part < 2; part++) {
    i64 n = part ? p->n_common : p->at && p->at[panel] >= 0 ? p->n_own : 0;
    if (!n) continue;
    const float *z = p->z + t * p->Z + (part ? p->common_at : p->at[panel]);
    const float *b = (part ? p->common : p->own) + panel * n * 16;
    for (i64 s = 0; s < n; s++) {
      vf w[PANELS];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) w[v] = f_load(b + (v * n + s) * 16);
#pragma GCC unroll 12
      for (int r = 0; r < m; r++) {
        vf x = f_set(z[r * p->Z + s]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) acc[r][v] = f_fma(x, w[v], acc[r][v]);
      }
    }
  }
  for (int r = 0; r < m; r++) {
    uint32_t seed = p->mask.rows ? mix32((uint32_t)p->mask.rows[t + r] ^ (uint32_t)p->mask.key) : 0;
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      i64 n = (panel + v) * 16;
      vf y = acc[r][v];
      if (p->mask.rows) y = f_mul(y, kept(seed, n, (int)p->mask.threshold, p->mask.scale));
      y = f_fma(f_load(C + (r * PANELS + v) * 16), f_load_some(p->columns + n, p->N - n), y);
      if (p->bias) y = f_add(y, h_load_some(p->bias + n, p->N - n));
      h_store_some(p->y + (t + r) * p->N + n, p->N - n, y);
    }
  }
}

static void run_tile(i64 m, int nv, const Product *p, i64 t, i64 g0, i64 g1, const void *b, i64 apart, float *C) {
#define CALL(M)                                                           \
  if (nv == PANELS) tile_int8(M, PANELS, p, t, g0, g1, b, apart, C, g0 > 0); \
  else tile_int8(M, 1, p, t, g0, g1, b, apart, C, g0 > 0)
  BY_ROWS(m, CALL)
#undef CALL
}

static void run_finish(i64 m, int nv, const Product *p, i64 t, i64 panel, const float *C) {
#define CALL(M)                                        \
  if (nv == PANELS) finish(M, PANELS, p, t, panel, C); \
  else finish(M, 1, p, t, panel, C)
  BY_ROWS(m, CALL)
#undef CALL
}

// turn: a panel of 16 inputs, its outputs n (a multiple of 16) of them, as the backward product wants it: in each panel of
// 16 outputs, `deep` bytes apart, the inputs' numbers side by side
#ifdef BYTES

ALWAYS void turn(const uint8_t *from, i64 n, i64 deep, uint8_t *to) {
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (i64 i = 0; i < n; i += 16) {
    const uint8_t *s = from + i * 16;
    __m512i a = _mm512_shuffle_epi8(_mm512_loadu_si512(s), order);
    __m512i b = _mm512_shuffle_epi8(_mm512_loadu_si512(s + 64), order);
    __m512i c = _mm512_shuffle_epi8(_mm512_loadu_si512(s + 128), order);
    __m512i d = _mm512_shuffle_epi8(_mm512_loadu_si512(s + 192), order);
    __m512i ab0 = _mm512_shuffle_i32x4(a, b, 0x44), cd0 = _mm512_shuffle_i32x4(c, d, 0x44);
    __m512i ab1 = _mm512_shuffle_i32x4(a, b, 0xEE), cd1 = _mm512_shuffle_i32x4(c, d, 0xEE);
    uint8_t *o = to + i / 16 * deep;
    _mm512_store_si512(o, _mm512_shuffle_i32x4(ab0, cd0, 0x88));
    _mm512_store_si512(o + 64, _mm512_shuffle_i32x4(ab0, cd0, 0xDD));
    _mm512_store_si512(o + 128, _mm512_shuffle_i32x4(ab1, cd1, 0x88));
    _mm512_store_si512(o + 192, _mm512_shuffle_i32x4(ab1, cd1, 0xDD));
  }
}

#else

// bytes + 128 in two lanes -> int16; `order` says which byte goes into the upper half of each
ALWAYS __m256i widened(__m256i bytes, __m256i order) {
  return _mm256_srai_epi16(_mm256_shuffle_epi8(_mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80)), order), 8);
}

// panel (n/4, 16, 4) of bytes -> (n/2, 16, 2) int16
ALWAYS void widen(const uint8_t *from, i64 n, int16_t *to) {
  const __m256i low = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
  const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  for (i64 i = 0; i < n / 4; i++)
    for (int h = 0; h < 2; h++) {
      __m256i x = _mm256_loadu_si256((const __m256i *)(from + i * 64 + h * 32));
      _mm256_store_si256((__m256i *)(to + i * 64 + h * 16), widened(x, low));
      _mm256_store_si256((__m256i *)(to + i * 64 + 32 + h * 16), widened(x, high));
    }
}

ALWAYS void turn(const uint8_t *from, i64 n, i64 deep, uint8_t *to) {
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

// The weight's panels for outputs n0..n1-1 and inputs k0..k1-1: where they stand, or made in `room`, and how many bytes
// one panel is from the next. `spare` holds one panel of unpacked blocks.
ALWAYS const uint8_t *panels_at(const Product *p, i64 n0, i64 n1, i64 k0, i64 k1, uint8_t *room, uint8_t *spare,
                                i64 *apart) {
  *apart = (k1 - k0) * 16 * WORD;
  if (p->backward) {
    for (i64 k = k0; k < k1; k += 16) {
      const uint8_t *from = p->stored ? spare : p->w + (k / 16 * PAD(p->N, 16) + n0) * 16;
      if (p->stored) unpack_panel(p->stored, k, n0, n1, spare);
      turn(from, n1 - n0, *apart, room + (k - k0) * 16 * WORD);
    }
    return room;
  }
#ifdef BYTES
  if (!p->stored) {
    *apart = p->K * 16;
    return p->w + n0 * p->K + k0 * 16;
  }
  for (i64 n = n0; n < n1; n += 16) unpack_panel(p->stored, n, k0, k1, room + (n - n0) / 16 * *apart);
#else
  for (i64 n = n0; n < n1; n += 16) {
    const uint8_t *from = p->stored ? spare : p->w + n * p->K + k0 * 16;
    if (p->stored) unpack_panel(p->stored, n, k0, k1, spare);
    widen(from, k1 - k0, (int16_t *)(room + (n - n0) / 16 * *apart));
  }
#endif
  return room;
}

int int8_product(const Product *p) {
  enum { WIDE = 16 * PANELS };  // outputs of a tile
  i64 panels = PAD(p->N, 16) / 16, pairs = (panels + 1) / 2;  // blocks are unpacked 32 numbers at a time
  i64 span = BLOCK / p->group > 0 ? BLOCK / p->group : 1;  // groups in a block
  i64 deep = span * p->group < p->K ? span * p->group : p->K, bytes = deep * 32 * WORD;
  i64 most = CHUNK_BYTES / bytes > 0 ? CHUNK_BYTES / bytes : 1;  // pairs whose block stays in cache
  i64 threads = omp_get_max_threads(), rounds = (pairs + threads * most - 1) / (threads * most);
  i64 chunks = threads * rounds < pairs ? threads * rounds : pairs;
  i64 widest = (pairs + chunks - 1) / chunks;
  int made = WORD == 2 || p->backward || p->stored, failed = 0;
#pragma omp parallel
  {
    int several = p->K > deep;
    uint8_t *room = made ? aligned_alloc(64, PAD(widest * bytes, 64)) : NULL;
    uint8_t *spare = p->stored ? aligned_alloc(64, 16 * PAD(widest * 32 > deep ? widest * 32 : deep, 64)) : NULL;
    float *sums = aligned_alloc(64, sizeof(float) * (several ? PAD(ROWS_AT_ONCE, MR) * widest * 32 : MR * WIDE));
    if ((made && !room) || (p->stored && !spare) || !sums) {
#pragma omp atomic write
      failed = 1;
    } else {
#pragma omp for schedule(static)
      for (i64 chunk = 0; chunk < chunks; chunk++) {
        i64 first = chunk * pairs / chunks * 2, last = (chunk + 1) * pairs / chunks * 2;
        last = last < panels ? last : panels;
        for (i64 base = 0; base < p->T; base += ROWS_AT_ONCE) {
          i64 top = base + ROWS_AT_ONCE < p->T ? base + ROWS_AT_ONCE : p->T;
          for (i64 g0 = 0; g0 < p->groups; g0 += span) {
            i64 g1 = g0 + span < p->groups ? g0 + span : p->groups;
            i64 k0 = g0 * p->group, k1 = g1 * p->group < p->K ? g1 * p->group : p->K, apart;
            const uint8_t *b = panels_at(p, first * 16, last * 16, k0, k1, room, spare, &apart);
            for (i64 t = base; t < top; t += MR) {
              i64 m = top - t < MR ? top - t : MR;
              for (i64 panel = first; panel < last; panel += PANELS) {
                int nv = last - panel < PANELS ? 1 : PANELS;
                float *c = several ? sums + (t - base) * widest * 32 + (panel - first) * 16 * MR : sums;
                run_tile(m, nv, p, t, g0, g1, b + (panel - first) * apart, apart, c);
                if (g1 == p->groups) run_finish(m, nv, p, t, panel, c);
              }
            }
          }
        }
      }
    }
    free(room), free(spare), free(sums);
  }
  return failed;
}

// --- gradients of the adapter's matrices ------------------------------------------------------------------------------

// out (R, C) f32 += scale * zᵀ x: z (T, R) f32 with stride, x (T, C) bf16 with stride, masked
int outer_rows(const float *z, i64 Z, i64 R, const bf16 *x, i64 stride, i64 T, i64 C, const Mask *mask, float factor,
               float *out) {
  int failed = 0;
#pragma omp parallel
  {
    enum { WIDE = 64, DEEP = 256 };
    float *rows = aligned_alloc(64, sizeof(float) * DEEP * WIDE), *sums = aligned_alloc(64, sizeof(float) * PAD(R, 4) * WIDE);
    if (!rows || !sums) {
#pragma omp atomic write
      failed = 1;
    } else {
#pragma omp for schedule(static)
      for (i64 c = 0; c < (C + WIDE - 1) / WIDE; c++) {
        i64 c0 = c * WIDE, n = C - c0 < WIDE ? C - c0 : WIDE, np = PAD(n, 16);
        for (i64 t0 = 0; t0 < T; t0 += DEEP) {
          i64 deep = T - t0 < DEEP ? T - t0 : DEEP;
          for (i64 t = t0; t < t0 + deep; t++) {
            uint32_t seed = mask->rows ? mix32((uint32_t)mask->rows[t] ^ (uint32_t)mask->key) : 0;
            for (i64 i = 0; i < np; i += 16) {
              vf v = h_load_some(x + t * stride + c0 + i, n - i);
              if (mask->rows) {
                v = f_mul(v, kept(seed, c0 + i, (int)mask->threshold, mask->scale));
                v = h_up(h_from(v));
              }
              f_store(rows + (t - t0) * WIDE + i, v);
            }
          }
          gemm_f32(R, np, deep, z + t0 * Z, 1, Z, rows, WIDE, sums, WIDE, t0 > 0);
        }
        for (i64 r = 0; r < R; r++)
          SIMD for (i64 i = 0; i < n; i++) out[r * C + c0 + i] += factor * sums[r * WIDE + i];
      }
    }
    free(rows), free(sums);
  }
  return failed;
}

#else

int has_int8(void) { return 0; }
int int8_levels(void) { return 127; }

#endif
