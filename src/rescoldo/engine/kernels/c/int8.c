// An int8 linear with its adapter, forward and backward: three passes, each of which reads its input once.
//
//   int8_input    rows quantized by groups of columns; on the way their small float products (adapter, outliers)
//   int8_product  (T, K) · (K, N) int8, scaled; the low-rank terms added while a tile is at hand
//   outer_rows    zᵀ · x, the gradients of the adapter's matrices
//
// Weights are held once, as unsigned bytes (value + 128) in panels of 16 outputs: (N/16, K/4, 16, 4). The backward
// product's panels are made from them block by block, in cache. What rows are quantized to depends on the instruction set.

#include "lanes.h"
#include "threads.h"

int kernels_start(void) { return isa_start(); }

int kernels_qmax(void) { return QMAX; }

enum { AHEAD = 512, BLOCK = 2048, INPUT_FLOATS = 512, INPUT_ROWS = 2 * MR, ROWS_AT_ONCE = 768 };

// x, 16 columns of row `seed` from `at` on (a multiple of 16), where the dropout keeps it, else 0
ALWAYS vf kept(vf x, const Mask *mask, uint32_t seed, i64 at) {
  const uint32_t step = 0x9E3779B9u;
  return f_where_bytes(b_mix32(seed + (uint32_t)(at / 4) * step, step), (int)mask->threshold, x);
}

ALWAYS uint32_t row_seed(const Mask *mask, i64 t) {
  return mask->rows ? mix32((uint32_t)mask->rows[t] ^ (uint32_t)mask->key) : 0;
}

ALWAYS float mask_scale(const Mask *mask) { return mask->rows ? mask->scale : 1.0f; }

// --- quantizing -------------------------------------------------------------------------------------------------------

// 16 columns of a row from i on; whole: all of them are among the row's K
ALWAYS vf input(const int whole, const bf16 *row, i64 i, i64 K) {
  return whole ? h_load(row + i) : h_load_some(row + i, K - i);
}

ALWAYS vf times(const int scaled, const int whole, vf x, const float *channel_scale, i64 i, i64 K) {
  if (!scaled) return x;
  return f_mul(x, whole ? f_load(channel_scale + i) : f_load_some(channel_scale + i, K - i));
}

ALWAYS vf widest(const int scaled, const int keep, const int whole, vf largest, const bf16 *row, const float *channel_scale,
                 i64 i, i64 K, float *floats) {
  vf x = input(whole, row, i, K);
  if (keep) __builtin_prefetch(row + i + AHEAD), f_store(floats, x);
  return f_max(largest, f_abs(times(scaled, whole, x, channel_scale, i, K)));
}

ALWAYS vi levels(const int qmax, const int scaled, const int keep, const int whole, vf inverse, const bf16 *row,
                 const float *channel_scale, i64 i, i64 K, void *q, const float *floats) {
  vf x = keep ? f_load(floats) : input(whole, row, i, K);
  vi n = i_of(f_mul(times(scaled, whole, x, channel_scale, i, K), inverse));
  if (qmax == 127) b_store((int8_t *)q + i, to_bytes(n));
  else store_levels((level *)q + i, n);
  return n;
}

ALWAYS float quantize_columns(const int qmax, const int scaled, const int keep, const bf16 *row, const float *channel_scale,
                              i64 K, i64 start, i64 end, void *q, int *sum, float *floats) {
  const i64 whole = K < end ? start + (K - start) / 16 * 16 : end;
  vf largest = f_zero();
#define WIDEST(WHOLE) widest(scaled, keep, WHOLE, largest, row, channel_scale, i, K, keep ? floats + i - start : NULL)
  i64 i = start;
  for (; i < whole; i += 16) largest = WIDEST(1);
  for (; i < end; i += 16) largest = WIDEST(0);
#undef WIDEST
  const float top = f_reduce_max(largest);
  const vf inverse = f_set(top > 1e-30f ? (float)qmax / top : 0.0f);
  vi total = i_zero();
#define LEVELS(WHOLE) \
  levels(qmax, scaled, keep, WHOLE, inverse, row, channel_scale, i, K, q, keep ? floats + i - start : NULL)
  for (i = start; i < whole; i += 16) total = i_add(total, LEVELS(1));
  for (; i < end; i += 16) total = i_add(total, LEVELS(0));
#undef LEVELS
  if (qmax == 127) *sum = i_reduce_add(total);
  return top / (float)qmax;
}

