// Attention: of one new query a row, for decoding, and of packed rows over a shared prefix, forward and backward; twins
// of rescoldo/engine/attention.py.
//
// The products inside attention are bf16 pairs where the CPU has an instruction for them (AVX512_BF16), float32 where it
// has not: emulated bf16 would be several times slower than either.

#include "simd.h"

// --- attention of one new query a row, for decoding --------------------------------------------------------------------

typedef struct {
  const bf16 *pk, *pv, *k, *v;  // the prefix's, and the row's own, at this key/value head
  i64 P, stride;                // elements from one key to the next
} Keys;

static inline const bf16 *key_at(const bf16 *prefix, const bf16 *own, const Keys *c, i64 j) {
  return j < c->P ? prefix + j * c->stride : own + (j - c->P) * c->stride;
}

static inline float dot_row(const float *query, const bf16 *key, i64 d) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (i64 i = 0; i < d; i++) dot += query[i] * up(key[i]);
  return dot;
}

#ifdef HAS_LANES
// scores and weighted sums of `group` queries at once, head size 16 NV, everything in registers
static inline __attribute__((always_inline)) void score_fixed(const int NV, i64 group, const float *query,
                                                              const Keys *c, i64 first, i64 n, float *scores) {
  for (i64 j = first; j < n; j++) {
    const bf16 *key = key_at(c->pk, c->k, c, j);
    vf part[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) part[v] = h_load(key + 16 * v);
    for (i64 g = 0; g < group; g++) {
      vf sum = f_zero();
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) sum = f_fma(part[v], f_load(query + (g * NV + v) * 16), sum);
      scores[g * n + j] = f_sum(sum);
    }
  }
}

