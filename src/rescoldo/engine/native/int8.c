// An int8 linear with its adapter, forward and backward: three passes, each of which reads its input once.
//
//   int8_input    rows quantized by groups of columns; on the way their small float products (adapter, columns apart)
//   int8_product  (T, K) int8 · (K, N) int8, scaled; the small products' other half added while a tile is at hand
//   outer_rows    zᵀ · x, the gradients of the adapter's matrices
//
// Weights are held once, as unsigned bytes (value + 128) in panels of 16 outputs: (N/16, K/4, 16, 4), what the
// VNNI instruction wants for the forward product. The backward product's panels are made from them block by block, in
// cache. vpdpbusd takes unsigned times signed: 128 times the row's sum is taken off again.

#include "blocks.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__)

#include <omp.h>

int has_int8(void) { return 1; }

enum { MR = 12, BLOCK = 2048, CHUNK_BYTES = 1 << 19, FLOATS = 1024, MAX_SEGMENTS = 8, ROWS_AT_ONCE = 768 };

typedef struct {
  const i64 *rows;  // (T,) what each row's mask is drawn from; NULL: no dropout
  i64 key, threshold;
  float scale;
} Mask;

// 16 floats of row `seed` from column `at` (a multiple of 16): scale where kept, else 0
ALWAYS __m512 kept(uint32_t seed, i64 at, int threshold, float scale) {
  __m128i x = _mm_add_epi32(_mm_set1_epi32((int)(seed + (uint32_t)(at / 4) * 0x9E3779B9u)),
                            _mm_setr_epi32(0, (int)0x9E3779B9u, (int)0x3C6EF372u, (int)0xDAA66D2Bu));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 16));
  x = _mm_mullo_epi32(x, _mm_set1_epi32(0x7FEB352D));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 15));
  x = _mm_mullo_epi32(x, _mm_set1_epi32((int)0x846CA68Bu));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 16));
  return _mm512_maskz_mov_ps(_mm_cmpge_epu8_mask(x, _mm_set1_epi8((char)threshold)), _mm512_set1_ps(scale));
}

ALWAYS __mmask16 first(i64 n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

ALWAYS __m512 load_some(const bf16 *x, __mmask16 which) {
  __m256i half = _mm256_maskz_loadu_epi16(which, x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// --- quantizing -------------------------------------------------------------------------------------------------------

// row (K,) bf16 times columns (K,) or 1 -> q (Kp,) int8, each group's scale and 128 times its sum
static void quantize_row(const bf16 *row, const float *columns, i64 K, i64 Kp, i64 group, int8_t *q, float *scale,
                         int32_t *sum) {
  const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_castsi512_ps(_mm512_set1_epi32(0x7FFFFFFF));
  for (i64 g = 0, start = 0; start < Kp; g++, start += group) {
    i64 end = start + group < Kp ? start + group : Kp;
    __m512 largest = _mm512_setzero_ps();
    for (i64 i = start; i < end; i += 16) {
      __mmask16 m = first(K - i);
      __m512 x = _mm512_mul_ps(load_some(row + i, m), columns ? _mm512_maskz_loadu_ps(m, columns + i) : one);
      largest = _mm512_max_ps(largest, _mm512_and_ps(x, sign));
    }
    float top = _mm512_reduce_max_ps(largest);
    scale[g] = top / 127.0f;
    __m512 inverse = _mm512_set1_ps(top > 1e-30f ? 127.0f / top : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (i64 i = start; i < end; i += 16) {
      __mmask16 m = first(K - i);
      __m512 x = _mm512_mul_ps(load_some(row + i, m), columns ? _mm512_maskz_loadu_ps(m, columns + i) : one);
      __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
      total = _mm512_add_epi32(total, n);
      _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(n));
    }
    sum[g] = 128 * _mm512_reduce_add_epi32(total);
  }
}

// x (T, K) bf16, in place: what quantizing it (times columns (K,)) has lost
void int8_residual(bf16 *x, const float *columns, i64 T, i64 K, i64 Kp, i64 group, i64 groups, const int8_t *q,
                   const float *scale) {
  ROWS for (i64 t = 0; t < T; t++)
    for (i64 i = 0; i < K; i += 16) {
      __mmask16 m = first(K - i);
      __m512 c = columns ? _mm512_maskz_loadu_ps(m, columns + i) : _mm512_set1_ps(1.0f);
      __m512 n = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(q + t * Kp + i))));
      n = _mm512_mul_ps(n, _mm512_set1_ps(scale[t * groups + i / group]));
      __m512 lost = _mm512_sub_ps(load_some(x + t * K + i, m), _mm512_div_ps(n, c));
      lost = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(c, _mm512_setzero_ps(), _CMP_NEQ_OQ), lost);
      _mm256_mask_storeu_epi16(x + t * K + i, m, down512(lost));
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
  int8_t *q;             // (T, Kp), or NULL: not quantized
  float *scale;          // (T, groups)
  int32_t *sum;          // (T, groups)
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
                       p->sum + t * p->groups);
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
              __m512 v = load_some(x + i, first(k1 - i));
              if (p->mask.rows) {
                v = _mm512_mul_ps(v, kept(seed, i, (int)p->mask.threshold, p->mask.scale));
                v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(down512(v)), 16));
              }
              _mm512_store_ps(rows + r * FLOATS + i - k0, v);
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
          int32_t sum;
          quantize_row(weight + n * K, columns, K, Kp, Kp, rows + r * Kp, scale + n, &sum);
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
  const int8_t *q;       // (T, K)
  const float *scale;    // (T, groups)
  const int32_t *sum;    // (T, groups)
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