// columns start..end-1 of a row (K,) bf16 times channel_scale (K,) or 1 -> q: int8 for qmax 127, else levels. Returns the
// scale; `sum` is that of int8 q. With `keep`, `floats` (end - start,) gets the row before channel_scale.
ALWAYS float quantize(const int qmax, const int keep, const bf16 *row, const float *channel_scale, i64 K, i64 start, i64 end,
                      void *q, int *sum, float *floats) {
  if (channel_scale) return quantize_columns(qmax, 1, keep, row, channel_scale, K, start, end, q, sum, floats);
  return quantize_columns(qmax, 0, keep, row, channel_scale, K, start, end, q, sum, floats);
}

typedef struct {
  bf16 *x;
  const float *channel_scale, *scale;
  i64 K, Kp, group, groups;
  const level *q;
} Residual;

// n (at most 16) numbers at x, times those at channel_scale (NULL: 1) quantized to q and `scale` -> what that has lost
ALWAYS void lost(bf16 *x, const float *channel_scale, i64 n, const level *q, float scale) {
  vf c = channel_scale ? f_load_some(channel_scale, n) : f_set(1.0f);
  vf held = f_mul(f_of(load_levels(q)), f_set(scale));
  h_store_some(x, n, f_not_zero(f_sub(h_load_some(x, n), f_div(held, c)), c));
}

static void residual_row(const void *how, i64 t, void *scratch) {
  const Residual *p = how;
  for (i64 i = 0; i < p->K; i += 16)
    lost(p->x + t * p->K + i, p->channel_scale ? p->channel_scale + i : NULL, p->K - i, p->q + t * p->Kp + i,
         p->scale[t * p->groups + i / p->group]);
  (void)scratch;
}

// x (T, K) bf16, in place: what quantizing it (times channel_scale (K,)) has lost
void int8_residual(bf16 *x, const float *channel_scale, i64 T, i64 K, i64 Kp, i64 group, i64 groups, const void *q,
                   const float *scale) {
  Residual p = {x, channel_scale, scale, K, Kp, group, groups, q};
  parallel(T, 0, residual_row, &p);
}

// A row's gradient is made, quantized and, in two passes, what that has lost quantized again, group by group in cache.
// The logits' memory can be q's: a group's numbers are written behind it when it has been read, the second pass's at last.
static void entropy_row(const void *how, i64 t, void *scratch) {
  const Int8Entropy *p = how;
  const bf16 *row = p->logits + t * p->V;
  const i64 target = p->targets[t], first = t * p->passes;
  level *q = (level *)p->q + first * p->Vp, *again = scratch;
  bf16 *piece = (bf16 *)((char *)scratch + PAD(p->Vp * (i64)sizeof(level), 64));
  float lse = log_sum_exp(row, p->V);
  p->loss[t] = lse - bf16_to_f32(row[target]);
  for (i64 g = 0, start = 0; start < p->Vp; g++, start += p->group) {
    i64 end = start + p->group < p->Vp ? start + p->group : p->Vp, some = end < p->V ? end : p->V;
    softmax_gradient(row, start, some, target, lse, p->weight, piece);
    for (i64 pass = 0; pass < p->passes; pass++) {
      i64 at = (first + pass) * p->groups + g;
      level *to = pass ? again : q;
      int total;
      p->scale[at] =
          quantize(QMAX, 0, piece, p->channel_scale + start, some - start, 0, end - start, to + start, &total, NULL);
      if (p->sum) p->sum[at] = 128 * total;
      for (i64 i = 0; i < some - start && pass + 1 < p->passes; i += 16)
        lost(piece + i, p->channel_scale + start + i, some - start - i, to + start + i, p->scale[at]);
    }
  }
  if (p->passes > 1) memcpy(q + p->Vp, again, (size_t)p->Vp * sizeof(level));
}

