// Attention: of one new query a row, for decoding, and of packed rows over a shared prefix, forward and backward.
//
// The products inside attention are of bf16 pairs where the CPU has an instruction for them (AVX512_BF16), of int16 pairs
// where it has not: those run at twice float32's rate.

#include "lanes.h"
#include "threads.h"

// The largest of n floats, -infinity where there are none. Not a plain loop: clang does not vectorize that, since it keeps
// what the comparison says of not-a-number and of the sign of zero.
ALWAYS float largest_of(const float *x, i64 n) {
  float largest = -INFINITY;
  if (n < 16) {
    for (i64 i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    return largest;
  }
  vf top = f_load(x + n - 16);
  for (i64 i = 0; i + 16 <= n; i += 16) top = f_max(top, f_load(x + i));
  return f_reduce_max(top);
}

// --- attention of one new query a row, for decoding --------------------------------------------------------------------

static inline float dot_row(const float *query, const bf16 *key, i64 d) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (i64 i = 0; i < d; i++) dot += query[i] * bf16_to_f32(key[i]);
  return dot;
}

enum { AHEAD = 16 };  // keys: the CPU's own prefetching loses track of heads that lie apart

ALWAYS void prefetch(const bf16 *from, i64 n) {
  for (i64 i = 0; i < n; i += 32) __builtin_prefetch(from + i);
}

// scores of `group` queries, head size 16 NV, four queries at a time; keys first..n-1, `stride` elements apart
ALWAYS void score_fixed(const int NV, i64 group, const float *query, const bf16 *k, i64 stride, i64 first, i64 n,
                        float *scores) {
  for (i64 j = first; j < n; j++) {
    const bf16 *key = k + j * stride;
    prefetch(key + AHEAD * stride, 16 * NV);
    vf part[8];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) part[v] = h_load(key + 16 * v);
    for (i64 g = 0; g < group; g += 4) {
      const i64 some = group - g < 4 ? group - g : 4;
      vf sum[4];
      float four[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        sum[r] = f_zero();
        if (r < some) {
#pragma GCC unroll 8
          for (int v = 0; v < NV; v++) sum[r] = f_fma(part[v], f_load(query + ((g + r) * NV + v) * 16), sum[r]);
        }
      }
      f_reduce_add4(sum, four);
      for (i64 r = 0; r < some; r++) scores[(g + r) * n + j] = four[r];
    }
  }
}

// MIX_WIDE vectors of G queries' sums of weighted values, all of it in registers; weights (G, n)
ALWAYS void mix_some(const int G, const float *weights, const bf16 *v, i64 stride, i64 first, i64 n, float *mixed, i64 d) {
  vf sum[4][MIX_WIDE], part[MIX_WIDE];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int w = 0; w < MIX_WIDE; w++) sum[g][w] = f_zero();
  for (i64 j = first; j < n; j++) {
    prefetch(v + (j + AHEAD) * stride, 16 * MIX_WIDE);
#pragma GCC unroll 4
    for (int w = 0; w < MIX_WIDE; w++) part[w] = h_load(v + j * stride + 16 * w);
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) {
      vf weight = f_set(weights[g * n + j]);
#pragma GCC unroll 4
      for (int w = 0; w < MIX_WIDE; w++) sum[g][w] = f_fma(part[w], weight, sum[g][w]);
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int w = 0; w < MIX_WIDE; w++) f_store(mixed + g * d + 16 * w, sum[g][w]);
}

static void mix_fixed(i64 group, const float *weights, const bf16 *v, i64 stride, i64 first, i64 n, float *mixed, i64 d) {
  for (i64 i = 0; i < d; i += 16 * MIX_WIDE)
    for (i64 g = 0; g < group;) {
      const float *w = weights + g * n;
      float *to = mixed + g * d + i;
      if (group - g >= 4) mix_some(4, w, v + i, stride, first, n, to, d), g += 4;
      else if (group - g == 3) mix_some(3, w, v + i, stride, first, n, to, d), g += 3;
      else if (group - g == 2) mix_some(2, w, v + i, stride, first, n, to, d), g += 2;
      else mix_some(1, w, v + i, stride, first, n, to, d), g += 1;
    }
}

static void score(i64 d, i64 group, const float *query, const bf16 *k, i64 stride, i64 first, i64 n, float *scores) {
  if (d == 64) return score_fixed(4, group, query, k, stride, first, n, scores);
  if (d == 128) return score_fixed(8, group, query, k, stride, first, n, scores);
  for (i64 j = first; j < n; j++)
    for (i64 g = 0; g < group; g++) scores[g * n + j] = dot_row(query + g * d, k + j * stride, d);
}

static void mix(i64 d, i64 group, const float *weights, const bf16 *v, i64 stride, i64 first, i64 n, float *mixed) {
  if (d % (16 * MIX_WIDE) == 0) return mix_fixed(group, weights, v, stride, first, n, mixed, d);
  memset(mixed, 0, sizeof(float) * group * d);
  for (i64 j = first; j < n; j++) {
    const bf16 *value = v + j * stride;
    for (i64 g = 0; g < group; g++) {
      float w = weights[g * n + j], *sum = mixed + g * d;
      SIMD for (i64 i = 0; i < d; i++) sum[i] += w * bf16_to_f32(value[i]);
    }
  }
}

typedef struct {
  const bf16 *q, *pk, *pv, *k, *v;
  const i64 *lengths;
  i64 qs, P, capacity, B, H, K, d, window;
  float scale, cap;
  bf16 *out;
  i64 rows;      // of a piece of the prefix
  float *found;  // what each query has of the prefix: its largest score, the sum of its weights, their mix (d,)
} Cached;