// sum += w (unsigned) · x (signed), four at a time. Not the intrinsic: gcc 12 copies each sum twice around it.
ALWAYS void dot4(__m512i *sum, __m512i w, __m512i x) { __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x)); }

// groups g0..g1-1 of rows t..t+m-1 into C (m, 32) f32; b[v] points to group g0 of a panel
ALWAYS void tile_int8(const int m, const int NV, const Product *p, i64 t, i64 g0, i64 g1, const uint8_t *b0,
                      const uint8_t *b1, float *C, int add) {
  const int8_t *a = p->q + t * p->K + g0 * p->group;
  for (i64 g = g0; g < g1; g++) {
    i64 k4 = (p->K - g * p->group < p->group ? p->K - g * p->group : p->group) / 4;
    __m512i acc[MR][2];
#pragma GCC unroll 12
    for (int r = 0; r < m; r++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][v] = _mm512_set1_epi32(-p->sum[(t + r) * p->groups + g]);
    for (i64 k = 0; k < k4; k++) {
      __m512i w0 = _mm512_loadu_si512(b0 + k * 64), w1 = NV == 2 ? _mm512_loadu_si512(b1 + k * 64) : w0;
#pragma GCC unroll 12
      for (int r = 0; r < m; r++) {
        int32_t four;
        memcpy(&four, a + r * p->K + 4 * k, 4);
        __m512i x = _mm512_set1_epi32(four);
        dot4(&acc[r][0], w0, x);
        if (NV == 2) dot4(&acc[r][1], w1, x);
      }
    }
    int more = add || g > g0;
#pragma GCC unroll 12
    for (int r = 0; r < m; r++) {
      __m512 s = _mm512_set1_ps(p->scale[(t + r) * p->groups + g]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) {
        __m512 f = _mm512_cvtepi32_ps(acc[r][v]);
        float *c = C + r * 32 + v * 16;
        _mm512_storeu_ps(c, more ? _mm512_fmadd_ps(f, s, _mm512_loadu_ps(c)) : _mm512_mul_ps(f, s));
      }
    }
    a += p->group, b0 += k4 * 64, b1 += k4 * 64;
  }
}