int int8_entropy(const Int8Entropy *p) {
  return parallel(p->T, (size_t)(PAD(p->Vp * (i64)sizeof(level), 64) + PAD(p->group, 16) * 2), entropy_row, p);
}

typedef struct {
  const Int8Input *in;
  i64 span;  // columns at a time, whole groups of them
  i64 room;  // floats for the segments' sums
} Quantizing;

// columns k0..k1-1 of row t quantized, and what the segments take of them as floats
static void input_row(const Int8Input *p, i64 t, i64 k0, i64 k1, float *floats) {
  const bf16 *x = p->x + t * p->K;
  for (i64 start = k0; p->q && start < k1; start += p->group) {
    i64 end = start + p->group < k1 ? start + p->group : k1, at = t * p->groups + start / p->group;
    int total;
    p->scale[at] = quantize(QMAX, 1, x, p->channel_scale, p->K, start, end, (level *)p->q + t * p->Kp, &total,
                            floats + start - k0);
    if (p->sum) p->sum[at] = 128 * total;
  }
  for (i64 i = k0; !p->q && i < k1; i += 16) f_store(floats + i - k0, h_load_some(x + i, p->K - i));
  if (p->segments && p->mask.rows) {
    uint32_t seed = row_seed(&p->mask, t);
    for (i64 i = k0; i < k1; i += 16) f_store(floats + i - k0, kept(f_load(floats + i - k0), &p->mask, seed, i));
  }
}

// INPUT_ROWS rows
static void input_rows(const void *how, i64 block, void *scratch) {
  const Quantizing *all = how;
  const Int8Input *p = all->in;
  const i64 span = all->span;
  float *rows = scratch, *sums = rows + INPUT_ROWS * span;
  i64 t0 = block * INPUT_ROWS, m = p->T - t0 < INPUT_ROWS ? p->T - t0 : INPUT_ROWS;
  for (i64 r = 0; r < m; r++)
    for (i64 e = 0; e < p->n_outliers; e++)
      p->z[(t0 + r) * p->Z + p->outliers_at + e] = bf16_to_f32(p->x[(t0 + r) * p->K + p->outliers[e]]);
  for (i64 k0 = 0; k0 < p->Kp && (p->q || p->segments); k0 += span) {
    i64 k1 = k0 + span < p->Kp ? k0 + span : p->Kp;
    for (i64 r = 0; r < m; r++) input_row(p, t0 + r, k0, k1, rows + r * span);
    float *c = sums;
    for (i64 s = 0; s < p->segments; s++) {
      const Segment *g = p->segment + s;
      i64 lo = g->from > k0 ? g->from : k0, hi = g->to < k1 ? g->to : k1;
      if (lo < hi)
        gemm_f32(m, g->np, hi - lo, rows + lo - k0, span, 1, g->b + (lo - g->from) * g->np, g->np, c, g->np,
                 lo > g->from);
      c += INPUT_ROWS * g->np;
    }
  }
  const float factor = mask_scale(&p->mask);
  float *c = sums;
  for (i64 s = 0; s < p->segments; s++) {
    const Segment *g = p->segment + s;
    for (i64 r = 0; r < m; r++) {
      float *z = p->z + (t0 + r) * p->Z + g->at;
      SIMD for (i64 i = 0; i < g->n; i++) z[i] = factor * c[r * g->np + i];
    }
    c += INPUT_ROWS * g->np;
  }
}

int int8_input(const Int8Input *p) {
  Quantizing all = {p, INPUT_FLOATS, 0};
  if (p->q) all.span = p->group < INPUT_FLOATS ? INPUT_FLOATS / p->group * p->group : p->group;
  for (i64 s = 0; s < p->segments; s++) all.room += INPUT_ROWS * p->segment[s].np;
  size_t scratch = sizeof(float) * (size_t)(INPUT_ROWS * all.span + all.room);
  return parallel((p->T + INPUT_ROWS - 1) / INPUT_ROWS, scratch, input_rows, &all);
}