enum { PREFIX_KEYS = 64, PREFIX_QUERIES = 64 };  // at a time

ALWAYS float scale_or_default(float scale, i64 d) { return scale != 0.0f ? scale : 1.0f / sqrtf((float)d); }

static inline i64 first_seen(const Cached *p, i64 b) {  // by the newest token of a row
  i64 n = p->P + p->lengths[b];
  return p->window > 0 && n > p->window ? n - p->window : 0;
}

static size_t prefix_bytes(const Cached *p) {
  i64 Mp = PAD(p->rows * (p->H / p->K), 16), dp = PAD(p->d, 16);
  return sizeof(float) * (size_t)(p->d * Mp + p->P * Mp + PREFIX_KEYS * dp + Mp * dp + Mp);
}

// The queries of some rows, of one key/value head, against the prefix: a matrix product, since all of them see the same
// keys. Scores are (keys, queries). No query's numbers depend on the others.
static void prefix_piece(const void *how, i64 item, void *scratch) {
  const Cached *p = how;
  const i64 K = p->K, H = p->H, P = p->P, d = p->d, group = H / K, dp = PAD(d, 16), stride = K * d;
  const i64 kh = item % K, b0 = item / K * p->rows, b1 = b0 + p->rows < p->B ? b0 + p->rows : p->B;
  const i64 M = (b1 - b0) * group, Mp = PAD(M, 16);
  const float scale = scale_or_default(p->scale, d);
  float *queries = scratch, *scores = queries + d * Mp, *some = scores + P * Mp, *mixed = some + PREFIX_KEYS * dp;
  float *tops = mixed + Mp * dp;
  for (i64 m = 0; m < Mp; m++) {
    const bf16 *from = p->q + (b0 + m / group) * p->qs + (kh * group + m % group) * d;
    for (i64 i = 0; i < d; i++) queries[i * Mp + m] = m < M ? bf16_to_f32(from[i]) * scale : 0.0f;
  }
  for (i64 j = 0; j < P; j += PREFIX_KEYS) {
    i64 n = P - j < PREFIX_KEYS ? P - j : PREFIX_KEYS;
    for (i64 r = 0; r < n; r++) {
      const bf16 *key = p->pk + (j + r) * stride + kh * d;
      SIMD for (i64 i = 0; i < d; i++) some[r * d + i] = bf16_to_f32(key[i]);
    }
    gemm_f32(n, Mp, d, some, d, 1, queries, Mp, scores + j * Mp, Mp, 0);
  }
  if (p->cap > 0.0f) {
    SIMD for (i64 i = 0; i < P * Mp; i++) scores[i] = soft_capped(scores[i], p->cap);
  }
  if (p->window > 0)
    for (i64 m = 0; m < M; m++) {
      i64 hidden = first_seen(p, b0 + m / group);
      for (i64 j = 0; j < hidden && j < P; j++) scores[j * Mp + m] = -INFINITY;
    }
  for (i64 m = 0; m < Mp; m += 16) {
    vf top = f_set(-1e30f), sum = f_zero();  // of no key at all: their weights are then 0
    for (i64 j = 0; j < P; j++) top = f_max(top, f_load(scores + j * Mp + m));
    for (i64 j = 0; j < P; j++) {
      vf x = f_exp(f_sub(f_load(scores + j * Mp + m), top));
      sum = f_add(sum, x);
      f_store(scores + j * Mp + m, x);
    }
    float sums[16];
    f_store(tops + m, top), f_store(sums, sum);
    for (i64 r = m; r < m + 16 && r < M; r++) {
      float *to = p->found + ((b0 + r / group) * H + kh * group + r % group) * (d + 2);
      to[0] = tops[r], to[1] = sums[r - m];
    }
  }
  if (dp > d) memset(some, 0, sizeof(float) * (size_t)(PREFIX_KEYS * dp));
  for (i64 j = 0; j < P; j += PREFIX_KEYS) {
    i64 n = P - j < PREFIX_KEYS ? P - j : PREFIX_KEYS;
    for (i64 r = 0; r < n; r++) {
      const bf16 *value = p->pv + (j + r) * stride + kh * d;
      SIMD for (i64 i = 0; i < d; i++) some[r * dp + i] = bf16_to_f32(value[i]);
    }
    gemm_f32(M, dp, n, scores + j * Mp, 1, Mp, some, dp, mixed, dp, j > 0);
  }
  for (i64 m = 0; m < M; m++)
    memcpy(p->found + ((b0 + m / group) * H + kh * group + m % group) * (d + 2) + 2, mixed + m * dp, sizeof(float) * (size_t)d);
}