ALWAYS void finish(const int m, const int NV, const Product *p, i64 t, i64 panel, const float *C) {
  __m512 acc[MR][2];
#pragma GCC unroll 12
  for (int r = 0; r < m; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[r][v] = _mm512_setzero_ps();
  for (int part = 0; part < 2; part++) {
    i64 n = part ? p->n_common : p->at && p->at[panel] >= 0 ? p->n_own : 0;
    if (!n) continue;
    const float *z = p->z + t * p->Z + (part ? p->common_at : p->at[panel]);
    const float *b = (part ? p->common : p->own) + panel * n * 16;
    for (i64 s = 0; s < n; s++) {
      __m512 w[2];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) w[v] = _mm512_loadu_ps(b + (v * n + s) * 16);
#pragma GCC unroll 12
      for (int r = 0; r < m; r++) {
        __m512 x = _mm512_set1_ps(z[r * p->Z + s]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) acc[r][v] = _mm512_fmadd_ps(x, w[v], acc[r][v]);
      }
    }
  }
  for (int r = 0; r < m; r++) {
    uint32_t seed = p->mask.rows ? mix32((uint32_t)p->mask.rows[t + r] ^ (uint32_t)p->mask.key) : 0;
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      i64 n = (panel + v) * 16;
      __mmask16 which = first(p->N - n);
      __m512 y = acc[r][v];
      if (p->mask.rows) y = _mm512_mul_ps(y, kept(seed, n, (int)p->mask.threshold, p->mask.scale));
      y = _mm512_fmadd_ps(_mm512_loadu_ps(C + r * 32 + v * 16), _mm512_maskz_loadu_ps(which, p->columns + n), y);
      if (p->bias) y = _mm512_add_ps(y, load_some(p->bias + n, which));
      _mm256_mask_storeu_epi16(p->y + (t + r) * p->N + n, which, down512(y));
    }
  }
}

#define BY_ROWS(m, CALL)                                                                                      \
  switch (m) {                                                                                                \
    case 12: CALL(12); break; case 11: CALL(11); break; case 10: CALL(10); break; case 9: CALL(9); break;     \
    case 8: CALL(8); break; case 7: CALL(7); break; case 6: CALL(6); break; case 5: CALL(5); break;           \
    case 4: CALL(4); break; case 3: CALL(3); break; case 2: CALL(2); break; default: CALL(1); break;          \
  }

static void run_tile(i64 m, int nv, const Product *p, i64 t, i64 g0, i64 g1, const uint8_t *b0, const uint8_t *b1,
                     float *C) {
#define CALL(M)                                                      \
  if (nv == 2) tile_int8(M, 2, p, t, g0, g1, b0, b1, C, g0 > 0);     \
  else tile_int8(M, 1, p, t, g0, g1, b0, b1, C, g0 > 0)
  BY_ROWS(m, CALL)
#undef CALL
}

static void run_finish(i64 m, int nv, const Product *p, i64 t, i64 panel, const float *C) {
#define CALL(M)                                   \
  if (nv == 2) finish(M, 2, p, t, panel, C);      \
  else finish(M, 1, p, t, panel, C)
  BY_ROWS(m, CALL)
#undef CALL
}

// A panel of 16 inputs, its outputs n (a multiple of 16) of them, as the backward product wants it: in each panel of 16
// outputs (`deep` bytes apart) 4x4 bytes at a time turned around
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