// --- the product ------------------------------------------------------------------------------------------------------

typedef struct {
  const bf16 *weight;
  const float *channel_scale;
  i64 N, K;
  uint8_t *panels;
  float *scale;
} Packing;

static void pack_piece(const void *how, i64 panel, void *scratch) {
  const Packing *p = how;
  i64 Kp = PAD(p->K, 16);
  int8_t *rows = scratch;
  memset(rows, 0, (size_t)(16 * Kp));
  for (i64 r = 0; r < 16 && panel * 16 + r < p->N; r++) {
    i64 n = panel * 16 + r;
    int sum;
    p->scale[n] = quantize(127, 0, p->weight + n * p->K, p->channel_scale, p->K, 0, Kp, rows + r * Kp, &sum, NULL);
  }
  uint32_t *to = (uint32_t *)(p->panels + panel * Kp * 16);
  for (i64 k = 0; k < Kp / 4; k++)
    for (i64 r = 0; r < 16; r++) {
      uint32_t four;
      memcpy(&four, rows + r * Kp + 4 * k, 4);
      to[k * 16 + r] = four ^ 0x80808080u;
    }
}

// weight (N, K) bf16 times channel_scale (K,) -> panels (N/16, Kp/4, 16, 4), padding zero, and each row's scale (N,)
int int8_pack(const bf16 *weight, const float *channel_scale, i64 N, i64 K, uint8_t *panels, float *scale) {
  Packing p = {weight, channel_scale, N, K, panels, scale};
  return parallel((N + 15) / 16, (size_t)(16 * PAD(K, 16)), pack_piece, &p);
}

// the low-rank terms, scales and bias of C (m, 16 PANELS) f32 -> y
ALWAYS void finish(const int m, const int NV, const Int8Product *p, i64 t, i64 panel, const float *C) {
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
        element x = load_element(z + r * p->Z + s);
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) acc[r][v] = f_fma_element(w[v], x, acc[r][v]);
      }
    }
  }
  for (int r = 0; r < m; r++) {
    uint32_t seed = row_seed(&p->mask, t + r);
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      i64 n = (panel + v) * 16;
      vf y = acc[r][v];
      if (p->mask.rows) y = kept(f_mul(y, f_set(p->mask.scale)), &p->mask, seed, n);
      y = f_fma(f_load(C + (r * PANELS + v) * 16), f_load_some(p->channel_scale + n, p->N - n), y);
      if (p->bias) y = f_add(y, h_load_some(p->bias + n, p->N - n));
      h_store_some(p->y + (t + r) * p->N + n, p->N - n, y);
    }
  }
}

static void run_finish(i64 rows, int nv, const Int8Product *p, i64 t, i64 panel, const float *C) {
  for (i64 r = 0; r < rows; r += MR) {
    i64 m = rows - r < MR ? rows - r : MR;
    const float *c = C + r * PANELS * 16;
#define CALL(M)                                            \
  if (nv == PANELS) finish(M, PANELS, p, t + r, panel, c); \
  else finish(M, 1, p, t + r, panel, c)
    BY_ROWS(m, CALL)
#undef CALL
  }
}