// one row's queries of one key/value head against the row's own keys, and together with what they have of the prefix
static void cached_head(const Cached *p, i64 b, i64 kh, void *scratch) {
  const i64 K = p->K, d = p->d, group = p->H / K, n = p->lengths[b];
  const i64 hidden = first_seen(p, b) - p->P, first = hidden > 0 ? hidden : 0, own = (b * p->capacity * K + kh) * d;
  const float scale = scale_or_default(p->scale, d), cap = p->cap;
  float *scores = scratch, *query = scores + group * n, *mixed = query + group * d;
  const bf16 *heads = p->q + b * p->qs + kh * group * d;
  SIMD for (i64 i = 0; i < group * d; i++) query[i] = bf16_to_f32(heads[i]) * scale;
  score(d, group, query, p->k + own, K * d, first, n, scores);
  float before[group], inverse[group];  // the prefix's share in the weights as they are here; 1 / all weights
  for (i64 g = 0; g < group; g++) {
    const float *found = p->found + (b * p->H + kh * group + g) * (d + 2);
    float *row = scores + g * n, sum = 0;
    if (cap > 0.0f) {
      SIMD for (i64 j = first; j < n; j++) row[j] = soft_capped(row[j], cap);
    }
    float largest = largest_of(row + first, n - first);
    if (p->P && found[0] > largest) largest = found[0];
#pragma omp simd reduction(+ : sum)
    for (i64 j = first; j < n; j++) {
      row[j] = fast_exp(row[j] - largest);
      sum += row[j];
    }
    before[g] = p->P ? fast_exp(found[0] - largest) : 0.0f;
    inverse[g] = 1.0f / (p->P ? sum + before[g] * found[1] : sum);
  }
  mix(d, group, scores, p->v + own, K * d, first, n, mixed);
  bf16 *o = p->out + (b * p->H + kh * group) * d;
  for (i64 g = 0; g < group; g++) {
    const float *found = p->found + (b * p->H + kh * group + g) * (d + 2) + 2;
    float *row = mixed + g * d;
    if (p->P) {
      SIMD for (i64 i = 0; i < d; i++) row[i] += before[g] * found[i];
    }
    SIMD for (i64 i = 0; i < d; i++) o[g * d + i] = f32_to_bf16(row[i] * inverse[g]);
  }
}

static void cached_head_piece(const void *how, i64 item, void *scratch) {
  const Cached *p = how;
  cached_head(p, item / p->K, item % p->K, scratch);
}

// all heads of a row, whose keys lie beside each other in memory
static void cached_row_piece(const void *how, i64 item, void *scratch) {
  const Cached *p = how;
  for (i64 kh = 0; kh < p->K; kh++) cached_head(p, item, kh, scratch);
}

// out (B, H, d): of queries with stride qs against the prefix's (P, K, d) and their rows' own keys and values
// (B, capacity, K, d), lengths (B,) of them. found (B, H, d + 2) f32 where P > 0.
int attend_cached(const bf16 *q, i64 qs, const bf16 *pk, const bf16 *pv, i64 P, const bf16 *k, const bf16 *v,
                  const i64 *lengths, i64 capacity, i64 B, i64 H, i64 K, i64 d, i64 window, float scale, float cap,
                  bf16 *out, float *found) {
  Cached p = {q, pk, pv, k, v, lengths, qs, P, capacity, B, H, K, d, window, scale, cap, out, 1, found};
  i64 longest = 0, group = H / K;
  for (i64 b = 0; b < B; b++) longest = lengths[b] > longest ? lengths[b] : longest;
  for (i64 rows = 1; rows * group <= PREFIX_QUERIES; rows++)  // whole vectors of queries, as many as may be
    if (rows * group % 16 == 0 || p.rows * group % 16) p.rows = rows;
  if (P && parallel((B + p.rows - 1) / p.rows * K, prefix_bytes(&p), prefix_piece, &p)) return 1;
  const size_t scratch = sizeof(float) * (size_t)(group * (longest + 2 * d));
  if (B >= 4 * threads_in_use()) return parallel(B, scratch, cached_row_piece, &p);
  return parallel(B * K, scratch, cached_head_piece, &p);
}

// --- attention of packed rows over a shared prefix ---------------------------------------------------------------------

enum { QB = 64, KB = 192 };  // queries, and keys, at a time

// What the products take: 16 bits, two at a time. bf16, or int16 under one scale for each block that is multiplied: inputs
// are bf16 already, so 12 bits of the largest lose less than bf16 products of weights would. A's pair (r, k) stands at
// A + r * rs + k * ks; B is packed as [K/2][ldb][2]. K counts single operands and is even.
#ifdef HAS_BF16_TILES
enum { KEY_STEP = 32 };  // keys of a block of the backward pass are taken in multiples of this, zeros behind the last
#else
enum { KEY_STEP = 2 };
#endif

#ifdef HAS_BF16_DOT

typedef bf16 operand;
enum { DEEP = 1 << 30, WEIGHT_LEVELS = 1 };

typedef vf sums;
ALWAYS sums no_sum(void) { return f_zero(); }
ALWAYS void add_dot(sums *sum, vi w, const operand *pair) { f_add_dot(sum, w, pair); }
ALWAYS vf product(sums sum, float scale) { return (void)scale, sum; }
ALWAYS void store_operands(operand *to, vf x) { h_store(to, x); }

// rows (n, d) with stride: their scale, given another part's
static float scale_of(const bf16 *x, i64 stride, i64 n, i64 d, float other) {
  return (void)x, (void)stride, (void)n, (void)d, (void)other, 1.0f;
}

// rows (n, d) with stride over `scale` -> (n, d)
static void to_operands(const bf16 *x, i64 stride, i64 n, i64 d, float scale, operand *to) {
  (void)scale;
  for (i64 r = 0; r < n; r++) memcpy(to + r * d, x + r * stride, sizeof(operand) * d);
}

#else

typedef int16_t operand;
enum { DEEP = 192, OPERAND_LEVELS = 3344, WEIGHT_LEVELS = 3344 };  // 192 products of so many levels fit into 31 bits

typedef vi sums;
ALWAYS sums no_sum(void) { return i_zero(); }
ALWAYS void add_dot(sums *sum, vi w, const operand *pair) { i_add_dot(sum, w, pair); }
ALWAYS vf product(sums sum, float scale) { return f_mul(f_of(sum), f_set(scale)); }
ALWAYS void store_operands(operand *to, vf x) { w_store(to, to_words(i_of(x))); }
ALWAYS vi operand_words(vf x) { return i_and(i_of(x), i_set(0xFFFF)); }
ALWAYS float inverse_of(float scale) { return scale > 1e-30f ? 1.0f / scale : 0.0f; }