static inline __attribute__((always_inline)) void mix_fixed(const int NV, i64 group, const float *weights,
                                                            const Keys *c, i64 first, i64 n, float *mixed) {
  for (i64 g = 0; g < group; g += 2) {
    int two = g + 1 < group;
    vf a[NV], b[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) a[v] = b[v] = f_zero();
    const float *wa = weights + g * n, *wb = weights + (g + two) * n;
    for (i64 j = first; j < n; j++) {
      const bf16 *value = key_at(c->pv, c->v, c, j);
      vf x = f_set(wa[j]), y = f_set(wb[j]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        vf part = h_load(value + 16 * v);
        a[v] = f_fma(part, x, a[v]);
        b[v] = f_fma(part, y, b[v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
      f_store(mixed + (g * NV + v) * 16, a[v]);
      if (two) f_store(mixed + ((g + 1) * NV + v) * 16, b[v]);
    }
  }
}
#endif

static void score(i64 d, i64 group, const float *query, const Keys *c, i64 first, i64 n, float *scores) {
#ifdef HAS_LANES
  if (d == 64) return score_fixed(4, group, query, c, first, n, scores);
  if (d == 128) return score_fixed(8, group, query, c, first, n, scores);
#endif
  for (i64 j = first; j < n; j++)
    for (i64 g = 0; g < group; g++) scores[g * n + j] = dot_row(query + g * d, key_at(c->pk, c->k, c, j), d);
}

static void mix(i64 d, i64 group, const float *weights, const Keys *c, i64 first, i64 n, float *mixed) {
#ifdef HAS_LANES
  if (d == 64) return mix_fixed(4, group, weights, c, first, n, mixed);
  if (d == 128) return mix_fixed(8, group, weights, c, first, n, mixed);
#endif
  memset(mixed, 0, sizeof(float) * group * d);
  for (i64 j = first; j < n; j++) {
    const bf16 *value = key_at(c->pv, c->v, c, j);
    for (i64 g = 0; g < group; g++) {
      float w = weights[g * n + j], *sum = mixed + g * d;
      SIMD for (i64 i = 0; i < d; i++) sum[i] += w * up(value[i]);
    }
  }
}

// q (B, H, d) with row stride qs; pk, pv (P, K, d); k, v (B, capacity, K, d) valid up to lengths (B,); out (B, H, d).
// Returns 1 if there is no memory.
int attend_cached(const bf16 *q, i64 qs, const bf16 *pk, const bf16 *pv, i64 P, const bf16 *k, const bf16 *v,
                  const i64 *lengths, i64 capacity, i64 B, i64 H, i64 K, i64 d, i64 window, bf16 *out) {
  i64 group = H / K;
  float scale = 1.0f / sqrtf((float)d);
  int failed = 0;
#pragma omp parallel for schedule(dynamic, 1)
  for (i64 item = 0; item < B * K; item++) {
    i64 b = item / K, kh = item % K, n = P + lengths[b];
    i64 first = window > 0 && n > window ? n - window : 0;
    float *scores = malloc(sizeof(float) * group * (n + 2 * d));
    if (!scores) {
#pragma omp atomic write
      failed = 1;
      continue;
    }
    float *query = scores + group * n, *mixed = query + group * d;
    Keys keys = {pk + kh * d, pv + kh * d, k + (b * capacity * K + kh) * d, v + (b * capacity * K + kh) * d, P, K * d};
    const bf16 *heads = q + b * qs + kh * group * d;
    SIMD for (i64 i = 0; i < group * d; i++) query[i] = up(heads[i]) * scale;
    score(d, group, query, &keys, first, n, scores);
    for (i64 g = 0; g < group; g++) {
      float *row = scores + g * n, largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
      for (i64 j = first; j < n; j++) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : sum)
      for (i64 j = first; j < n; j++) {
        row[j] = fast_exp(row[j] - largest);
        sum += row[j];
      }
      float inverse = 1.0f / sum;
      SIMD for (i64 j = first; j < n; j++) row[j] *= inverse;
    }
    mix(d, group, scores, &keys, first, n, mixed);
    bf16 *o = out + (b * H + kh * group) * d;
    SIMD for (i64 i = 0; i < group * d; i++) o[i] = down(mixed[i]);
    free(scores);
  }
  return failed;
}

// --- attention of packed rows over a shared prefix ---------------------------------------------------------------------

#ifdef HAS_LANES

int has_attention(void) { return 1; }

enum { QB = 64, KB = 192 };  // queries, and keys, at a time

// `operand` is what the products take, RUN of them at once: K counts operands. A's element (r, k) stands at
// A + r * rs + k * ks, for RUN = 2 that of the pair k / 2; B is packed as [K / RUN][ldb][RUN].
#if defined(LANES_512) && defined(__AVX512BF16__) && !defined(RESCOLDO_FLOAT_ATTENTION)

typedef bf16 operand;
enum { RUN = 2 };

ALWAYS void tile(const int MR, const int NV, i64 K2, const bf16 *A, i64 rs, i64 ks, const bf16 *B, i64 ldb, float *C,
                 i64 ldc, int add) {
  vf acc[12][2];
#pragma GCC unroll 12
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[r][v] = add ? f_load(C + r * ldc + v * 16) : f_zero();
  for (i64 k = 0; k < K2; k++) {
    __m512bh b[2];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) b[v] = (__m512bh)_mm512_loadu_si512(B + (k * ldb + v * 16) * 2);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      int32_t pair;
      memcpy(&pair, A + r * rs + k * ks, 4);
      __m512bh a = (__m512bh)i_set(pair);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) f_store(C + r * ldc + v * 16, acc[r][v]);
}

// M any, N a multiple of 16
static void gemm(i64 M, i64 N, i64 K, const bf16 *A, i64 rs, i64 ks, const bf16 *B, i64 ldb, float *C, i64 ldc,
                 int add) {
  for (i64 n = 0; n < N;) {
    int nv = N - n >= 32 ? 2 : 1;
    const bf16 *b = B + n * 2;
    float *c = C + n;
    i64 m = 0;
#define TILES(MR)                                                                        \
  for (; m + MR <= M; m += MR) {                                                         \
    if (nv == 2) tile(MR, 2, K / 2, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);  \
    else tile(MR, 1, K / 2, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);          \
  }
    TILES(12) TILES(4) TILES(1)
#undef TILES
    n += nv * 16;
  }
}

ALWAYS void store_operands(operand *to, vf x) { h_store(to, x); }

// rows (n, d) with stride as a product's A: as they are
static const operand *rows_as(const bf16 *x, i64 stride, i64 n, i64 d, operand *buffer, i64 *rs) {
  (void)n, (void)d, (void)buffer;
  *rs = stride;
  return x;
}

// rows (n, d) with stride -> packed [d/2][np][2]: the operand whose columns are the rows
static void pack_columns(const bf16 *x, i64 stride, i64 n, i64 np, i64 d, i64 at, operand *packed) {
  for (i64 r = 0; r < n; r++)
    for (i64 i = 0; i < d / 2; i++) memcpy(packed + (i * np + at + r) * 2, x + r * stride + 2 * i, 4);
}

// rows (n, d) with stride -> packed [n/2][d][2] from row `at` on: the operand whose rows they are
static void pack_rows(const bf16 *x, i64 stride, i64 n, i64 d, i64 at, operand *packed) {
  i64 r = 0;
  for (; r < n; r++) {
    i64 to = at + r;
    const bf16 *row = x + r * stride, *next = row + stride;
    if ((to & 1) == 0 && r + 1 < n) {
      uint32_t *pairs = (uint32_t *)(packed + to * d);
      SIMD for (i64 i = 0; i < d; i++) pairs[i] = (uint32_t)row[i] | (uint32_t)next[i] << 16;
      r++;
    } else {
      bf16 *p = packed + (to / 2) * d * 2 + (to & 1);
      for (i64 i = 0; i < d; i++) p[2 * i] = row[i];
    }
  }
}

#else

typedef float operand;
enum { RUN = 1 };

static void gemm(i64 M, i64 N, i64 K, const float *A, i64 rs, i64 ks, const float *B, i64 ldb, float *C, i64 ldc,
                 int add) {
  gemm_f32(M, N, K, A, rs, ks, B, ldb, C, ldc, add);
}

ALWAYS void store_operands(operand *to, vf x) { f_store(to, x); }

// rows (n, d) with stride as a product's A: (n, d) float in `buffer`
static const operand *rows_as(const bf16 *x, i64 stride, i64 n, i64 d, operand *buffer, i64 *rs) {
  *rs = d;
  for (i64 r = 0; r < n; r++)
    for (i64 i = 0; i < d; i += 16) f_store(buffer + r * d + i, h_load(x + r * stride + i));
  return buffer;
}

// rows (n, d) with stride -> (d, np): the operand whose columns are the rows, 16 x 16 at a time
static void pack_columns(const bf16 *x, i64 stride, i64 n, i64 np, i64 d, i64 at, operand *packed) {
  for (i64 r = 0; r < n; r += 16) {
    i64 m = n - r < 16 ? n - r : 16;
    for (i64 i = 0; i < d; i += 16) {
      float square[16][16];
      for (i64 k = 0; k < m; k++) f_store(square[k], h_load(x + (r + k) * stride + i));
      for (i64 j = 0; j < 16; j++) {
        float *to = packed + (i + j) * np + at + r;
        for (i64 k = 0; k < m; k++) to[k] = square[k][j];
      }
    }
  }
}

// rows (n, d) with stride -> (n, d) from row `at` on: the operand whose rows they are
static void pack_rows(const bf16 *x, i64 stride, i64 n, i64 d, i64 at, operand *packed) {
  i64 rs;
  rows_as(x, stride, n, d, packed + at * d, &rs);
}

#endif

typedef struct {
  i64 T, H, K, d, P, n;       // rows, heads, key/value heads, head size, prefix, examples
  i64 qs, ks, ps;             // row strides of q; of k and v; of the prefix's k and v
  i64 window;                 // 0: none
  const i64 *bounds;          // (n + 1,)
  const bf16 *q, *k, *v, *pk, *pv;
} Attention;

static inline i64 first_key(const Attention *a, i64 at) { return a->window > 0 && at >= a->window ? at - a->window + 1 : 0; }

// out (T, H, d) contiguous, lse (H, T)
int attend(const Attention *a, bf16 *out, float *lse) {
  i64 d = a->d, group = a->H / a->K, longest = 0;
  int failed = 0;
  for (i64 e = 0; e < a->n; e++) {
    i64 s = a->bounds[e + 1] - a->bounds[e];
    longest = s > longest ? s : longest;
  }
  i64 room = PAD(a->P + longest, 32);
  float scale = 1.0f / sqrtf((float)d);
#pragma omp parallel
  {
    operand *keys = aligned_alloc(64, PAD(sizeof(operand) * room * d, 64));
    operand *values = aligned_alloc(64, PAD(sizeof(operand) * room * d, 64));
    float *scores = aligned_alloc(64, sizeof(float) * QB * room);
    operand *weights = aligned_alloc(64, sizeof(operand) * QB * room);
    operand *queries = aligned_alloc(64, sizeof(operand) * QB * PAD(d, 32));
    float *mixed = aligned_alloc(64, sizeof(float) * QB * PAD(d, 16));
    if (!keys || !values || !scores || !weights || !queries || !mixed) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic, 1) collapse(2)
      for (i64 e = 0; e < a->n; e++)
        for (i64 h = 0; h < a->H; h++) {
          i64 start = a->bounds[e], S = a->bounds[e + 1] - start, L = a->P + S, Lp = PAD(L, 32), kh = h / group;
          memset(keys, 0, sizeof(operand) * Lp * d);
          memset(values, 0, sizeof(operand) * Lp * d);
          if (a->P) {
            pack_columns(a->pk + kh * d, a->ps, a->P, Lp, d, 0, keys);
            pack_rows(a->pv + kh * d, a->ps, a->P, d, 0, values);
          }
          pack_columns(a->k + start * a->ks + kh * d, a->ks, S, Lp, d, a->P, keys);
          pack_rows(a->v + start * a->ks + kh * d, a->ks, S, d, a->P, values);
          for (i64 b = 0; b < S; b += QB) {
            i64 m = S - b < QB ? S - b : QB, Lb = PAD(a->P + b + m, 32);
            i64 rs;
            const operand *q = rows_as(a->q + (start + b) * a->qs + h * d, a->qs, m, d, queries, &rs);
            gemm(m, Lb, d, q, rs, RUN, keys, Lp, scores, Lb, 0);
            float inverse[QB];
            for (i64 i = 0; i < m; i++) {
              i64 at = a->P + b + i, lo = first_key(a, at), hi = at + 1;
              float *row = scores + i * Lb, largest = -INFINITY, sum = 0;
              operand *w = weights + i * Lb;
#pragma omp simd reduction(max : largest)
              for (i64 j = lo; j < hi; j++) largest = row[j] > largest ? row[j] : largest;
              vf total = f_zero(), top = f_set(largest), factor = f_set(scale);
              for (i64 j = 0; j < Lb; j += 16) {  // weights of keys outside lo..hi-1 are 0
                vf x = f_exp(f_mul(f_sub(f_load(row + j), top), factor));
                x = f_within(x, j, lo, hi);
                total = f_add(total, x);
                store_operands(w + j, x);
              }
              sum = f_sum(total);
              lse[h * a->T + start + b + i] = largest * scale + logf(sum);
              inverse[i] = 1.0f / sum;
            }
            gemm(m, d, Lb, weights, Lb, RUN, values, d, mixed, d, 0);
            for (i64 i = 0; i < m; i++) {
              bf16 *o = out + ((start + b + i) * a->H + h) * d;
              SIMD for (i64 j = 0; j < d; j++) o[j] = down(mixed[i * d + j] * inverse[i]);
            }
          }
        }
    }
    free(keys), free(values), free(scores), free(weights), free(queries), free(mixed);
  }
  return failed;
}