// The weight's panels for outputs n0..n1-1 and inputs k0..k1-1: where they stand, or made in `room`, and how many bytes
// one panel is from the next. `spare` holds one panel of unpacked blocks.
static const uint8_t *panels_at(const Int8Product *p, i64 n0, i64 n1, i64 k0, i64 k1, uint8_t *room, uint8_t *spare,
                                i64 *apart) {
  *apart = (k1 - k0) * 16 * WEIGHT_BYTES;
  if (p->backward) {
    for (i64 k = k0; k < k1; k += 16) {
      const uint8_t *from = p->lazy ? spare : p->w + (k / 16 * PAD(p->N, 16) + n0) * 16;
      if (p->lazy) unpack_panel(p->lazy, k, n0, n1, spare);
      transpose_panel(from, n1 - n0, *apart, room + (k - k0) * 16 * WEIGHT_BYTES);
    }
    return room;
  }
#ifdef PREPARES_PANELS
  for (i64 n = n0; n < n1; n += 16) {
    const uint8_t *from = p->lazy ? spare : p->w + n * p->K + k0 * 16;
    if (p->lazy) unpack_panel(p->lazy, n, k0, k1, spare);
    prepare_panel(from, k1 - k0, room + (n - n0) / 16 * *apart);
  }
#else
  if (!p->lazy) {
    *apart = p->K * 16;
    return p->w + n0 * p->K + k0 * 16;
  }
  for (i64 n = n0; n < n1; n += 16) unpack_panel(p->lazy, n, k0, k1, room + (n - n0) / 16 * *apart);
#endif
  return room;
}

enum { TILE_OUTPUTS = 16 * PANELS, ROUNDS = 6 };

typedef struct {
  const Int8Product *p;
  i64 panels, pairs, chunks;  // of 16 outputs; of panels, since blocks are unpacked 32 numbers at a time; pieces
  i64 span, widest;           // groups in a block; pairs of the widest piece
  int several;                // blocks: their sums are kept between them
  size_t room, spare;         // bytes for panels that are made, and for one panel of unpacked blocks
} Products;

static void product_chunk(const void *how, i64 chunk, void *scratch) {
  const Products *all = how;
  const Int8Product *p = all->p;
  uint8_t *room = scratch, *spare = room + all->room;
  float *sums = (float *)(spare + all->spare);
  i64 first = chunk * all->pairs / all->chunks * 2, last = (chunk + 1) * all->pairs / all->chunks * 2;
  last = last < all->panels ? last : all->panels;
  for (i64 base = 0; base < p->T; base += ROWS_AT_ONCE) {
    i64 top = base + ROWS_AT_ONCE < p->T ? base + ROWS_AT_ONCE : p->T;
    for (i64 g0 = 0; g0 < p->groups; g0 += all->span) {
      i64 g1 = g0 + all->span < p->groups ? g0 + all->span : p->groups;
      i64 k0 = g0 * p->group, k1 = g1 * p->group < p->K ? g1 * p->group : p->K, apart;
      const uint8_t *b = panels_at(p, first * 16, last * 16, k0, k1, room, spare, &apart);
      product_begin();
      for (i64 t = base; t < top; t += PRODUCT_ROWS) {
        i64 m = top - t < PRODUCT_ROWS ? top - t : PRODUCT_ROWS;
        for (i64 panel = first; panel < last; panel += PANELS) {
          int nv = last - panel < PANELS ? 1 : PANELS;
          float *c = all->several ? sums + (t - base) * all->widest * 32 + (panel - first) * 16 * PRODUCT_ROWS : sums;
          product_tile(m, nv, p, t, g0, g1, b + (panel - first) * apart, apart, c);
          if (g1 == p->groups) run_finish(m, nv, p, t, panel, c);
        }
      }
      product_end();
    }
  }
}

int int8_product(const Int8Product *p) {
  Products all = {.p = p, .panels = PAD(p->N, 16) / 16};
  all.pairs = (all.panels + 1) / 2;
  all.span = BLOCK / p->group > 0 ? BLOCK / p->group : 1;
  i64 deep = all.span * p->group < p->K ? all.span * p->group : p->K, bytes = deep * 32 * WEIGHT_BYTES;
  i64 most = CHUNK_BYTES / bytes > 0 ? CHUNK_BYTES / bytes : 1;  // pairs whose block stays in cache
  i64 threads = threads_in_use(), rounds = (all.pairs + threads * most - 1) / (threads * most);
  rounds = threads > 1 && rounds < ROUNDS ? ROUNDS : rounds;  // small pieces, for whoever has more time
  all.chunks = threads * rounds < all.pairs ? threads * rounds : all.pairs;
  all.widest = (all.pairs + all.chunks - 1) / all.chunks;
  all.several = p->K > deep;
#ifdef PREPARES_PANELS
  int made = 1;
#else
  int made = p->backward || p->lazy;
#endif
  all.room = made ? (size_t)PAD(all.widest * bytes, 64) : 0;
  all.spare = p->lazy ? 16 * (size_t)PAD(all.widest * 32 > deep ? all.widest * 32 : deep, 64) : 0;
  i64 sums = all.several ? PAD(ROWS_AT_ONCE, PRODUCT_ROWS) * all.widest * 32 : PRODUCT_ROWS * TILE_OUTPUTS;
  return parallel(all.chunks, all.room + all.spare + sizeof(float) * (size_t)sums, product_chunk, &all);
}