static float scale_of(const bf16 *x, i64 stride, i64 n, i64 d, float other) {
  vf top = f_zero();
  for (i64 r = 0; r < n; r++)
    for (i64 i = 0; i < d; i += 16) top = f_max(top, f_abs(h_load(x + r * stride + i)));
  float scale = f_reduce_max(top) / OPERAND_LEVELS;
  return scale > other ? scale : other;
}

static void to_operands(const bf16 *x, i64 stride, i64 n, i64 d, float scale, operand *to) {
  vf inverse = f_set(inverse_of(scale));
  for (i64 r = 0; r < n; r++)
    for (i64 i = 0; i < d; i += 16) store_operands(to + r * d + i, f_mul(h_load(x + r * stride + i), inverse));
}

#endif

#ifdef HAS_BF16_TILES

static void gemm(i64 M, i64 N, i64 K, const operand *A, i64 rs, i64 ks, const operand *B, i64 ldb, float *C, i64 ldc,
                 const float *row_scale, float scale, int add) {
  (void)row_scale, (void)scale;  // all 1
  gemm_pairs(M, N, K, A, rs, ks, B, ldb, C, ldc, add);
}

#else

ALWAYS void tile(const int M, const int NV, i64 K, const operand *A, i64 rs, i64 ks, const operand *B, i64 ldb, float *C,
                 i64 ldc, const float *row_scale, float scale, int add) {
  sums acc[MR][PANELS];
#pragma GCC unroll 12
  for (int r = 0; r < M; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[r][v] = no_sum();
  for (i64 k = 0; k < K / 2; k++) {
    vi b[PANELS];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) b[v] = i_load(B + (k * ldb + v * 16) * 2);
#pragma GCC unroll 12
    for (int r = 0; r < M; r++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) add_dot(&acc[r][v], b[v], A + r * rs + k * ks);
  }
#pragma GCC unroll 12
  for (int r = 0; r < M; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      float *c = C + r * ldc + v * 16;
      vf y = product(acc[r][v], row_scale ? scale * row_scale[r] : scale);
      f_store(c, add ? f_add(f_load(c), y) : y);
    }
}

// C (M, N) (+)= A · B times scale, and row_scale (M,) if there is one; M any, N a multiple of 16
static void gemm(i64 M, i64 N, i64 K, const operand *A, i64 rs, i64 ks, const operand *B, i64 ldb, float *C, i64 ldc,
                 const float *row_scale, float scale, int add) {
  for (i64 k0 = 0; k0 < K; k0 += DEEP) {
    i64 deep = K - k0 < DEEP ? K - k0 : DEEP;
    const operand *from = A + k0 / 2 * ks;
    int more = add || k0 > 0;
    for (i64 n = 0; n < N;) {
      int nv = N - n >= 16 * PANELS ? PANELS : 1;
      const operand *b = B + (k0 / 2 * ldb + n) * 2;
      i64 m = 0;
#define TILES(M_)                                                                                                     \
  for (; m + M_ <= M; m += M_) {                                                                                      \
    const float *each = row_scale ? row_scale + m : NULL;                                                             \
    float *c = C + m * ldc + n;                                                                                       \
    if (nv == PANELS) tile(M_, PANELS, deep, from + m * rs, rs, ks, b, ldb, c, ldc, each, scale, more);               \
    else tile(M_, 1, deep, from + m * rs, rs, ks, b, ldb, c, ldc, each, scale, more);                                 \
  }
      FULL_TILES(TILES)
#undef TILES
      n += nv * 16;
    }
  }
}

#endif

// rows (n, d) -> packed [d/2][np][2], zeros behind them: the operand whose columns are the rows, 16 rows at a time
static void pack_columns(const operand *rows, i64 n, i64 np, i64 d, operand *packed) {
  for (i64 r = 0; r < np; r += 16) {
    i64 m = n - r < 16 ? n - r : 16;
    for (i64 i = 0; i < d / 2; i += 8) {
      uint32_t square[16][8];
      for (i64 k = 0; k < 16; k++) {
        if (k < m) memcpy(square[k], rows + (r + k) * d + 2 * i, 32);
        else memset(square[k], 0, 32);
      }
      for (i64 j = 0; j < 8; j++) {
        uint32_t *to = (uint32_t *)packed + (i + j) * np + r;
        for (i64 k = 0; k < 16; k++) to[k] = square[k][j];
      }
    }
  }
}

// rows (n, d) -> packed [np/2][d][2], zeros behind them: the operand whose rows they are
static void pack_rows(const operand *rows, i64 n, i64 np, i64 d, operand *packed) {
  for (i64 r = 0; r < np; r += 2) {
    const uint16_t *row = (const uint16_t *)rows + r * d, *next = row + d;
    uint32_t *pairs = (uint32_t *)(packed + r * d);
    if (r + 1 < n) {
      SIMD for (i64 i = 0; i < d; i++) pairs[i] = (uint32_t)row[i] | (uint32_t)next[i] << 16;
    } else if (r < n) {
      SIMD for (i64 i = 0; i < d; i++) pairs[i] = row[i];
    } else {
      memset(pairs, 0, sizeof(uint32_t) * d);
    }
  }
}

static inline i64 first_key(const Attention *a, i64 at) { return a->window > 0 && at >= a->window ? at - a->window + 1 : 0; }