// What one block of queries needs: weights P = exp(S - lse), dS = P (dP - delta) scale, all transposed: (keys, queries).
// Key j of the block is seen by the queries from..to-1; columns beyond the last query have norm infinity: weight 0.
static void backward_block(i64 n, i64 mp, i64 first_from, i64 window, const float *scores, const float *dweights,
                           const float *norm, const float *delta, float scale, operand *weights, operand *dscores,
                           operand *dpairs) {
  const vf factor = f_set(scale);
  for (i64 j = 0; j < n; j += 2) {
    for (i64 i = 0; i < mp; i += 16) {
      vi pair = i_zero();
      for (int odd = 0; odd < 2 && j + odd < n; odd++) {
        i64 row = (j + odd) * mp + i, from = first_from + j + odd, to = window > 0 ? from + window : mp;
        vf x = f_fms(f_load(scores + row), factor, f_load(norm + i));
        x = f_within(f_exp(x), i, from, to);
        vf d = f_sub(f_load(dweights + row), f_load(delta + i));
        d = f_mul(f_mul(x, d), factor);
        store_operands(weights + row, x);
        store_operands(dscores + row, d);
        if (RUN == 2) {
          vi wide = i_words(h_from(d));
          pair = i_or(pair, odd ? i_left(wide, 16) : wide);
        }
      }
      if (RUN == 2) i_store(dpairs + (j / 2 * mp + i) * 2, pair);
    }
  }
}