// --- gradients of the adapter's matrices ------------------------------------------------------------------------------

enum { OUTER_COLUMNS = 64, OUTER_ROWS = 256, WIDE = 16 * PANELS };

typedef struct {
  const float *z;
  i64 Z, R;
  const bf16 *x;
  i64 stride, T, C;
  const Mask *mask;
  float factor;
  int transposed;
  float *out;
} Outer;

static void outer_piece(const void *how, i64 c, void *scratch) {
  const Outer *p = how;
  float *rows = scratch, *sums = rows + OUTER_ROWS * OUTER_COLUMNS;  // rows by panels: (OUTER_COLUMNS/WIDE, OUTER_ROWS, WIDE)
  i64 c0 = c * OUTER_COLUMNS, n = p->C - c0 < OUTER_COLUMNS ? p->C - c0 : OUTER_COLUMNS, np = PAD(n, 16);
  for (i64 t0 = 0; t0 < p->T; t0 += OUTER_ROWS) {
    i64 deep = p->T - t0 < OUTER_ROWS ? p->T - t0 : OUTER_ROWS;
    for (i64 t = t0; t < t0 + deep; t++) {
      const uint32_t seed = row_seed(p->mask, t);
      const bf16 *row = p->x + t * p->stride + c0, *later = t + 12 < p->T ? row + 12 * p->stride : row;
      __builtin_prefetch(later), __builtin_prefetch(later + 32);
      for (i64 i = 0; i < np; i += 16) {
        vf x = h_load_some(row + i, n - i);
        if (p->mask->rows) x = kept(x, p->mask, seed, c0 + i);
        f_store(rows + (i / WIDE * OUTER_ROWS + t - t0) * WIDE + i % WIDE, x);
      }
    }
    for (i64 i = 0; i < np; i += WIDE)
      gemm_f32(p->R, np - i < WIDE ? np - i : WIDE, deep, p->z + t0 * p->Z, 1, p->Z, rows + i * OUTER_ROWS, WIDE,
               sums + i, OUTER_COLUMNS, t0 > 0);
  }
  const float factor = p->factor * mask_scale(p->mask);
  for (i64 i = 0; p->transposed && i < n; i++)
    for (i64 r = 0; r < p->R; r++) p->out[(c0 + i) * p->R + r] = factor * sums[r * OUTER_COLUMNS + i];
  for (i64 r = 0; !p->transposed && r < p->R; r++)
    SIMD for (i64 i = 0; i < n; i++) p->out[r * p->C + c0 + i] = factor * sums[r * OUTER_COLUMNS + i];
}

// out (R, C) f32 = factor * zᵀ x, or (C, R), transposed: z (T, R) f32 with stride, x (T, C) bf16 with stride, masked
int outer_rows(const float *z, i64 Z, i64 R, const bf16 *x, i64 stride, i64 T, i64 C, const Mask *mask, float factor,
               int transposed, float *out) {
  Outer p = {z, Z, R, x, stride, T, C, mask, factor, transposed, out};
  size_t scratch = sizeof(float) * (size_t)(OUTER_ROWS * OUTER_COLUMNS + PAD(R, 4) * OUTER_COLUMNS);
  return parallel((C + OUTER_COLUMNS - 1) / OUTER_COLUMNS, scratch, outer_piece, &p);
}