// The threads' work: heads, and where those cannot be shared out evenly, the last of them in parts: of a part's blocks of
// queries each is `parts` behind the other.
typedef struct {
  i64 whole, parts;  // heads in one piece; pieces of each head behind them
} Split;

typedef struct {
  i64 head, part, parts;
} HeadPart;

static Split split_heads(i64 H) {
  i64 threads = threads_in_use(), rest = H % threads, parts = 1;
  while (parts < 4 && rest * parts % threads) parts++;  // each part makes the keys' operands anew
  return (Split){H - rest, parts};
}

static i64 first_piece(Split s, i64 head) { return head <= s.whole ? head : s.whole + (head - s.whole) * s.parts; }

static HeadPart piece_at(Split s, i64 i) {
  if (i < s.whole) return (HeadPart){i, 0, 1};
  return (HeadPart){s.whole + (i - s.whole) / s.parts, (i - s.whole) % s.parts, s.parts};
}

i64 attention_pieces(i64 H) { return first_piece(split_heads(H), H); }

// an example's keys (or values), the prefix's before its own: (P + S, d) operands in `rows`; returns their scale
static float both(const Attention *a, const bf16 *own, const bf16 *prefix, i64 e, i64 kh, operand *rows) {
  i64 start = a->bounds[e], S = a->bounds[e + 1] - start, d = a->d;
  own += start * a->ks + kh * d;
  float scale = scale_of(own, a->ks, S, d, a->P ? scale_of(prefix + kh * d, a->ps, a->P, d, 0.0f) : 0.0f);
  if (a->P) to_operands(prefix + kh * d, a->ps, a->P, d, scale, rows);
  to_operands(own, a->ks, S, d, scale, rows + a->P * d);
  return scale;
}

static i64 longest_example(const Attention *a) {
  i64 longest = 0;
  for (i64 e = 0; e < a->n; e++) {
    i64 s = a->bounds[e + 1] - a->bounds[e];
    longest = s > longest ? s : longest;
  }
  return longest;
}

// n scores, a multiple of 16 -> cap · tanh(score · scale / cap)
static void cap_scores(float *scores, i64 n, float scale, float cap) {
  const vf inner = f_set(scale / cap), outer = f_set(cap);
  for (i64 i = 0; i < n; i += 16) f_store(scores + i, f_mul(outer, f_tanh(f_mul(f_load(scores + i), inner))));
}

typedef struct {
  const Attention *a;
  Split split;
  i64 pieces, room;  // keys of the longest example, padded
  size_t keys, rows, scores;  // bytes of a thread's operands of all keys, of a block of queries, of its scores
  bf16 *out;
  float *lse;
} Forward;

static void attend_piece(const void *how, i64 item, void *scratch) {
  const Forward *p = how;
  const Attention *a = p->a;
  char *memory = scratch;
  operand *keys = (operand *)memory, *values = (operand *)(memory + p->keys), *rows = (operand *)(memory + 2 * p->keys);
  memory += 3 * p->keys;
  float *scores = (float *)memory, *mixed = (float *)(memory + p->scores);
  memory += p->scores + 2 * p->rows;  // mixed is float
  operand *queries = (operand *)memory, *weights = (operand *)(memory + p->rows);
  i64 d = a->d, group = a->H / a->K, e = item / p->pieces;
  float scale = scale_or_default(a->scale, d), slope = a->cap > 0.0f ? 1.0f : scale;  // of capped scores, and of others
  HeadPart piece = piece_at(p->split, item % p->pieces);
  i64 start = a->bounds[e], S = a->bounds[e + 1] - start, L = a->P + S, Lp = PAD(L, 32);
  i64 h = piece.head, kh = h / group;
  float ks = both(a, a->k, a->pk, e, kh, rows), vs;
  pack_columns(rows, L, Lp, d, keys);
  vs = both(a, a->v, a->pv, e, kh, rows);
  pack_rows(rows, L, Lp, d, values);
  for (i64 b = piece.part * QB; b < S; b += piece.parts * QB) {
    i64 m = S - b < QB ? S - b : QB, Lb = PAD(a->P + b + m, 32);
    const bf16 *q = a->q + (start + b) * a->qs + h * d;
    float qs = scale_of(q, a->qs, m, d, 0.0f);
    to_operands(q, a->qs, m, d, qs, queries);
    gemm(m, Lb, d, queries, d, 2, keys, Lp, scores, Lb, NULL, qs * ks, 0);
    float inverse[QB];
    for (i64 i = 0; i < m; i++) {
      i64 at = a->P + b + i, lo = first_key(a, at), hi = at + 1;
      float *row = scores + i * Lb;
      operand *w = weights + i * Lb;
      if (a->cap > 0.0f) cap_scores(row, Lb, scale, a->cap);
      float largest = largest_of(row + lo, hi - lo);
      vf total = f_zero(), top = f_set(largest), factor = f_set(slope);
      for (i64 j = 0; j < Lb; j += 16) {  // weights of keys outside lo..hi-1 are 0
        vf x = f_within(f_exp(f_mul(f_sub(f_load(row + j), top), factor)), j, lo, hi);
        total = f_add(total, x);
        store_operands(w + j, f_mul(x, f_set(WEIGHT_LEVELS)));
      }
      float sum = f_reduce_add(total);
      p->lse[h * a->T + start + b + i] = largest * slope + logf(sum);
      inverse[i] = 1.0f / sum;
    }
    gemm(m, d, Lb, weights, Lb, 2, values, d, mixed, d, NULL, vs / WEIGHT_LEVELS, 0);
    for (i64 i = 0; i < m; i++) {
      bf16 *o = p->out + ((start + b + i) * a->H + h) * d;
      SIMD for (i64 j = 0; j < d; j++) o[j] = f32_to_bf16(mixed[i * d + j] * inverse[i]);
    }
  }
}