// The weight's panels for outputs n0..n1-1 and inputs k0..k1-1: where they stand, or made in `room`, and how far one
// panel is from the next. `spare` holds one panel of blocks.
ALWAYS const uint8_t *panels_at(const Product *p, i64 n0, i64 n1, i64 k0, i64 k1, uint8_t *room, uint8_t *spare,
                                i64 *apart) {
  *apart = (k1 - k0) * 16;
  if (p->backward) {
    for (i64 k = k0; k < k1; k += 16) {
      const uint8_t *from = p->stored ? spare : p->w + (k / 16 * PAD(p->N, 16) + n0) * 16;
      if (p->stored) unpack_panel(p->stored, k, n0, n1, spare);
      turn(from, n1 - n0, *apart, room + (k - k0) * 16);
    }
  } else if (p->stored) {
    for (i64 n = n0; n < n1; n += 16) unpack_panel(p->stored, n, k0, k1, room + (n - n0) / 16 * *apart);
  } else {
    *apart = p->K * 16;
    return p->w + n0 * p->K + k0 * 16;
  }
  return room;
}

int int8_product(const Product *p) {
  i64 panels = PAD(p->N, 16) / 16, pairs = (panels + 1) / 2;
  i64 span = BLOCK / p->group > 0 ? BLOCK / p->group : 1;  // groups in a block
  i64 deep = span * p->group < p->K ? span * p->group : p->K;
  i64 most = CHUNK_BYTES / (deep * 32) > 0 ? CHUNK_BYTES / (deep * 32) : 1;  // pairs of panels whose block stays in cache
  i64 threads = omp_get_max_threads(), rounds = (pairs + threads * most - 1) / (threads * most);
  i64 chunks = threads * rounds < pairs ? threads * rounds : pairs;
  i64 widest = (pairs + chunks - 1) / chunks;
  int failed = 0;
#pragma omp parallel
  {
    int several = p->K > deep;
    uint8_t *room = p->backward || p->stored ? aligned_alloc(64, widest * 32 * deep) : NULL;
    uint8_t *spare = p->stored ? aligned_alloc(64, widest * 32 * 16) : NULL;
    float *sums = aligned_alloc(64, sizeof(float) * 32 * (several ? PAD(ROWS_AT_ONCE, MR) * widest : MR));
    if (((p->backward || p->stored) && !room) || (p->stored && !spare) || !sums) {
#pragma omp atomic write
      failed = 1;
    } else {
#pragma omp for schedule(static)
      for (i64 chunk = 0; chunk < chunks; chunk++) {
        i64 p0 = chunk * pairs / chunks, p1 = (chunk + 1) * pairs / chunks;
        i64 last = p1 * 2 < panels ? p1 * 2 : panels;
        for (i64 base = 0; base < p->T; base += ROWS_AT_ONCE) {
          i64 top = base + ROWS_AT_ONCE < p->T ? base + ROWS_AT_ONCE : p->T;
          for (i64 g0 = 0; g0 < p->groups; g0 += span) {
            i64 g1 = g0 + span < p->groups ? g0 + span : p->groups;
            i64 k0 = g0 * p->group, k1 = g1 * p->group < p->K ? g1 * p->group : p->K, panel_bytes;
            const uint8_t *b = panels_at(p, p0 * 32, last * 16, k0, k1, room, spare, &panel_bytes);
            for (i64 t = base; t < top; t += MR) {
              i64 m = top - t < MR ? top - t : MR;
              for (i64 pair = p0; pair < p1; pair++) {
                int nv = pair * 2 + 1 < panels ? 2 : 1;
                float *c = several ? sums + ((t - base) * (p1 - p0) + (pair - p0) * MR) * 32 : sums;
                const uint8_t *b0 = b + (pair - p0) * 2 * panel_bytes;
                run_tile(m, nv, p, t, g0, g1, b0, b0 + panel_bytes, c);
                if (g1 == p->groups) run_finish(m, nv, p, t, pair * 2, c);
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
              __m512 v = load_some(x + t * stride + c0 + i, first(n - i));
              if (mask->rows) {
                v = _mm512_mul_ps(v, kept(seed, c0 + i, (int)mask->threshold, mask->scale));
                v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(down512(v)), 16));
              }
              _mm512_store_ps(rows + (t - t0) * WIDE + i, v);
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

#endif