// dout, out (T, H, d) contiguous; dq (T, H, d), dk, dv (T, K, d) with row strides dqs, dks; the prefix's gradients
// (P, K, d) f32 are added to. scratch (2, H, P + longest example, d) f32.
int attend_backward(const Attention *a, const bf16 *dout, const bf16 *out, const float *lse, bf16 *dq, bf16 *dk,
                    bf16 *dv, i64 dqs, i64 dks, float *dpk, float *dpv, float *scratch) {
  i64 d = a->d, group = a->H / a->K, longest = 0;
  int failed = 0;
  for (i64 e = 0; e < a->n; e++) {
    i64 s = a->bounds[e + 1] - a->bounds[e];
    longest = s > longest ? s : longest;
  }
  i64 room = PAD(a->P + longest, 32), wide = a->P + longest;
  float scale = 1.0f / sqrtf((float)d);
  for (i64 e = 0; e < a->n && !failed; e++) {
    i64 start = a->bounds[e], S = a->bounds[e + 1] - start, L = a->P + S;
#pragma omp parallel
    {
      size_t all = PAD(sizeof(operand) * room * d, 64), block = sizeof(float) * KB * QB, query = sizeof(operand) * QB * d;
      char *memory = aligned_alloc(64, 3 * all + 5 * block + 4 * query + PAD(sizeof(float) * QB * d, 64));
      operand *keys = (operand *)memory, *values = (operand *)(memory + all);  // (L, d)
      operand *packed = (operand *)(memory + 2 * all);                         // keys as [L/RUN][d][RUN]
      char *rest = memory + 3 * all;
      float *scores = (float *)rest, *dweights = (float *)(rest + block);  // (KB, QB)
      operand *weights = (operand *)(rest + 2 * block), *dscores = (operand *)(rest + 3 * block);
      operand *dpairs = (operand *)(rest + 4 * block);  // dscores as [KB/2][QB][2], where RUN is 2
      rest += 5 * block;
      operand *qc = (operand *)rest, *oc = (operand *)(rest + query), *qr = (operand *)(rest + 2 * query);
      operand *or_ = (operand *)(rest + 3 * query);
      float *dqueries = (float *)(rest + 4 * query);  // (QB, d)
      if (!memory) {
#pragma omp atomic write
        failed = 1;
      }
#pragma omp barrier
      if (!failed) {
#pragma omp for schedule(dynamic, 1)
        for (i64 h = 0; h < a->H; h++) {
          i64 kh = h / group;
          float *dkeys = scratch + h * wide * d, *dvalues = scratch + (a->H + h) * wide * d;
          memset(dkeys, 0, sizeof(float) * L * d);
          memset(dvalues, 0, sizeof(float) * L * d);
          memset(packed + (L - 1) / 2 * 2 * d, 0, sizeof(operand) * 2 * d);
          for (i64 part = 0; part < 2; part++) {
            i64 n = part ? S : a->P, at = part ? a->P : 0, stride = part ? a->ks : a->ps, copied;
            const bf16 *k = part ? a->k + start * a->ks : a->pk, *v = part ? a->v + start * a->ks : a->pv;
            if (!n) continue;
            pack_rows(k + kh * d, stride, n, d, at, packed);
            const operand *from = rows_as(k + kh * d, stride, n, d, keys + at * d, &copied);
            if (from != keys + at * d)
              for (i64 j = 0; j < n; j++) memcpy(keys + (at + j) * d, from + j * copied, sizeof(operand) * d);
            from = rows_as(v + kh * d, stride, n, d, values + at * d, &copied);
            if (from != values + at * d)
              for (i64 j = 0; j < n; j++) memcpy(values + (at + j) * d, from + j * copied, sizeof(operand) * d);
          }
          for (i64 b = 0; b < S; b += QB) {
            i64 m = S - b < QB ? S - b : QB, mp = PAD(m, 16), Lb = a->P + b + m;
            const bf16 *q = a->q + (start + b) * a->qs + h * d;
            const bf16 *dy = dout + ((start + b) * a->H + h) * d, *y = out + ((start + b) * a->H + h) * d;
            float delta[QB], norm[QB];
            memset(qc, 0, 4 * query);
            pack_columns(q, a->qs, m, mp, d, 0, qc);
            pack_columns(dy, a->H * d, m, mp, d, 0, oc);
            pack_rows(q, a->qs, m, d, 0, qr);
            pack_rows(dy, a->H * d, m, d, 0, or_);
            for (i64 i = 0; i < mp; i++) {
              float dot = 0;
              if (i < m) {
#pragma omp simd reduction(+ : dot)
                for (i64 j = 0; j < d; j++) dot += up(dy[i * a->H * d + j]) * up(y[i * a->H * d + j]);
              }
              delta[i] = dot;
              norm[i] = i < m ? lse[h * a->T + start + b + i] : INFINITY;
            }
            i64 lo = first_key(a, a->P + b) / 2 * 2;  // no query of the block sees an earlier key
            for (i64 j = lo; j < Lb; j += KB) {
              i64 n = Lb - j < KB ? Lb - j : KB;
              gemm(n, mp, d, keys + j * d, d, RUN, qc, mp, scores, mp, 0);
              gemm(n, mp, d, values + j * d, d, RUN, oc, mp, dweights, mp, 0);
              backward_block(n, mp, j - a->P - b, a->window, scores, dweights, norm, delta, scale, weights, dscores,
                             dpairs);
              gemm(n, d, mp, weights, mp, RUN, or_, d, dvalues + j * d, d, 1);
              gemm(n, d, mp, dscores, mp, RUN, qr, d, dkeys + j * d, d, 1);
              gemm(m, d, PAD(n, RUN), RUN == 2 ? dpairs : dscores, RUN, RUN * mp, packed + j * d, d, dqueries, d,
                   j > lo);
            }
            for (i64 i = 0; i < m; i++) {
              bf16 *o = dq + (start + b + i) * dqs + h * d;
              SIMD for (i64 j = 0; j < d; j++) o[j] = down(dqueries[i * d + j]);
            }
          }
        }
#pragma omp for schedule(static) collapse(2)
        for (i64 j = 0; j < L; j++)
          for (i64 kh = 0; kh < a->K; kh++) {
            float sk[d], sv[d];
            memset(sk, 0, sizeof(sk)), memset(sv, 0, sizeof(sv));
            for (i64 h = kh * group; h < (kh + 1) * group; h++) {
              const float *hk = scratch + (h * wide + j) * d, *hv = scratch + ((a->H + h) * wide + j) * d;
              SIMD for (i64 i = 0; i < d; i++) sk[i] += hk[i], sv[i] += hv[i];
            }
            if (j >= a->P) {
              bf16 *ok = dk + (start + j - a->P) * dks + kh * d, *ov = dv + (start + j - a->P) * dks + kh * d;
              SIMD for (i64 i = 0; i < d; i++) ok[i] = down(sk[i]), ov[i] = down(sv[i]);
            } else if (dpk) {
              float *ok = dpk + (j * a->K + kh) * d, *ov = dpv + (j * a->K + kh) * d;
              SIMD for (i64 i = 0; i < d; i++) ok[i] += sk[i], ov[i] += sv[i];
            }
          }
      }
      free(memory);
    }
  }
  return failed;
}

#else

int has_attention(void) { return 0; }

#endif