// out (T, H, d) contiguous, lse (H, T)
int attend(const Attention *a, bf16 *out, float *lse) {
  Forward p = {.a = a, .split = split_heads(a->H), .out = out, .lse = lse};
  p.pieces = first_piece(p.split, a->H), p.room = PAD(a->P + longest_example(a), 32);
  p.keys = PAD(sizeof(operand) * (size_t)(p.room * a->d), 64), p.rows = sizeof(operand) * (size_t)(QB * PAD(a->d, 32));
  p.scores = sizeof(float) * (size_t)(QB * p.room);
  size_t scratch = 3 * p.keys + p.scores + 3 * p.rows + sizeof(operand) * (size_t)(QB * p.room);
  return parallel(a->n * p.pieces, scratch, attend_piece, &p);
}

// the gradient of a capped score -> of the score before it: tanh' = 1 - tanh²
ALWAYS vf cap_slope(vf d, vf capped, float inverse_cap) {
  vf tanh = f_mul(capped, f_set(inverse_cap));
  return f_fnma(f_mul(d, tanh), tanh, d);
}

// What one block of queries needs: weights P = exp(S - lse), dS = P (dP - delta) scale, all transposed: (keys, queries).
// Capped scores come as they are, capped. Key j of the block is seen by the queries from..to-1; columns beyond the last query have norm infinity: weight 0.
#ifdef HAS_BF16_DOT

ALWAYS void backward_block(const int capped, i64 n, i64 mp, i64 first_from, i64 window, const float *scores,
                           const float *dweights, const float *norm, const float *delta, const float *os,
                           const float *dscale, float scale, float inverse_cap, operand *weights, operand *dscores, operand *dpairs, float *key_p, float *key_d,
                           float *query_d) {
  (void)os, (void)key_p, (void)key_d, (void)query_d;  // scales, all 1
  const vf factor = f_set(scale);
  for (i64 j = 0; j < n; j += 2)  // pairs of keys, side by side for each query in dpairs
    for (i64 i = 0; i < mp; i += 16) {
      vi words[2] = {i_zero(), i_zero()};
      for (i64 r = 0; r < 2 && j + r < n; r++) {
        i64 at = (j + r) * mp + i, from = first_from + j + r, to = window > 0 ? from + window : mp;
        vf x = f_within(f_exp(f_fms(f_load(scores + at), factor, f_load(norm + i))), i, from, to);
        vf ds = f_mul(f_mul(x, f_sub(f_load(dweights + at), f_load(delta + i))), f_load(dscale + i));
        if (capped) ds = cap_slope(ds, f_load(scores + at), inverse_cap);
        vw d = f_to_bf16(ds);
        h_store(weights + at, x);
        w_store(dscores + at, d);
        words[r] = i_words(d);
      }
      i_store(dpairs + (j / 2 * mp + i) * 2, i_or(words[0], i_left(words[1], 16)));
    }
  memset(dpairs + PAD(n, 2) * mp, 0, sizeof(operand) * (size_t)((PAD(n, KEY_STEP) - PAD(n, 2)) * mp));
}

#else

// tops, 16 largest magnitudes -> the scales of what has them, and the scales' inverse (0 for next to nothing)
ALWAYS void block_scales(float *tops, float *inverse) {
  vf scale = f_div(f_load(tops), f_set(OPERAND_LEVELS));
  f_store(tops, scale), f_store(inverse, f_not_below(f_div(f_set(1.0f), scale), scale, 1e-30f));
}

// dP comes without each query's scale of dO, P goes with it. Scores and dweights are overwritten. Gradients differ by
// orders of magnitude between queries, and so between keys: each key has its scale of P and dS, each query one of dS.
// key_p, key_d have room for a multiple of 16 keys; the scales of 16 are made at once, since one division waits for the
// whole of a key's sums.
ALWAYS void backward_block(const int capped, i64 n, i64 mp, i64 first_from, i64 window, float *scores, float *dweights,
                           const float *norm, const float *delta, const float *os, const float *dscale, float scale,
                           float inverse_cap, operand *weights, operand *dscores, operand *dpairs, float *key_p, float *key_d, float *query_d) {
  const vf factor = f_set(scale);
  vf widest[QB / 16];
  for (i64 i = 0; i < mp; i += 16) widest[i / 16] = f_zero();
  for (i64 j0 = 0; j0 < n; j0 += 16) {
    float inverse_p[16], inverse_d[16];
    i64 low[16], high[16], some = n - j0 < 16 ? n - j0 : 16;  // whole vectors of queries that see a key
    f_store(key_p + j0, f_zero()), f_store(key_d + j0, f_zero());
    for (i64 r = 0; r < some; r++) {
      i64 j = j0 + r, from = first_from + j, to = window > 0 && from + window < mp ? from + window : mp;
      low[r] = from > 0 ? from / 16 * 16 : 0, high[r] = to > 0 ? PAD(to, 16) : 0;
      vf top = f_zero(), dtop = f_zero();
      for (i64 i = low[r]; i < high[r]; i += 16) {
        i64 at = j * mp + i;
        vf x = f_within(f_exp(f_fms(f_load(scores + at), factor, f_load(norm + i))), i, from, to);
        vf d = f_mul(f_mul(x, f_fms(f_load(dweights + at), f_load(os + i), f_load(delta + i))), f_load(dscale + i));
        if (capped) d = cap_slope(d, f_load(scores + at), inverse_cap);
        x = f_mul(x, f_load(os + i));
        f_store(scores + at, x), f_store(dweights + at, d);
        top = f_max(top, x), dtop = f_max(dtop, f_abs(d)), widest[i / 16] = f_max(widest[i / 16], f_abs(d));
      }
      key_p[j] = f_reduce_max(top), key_d[j] = f_reduce_max(dtop);
    }
    block_scales(key_p + j0, inverse_p), block_scales(key_d + j0, inverse_d);
    for (i64 r = 0; r < some; r++) {
      vf inverse = f_set(inverse_p[r]), dinverse = f_set(inverse_d[r]);
      for (i64 i = 0; i < mp; i += 16) {
        i64 at = (j0 + r) * mp + i;
        if (i < low[r] || i >= high[r]) {
          f_store(dweights + at, f_zero());
          store_operands(weights + at, f_zero()), store_operands(dscores + at, f_zero());
        } else {
          store_operands(weights + at, f_mul(f_load(scores + at), inverse));
          store_operands(dscores + at, f_mul(f_load(dweights + at), dinverse));
        }
      }
    }
  }
  for (i64 i = 0; i < mp; i += 16) {
    float inverse[16];
    f_store(query_d + i, widest[i / 16]);
    block_scales(query_d + i, inverse);
    widest[i / 16] = f_load(inverse);
  }
  for (i64 j = 0; j < n; j += 2)  // pairs of keys, side by side for each query
    for (i64 i = 0; i < mp; i += 16) {
      vi low = operand_words(f_mul(f_load(dweights + j * mp + i), widest[i / 16])), high = i_zero();
      if (j + 1 < n) high = operand_words(f_mul(f_load(dweights + (j + 1) * mp + i), widest[i / 16]));
      i_store(dpairs + (j / 2 * mp + i) * 2, i_or(low, i_left(high, 16)));
    }
}

#endif

typedef struct {
  const Attention *a;
  Split split;
  i64 pieces, room, wide, e;  // keys of the longest example, padded and not; the example
  const bf16 *dout, *out;
  const float *lse;
  bf16 *dq, *dk, *dv;
  i64 dqs, dks;
  float *dpk, *dpv, *scratch;
} Backward;

static size_t backward_bytes(const Backward *p) {
  size_t all = PAD(sizeof(operand) * (size_t)(p->room * p->a->d), 64);
  size_t block = sizeof(float) * KB * QB, query = sizeof(operand) * (size_t)(QB * p->a->d);
  return 3 * all + 4 * block + 5 * query + PAD(sizeof(float) * (size_t)(QB * p->a->d), 64);
}

// one piece of one head's queries: dq, and its share of the gradients of keys and values
static void backward_piece(const void *how, i64 i, void *scratch) {
  const Backward *p = how;
  const Attention *a = p->a;
  i64 d = a->d, e = p->e, start = a->bounds[e], S = a->bounds[e + 1] - start, L = a->P + S, group = a->H / a->K;
  float scale = scale_or_default(a->scale, d);
  size_t all = PAD(sizeof(operand) * (size_t)(p->room * d), 64), block = sizeof(float) * KB * QB;
  size_t query = sizeof(operand) * (size_t)(QB * d);
  char *memory = scratch;
  operand *keys = (operand *)memory, *values = (operand *)(memory + all);  // (L, d)
  operand *packed = (operand *)(memory + 2 * all);                         // keys as [L/2][d][2]
  char *rest = memory + 3 * all;
  float *scores = (float *)rest, *dweights = (float *)(rest + block);  // (KB, QB)
  operand *weights = (operand *)(rest + 2 * block), *dscores = weights + KB * QB;
  operand *dpairs = dscores + KB * QB;  // dscores as [KB/2][QB][2]
  rest += 4 * block;
  operand *rows = (operand *)rest, *qc = (operand *)(rest + query), *oc = (operand *)(rest + 2 * query);
  operand *qr = (operand *)(rest + 3 * query), *or_ = (operand *)(rest + 4 * query);
  float *dqueries = (float *)(rest + 5 * query);  // (QB, d)
  HeadPart piece = piece_at(p->split, i);
  i64 h = piece.head, kh = h / group;
  float *dkeys = p->scratch + i * p->wide * d, *dvalues = p->scratch + (p->pieces + i) * p->wide * d;
  memset(dkeys, 0, sizeof(float) * (size_t)(L * d));
  memset(dvalues, 0, sizeof(float) * (size_t)(L * d));
  float ks = both(a, a->k, a->pk, e, kh, keys), vs = both(a, a->v, a->pv, e, kh, values);
  pack_rows(keys, L, PAD(L, KEY_STEP), d, packed);
  for (i64 b = piece.part * QB; b < S; b += piece.parts * QB) {
    i64 m = S - b < QB ? S - b : QB, mp = PAD(m, 16), Lb = a->P + b + m;
    const bf16 *q = a->q + (start + b) * a->qs + h * d;
    const bf16 *dy = p->dout + ((start + b) * a->H + h) * d, *y = p->out + ((start + b) * a->H + h) * d;
    float delta[QB], norm[QB], os[QB], dscale[QB], key_p[KB], key_d[KB], query_d[QB];
    float qs = scale_of(q, a->qs, m, d, 0.0f);
    to_operands(q, a->qs, m, d, qs, rows);
    pack_columns(rows, m, mp, d, qc);
    pack_rows(rows, m, mp, d, qr);
    for (i64 r = 0; r < mp; r++) {
      float dot = 0;
      if (r < m) {
        const bf16 *dy_row = dy + r * a->H * d, *y_row = y + r * a->H * d;
#pragma omp simd reduction(+ : dot)
        for (i64 j = 0; j < d; j++) dot += bf16_to_f32(dy_row[j]) * bf16_to_f32(y_row[j]);
      }
      delta[r] = dot;
      norm[r] = r < m ? p->lse[h * a->T + start + b + r] : INFINITY;
      os[r] = r < m ? scale_of(dy + r * a->H * d, 0, 1, d, 0.0f) : 1.0f;  // gradients differ much between queries
      dscale[r] = a->P + b + r == first_key(a, a->P + b + r) ? 0.0f : scale;  // one key: its weight is always 1
    }
    for (i64 r = 0; r < m; r++) to_operands(dy + r * a->H * d, 0, 1, d, os[r], rows + r * d);
    pack_columns(rows, m, mp, d, oc);
    pack_rows(rows, m, mp, d, or_);
    i64 lo = first_key(a, a->P + b) / KEY_STEP * KEY_STEP;  // no query of the block sees an earlier key
    for (i64 j = lo; j < Lb; j += KB) {
      i64 n = Lb - j < KB ? Lb - j : KB;
      gemm(n, mp, d, keys + j * d, d, 2, qc, mp, scores, mp, NULL, ks * qs, 0);
      gemm(n, mp, d, values + j * d, d, 2, oc, mp, dweights, mp, NULL, vs, 0);
      if (a->cap > 0.0f) {
        cap_scores(scores, n * mp, scale, a->cap);
        backward_block(1, n, mp, j - a->P - b, a->window, scores, dweights, norm, delta, os, dscale, 1.0f, 1.0f / a->cap,
                       weights, dscores, dpairs, key_p, key_d, query_d);
      } else {
        backward_block(0, n, mp, j - a->P - b, a->window, scores, dweights, norm, delta, os, dscale, scale, 0.0f, weights,
                       dscores, dpairs, key_p, key_d, query_d);
      }
      gemm(n, d, mp, weights, mp, 2, or_, d, dvalues + j * d, d, key_p, 1.0f, 1);
      gemm(n, d, mp, dscores, mp, 2, qr, d, dkeys + j * d, d, key_d, qs, 1);
      gemm(m, d, PAD(n, KEY_STEP), dpairs, 2, 2 * mp, packed + j * d, d, dqueries, d, query_d, ks, j > lo);
    }
    for (i64 r = 0; r < m; r++) {
      bf16 *o = p->dq + (start + b + r) * p->dqs + h * d;
      SIMD for (i64 j = 0; j < d; j++) o[j] = f32_to_bf16(dqueries[r * d + j]);
    }
  }
}

// key j's gradients: the sum of the pieces'
static void backward_sum(const void *how, i64 j, void *scratch) {
  const Backward *p = how;
  const Attention *a = p->a;
  i64 d = a->d, start = a->bounds[p->e], group = a->H / a->K;
  float *sk = scratch, *sv = sk + d;
  for (i64 kh = 0; kh < a->K; kh++) {
    memset(sk, 0, sizeof(float) * 2 * (size_t)d);
    i64 last = first_piece(p->split, (kh + 1) * group);
    for (i64 piece = first_piece(p->split, kh * group); piece < last; piece++) {
      const float *hk = p->scratch + (piece * p->wide + j) * d, *hv = p->scratch + ((p->pieces + piece) * p->wide + j) * d;
      SIMD for (i64 i = 0; i < d; i++) sk[i] += hk[i], sv[i] += hv[i];
    }
    if (j >= a->P) {
      i64 at = (start + j - a->P) * p->dks + kh * d;
      bf16 *ok = p->dk + at, *ov = p->dv + at;
      SIMD for (i64 i = 0; i < d; i++) ok[i] = f32_to_bf16(sk[i]), ov[i] = f32_to_bf16(sv[i]);
    } else if (p->dpk) {
      float *ok = p->dpk + (j * a->K + kh) * d, *ov = p->dpv + (j * a->K + kh) * d;
      SIMD for (i64 i = 0; i < d; i++) ok[i] += sk[i], ov[i] += sv[i];
    }
  }
}

// dout, out (T, H, d) contiguous; dq (T, H, d), dk, dv (T, K, d) with row strides dqs, dks; the prefix's gradients
// (P, K, d) f32 are added to. scratch (2, attention_pieces(H), P + longest example, d) f32.
int attend_backward(const Attention *a, const bf16 *dout, const bf16 *out, const float *lse, bf16 *dq, bf16 *dk,
                    bf16 *dv, i64 dqs, i64 dks, float *dpk, float *dpv, float *scratch) {
  Backward p = {.a = a, .split = split_heads(a->H), .dout = dout, .out = out, .lse = lse, .dq = dq, .dk = dk, .dv = dv,
                .dqs = dqs, .dks = dks, .dpk = dpk, .dpv = dpv, .scratch = scratch};
  p.pieces = first_piece(p.split, a->H), p.wide = a->P + longest_example(a), p.room = PAD(p.wide, 32);
  int failed = 0;
  for (p.e = 0; p.e < a->n && !failed; p.e++) {
    i64 keys = a->P + a->bounds[p.e + 1] - a->bounds[p.e];
    failed = parallel(p.pieces, backward_bytes(&p), backward_piece, &p) ||
             parallel(keys, sizeof(float) * 2 * (size_t)a->d, backward_sum, &p);
  }
  return failed;
}
