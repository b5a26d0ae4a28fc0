// The small operations between the matrix products, fused; twins of rescoldo/engine/ops.py and attention.py.
//
// Plain C that a compiler vectorizes by itself, but for attention and 4-bit unpacking, which use AVX-512 where the
// machine has it. All tensors are contiguous unless a stride is passed; bf16 values travel as uint16_t. Work is split
// over OpenMP threads by rows or heads, each writing its own, so results do not depend on timing.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef uint16_t bf16;
typedef int64_t i64;

#define ROWS _Pragma("omp parallel for schedule(static)")
#define SIMD _Pragma("omp simd")

static inline float up(bf16 x) {
  union { uint32_t u; float f; } v = {.u = (uint32_t)x << 16};
  return v.f;
}

static inline bf16 down(float x) {  // to nearest even; not-a-number stays one
  union { float f; uint32_t u; } v = {.f = x};
  uint32_t rounded = (v.u + 0x7FFF + ((v.u >> 16) & 1)) >> 16;
  uint32_t nan = (v.u >> 16) | 0x40;
  return (bf16)(((v.u & 0x7FFFFFFF) > 0x7F800000) ? nan : rounded);
}

static inline float fast_exp(float x) {  // relative error below 3e-7; 0 below -87
  x = x > 88.0f ? 88.0f : x;
  float y = x < -87.0f ? -87.0f : x;
  float n = rintf(y * 1.44269504f);
  float r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  union { int32_t i; float f; } s = {.i = ((int32_t)n + 127) << 23};
  return x < -87.0f ? 0.0f : p * s.f;
}

// --- norms, residual --------------------------------------------------------------------------------------------------

// h (T, D) f32 -> normed = h / rms (T, D), x = normed * weight (T, D), rstd (T,)
void rms_norm(const float *h, const bf16 *weight, i64 T, i64 D, float eps, bf16 *x, bf16 *normed, float *rstd) {
  ROWS for (i64 t = 0; t < T; t++) {
    const float *row = h + t * D;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < D; i++) sum += row[i] * row[i];
    float r = 1.0f / sqrtf(sum / D + eps);
    rstd[t] = r;
    SIMD for (i64 i = 0; i < D; i++) {
      bf16 n = down(row[i] * r);
      normed[t * D + i] = n;
      x[t * D + i] = down(up(n) * up(weight[i]));
    }
  }
}

// dh (T, D) f32 += what dy (T, D) sends through normed * weight
void rms_norm_backward(const bf16 *dy, const bf16 *normed, const float *rstd, const bf16 *weight, i64 T, i64 D,
                       float *dh) {
  ROWS for (i64 t = 0; t < T; t++) {
    const bf16 *g = dy + t * D, *n = normed + t * D;
    float *out = dh + t * D, dot = 0;
#pragma omp simd reduction(+ : dot)
    for (i64 i = 0; i < D; i++) dot += up(g[i]) * up(weight[i]) * up(n[i]);
    dot /= D;
    float r = rstd[t];
    SIMD for (i64 i = 0; i < D; i++) out[i] += r * (up(g[i]) * up(weight[i]) - up(n[i]) * dot);
  }
}

// h (n,) f32 += y (n,)
void add_rows(float *h, const bf16 *y, i64 n) {
  ROWS for (i64 b = 0; b < (n + 4095) / 4096; b++) {
    i64 end = (b + 1) * 4096 < n ? (b + 1) * 4096 : n;
    SIMD for (i64 i = b * 4096; i < end; i++) h[i] += up(y[i]);
  }
}

// --- MLP --------------------------------------------------------------------------------------------------------------

// gate_up (T, 2F) -> a = silu(gate) * up (T, F)
void silu_mul(const bf16 *gate_up, i64 T, i64 F, bf16 *a) {
  ROWS for (i64 t = 0; t < T; t++) {
    const bf16 *g = gate_up + t * 2 * F, *u = g + F;
    SIMD for (i64 i = 0; i < F; i++) {
      float x = up(g[i]);
      a[t * F + i] = down(x / (1.0f + fast_exp(-x)) * up(u[i]));
    }
  }
}

// da (T, F) -> dgate_up (T, 2F)
void silu_mul_backward(const bf16 *gate_up, const bf16 *da, i64 T, i64 F, bf16 *dgate_up) {
  ROWS for (i64 t = 0; t < T; t++) {
    const bf16 *g = gate_up + t * 2 * F, *u = g + F, *d = da + t * F;
    bf16 *dg = dgate_up + t * 2 * F, *du = dg + F;
    SIMD for (i64 i = 0; i < F; i++) {
      float x = up(g[i]), y = up(d[i]);
      float s = 1.0f / (1.0f + fast_exp(-x));
      float silu = x * s;
      dg[i] = down(y * up(u[i]) * (s + silu * (1.0f - s)));
      du[i] = down(y * silu);
    }
  }
}

// --- rotary embedding -------------------------------------------------------------------------------------------------

// x (T, heads, d) with `stride` elements from row to row, in place; cos, sin (T, d/2); sign -1: the inverse
void rotate(bf16 *x, const float *cos, const float *sin, i64 T, i64 heads, i64 d, i64 stride, float sign) {
  i64 half = d / 2;
  ROWS for (i64 t = 0; t < T; t++) {
    const float *c = cos + t * half, *s = sin + t * half;
    for (i64 h = 0; h < heads; h++) {
      bf16 *p = x + t * stride + h * d;
      SIMD for (i64 i = 0; i < half; i++) {
        float a = up(p[i]), b = up(p[i + half]), si = sign * s[i];
        p[i] = down(a * c[i] - b * si);
        p[i + half] = down(b * c[i] + a * si);
      }
    }
  }
}

// --- dropout ----------------------------------------------------------------------------------------------------------

static inline uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

static inline void draw64(uint32_t row, i64 word, uint32_t *random) {  // 64 random bytes from 16 words
  SIMD for (int j = 0; j < 16; j++) random[j] = mix32(row + (uint32_t)(word + j) * 0x9E3779B9u);
}

// y = x * keep * scale, or y += that where `add`
void dropout(const bf16 *x, const i64 *rows, uint32_t key, int threshold, float scale, i64 T, i64 D, int add, bf16 *y) {
  ROWS for (i64 t = 0; t < T; t++) {
    uint32_t row = mix32((uint32_t)rows[t] ^ key), random[16];
    const uint8_t *byte = (const uint8_t *)random;
    const bf16 *in = x + t * D;
    bf16 *out = y + t * D;
    for (i64 i = 0; i < D; i += 64) {
      draw64(row, i / 4, random);
      int n = D - i < 64 ? (int)(D - i) : 64;
      if (add) {
        SIMD for (int j = 0; j < n; j++) {
          float kept = byte[j] >= threshold ? scale : 0.0f;
          out[i + j] = down(up(out[i + j]) + up(down(up(in[i + j]) * kept)));
        }
      } else {
        SIMD for (int j = 0; j < n; j++) {
          float kept = byte[j] >= threshold ? scale : 0.0f;
          out[i + j] = down(up(in[i + j]) * kept);
        }
      }
    }
  }
}

// --- int8 -------------------------------------------------------------------------------------------------------------

// x (T, D) [* columns (D,)] -> q int8, scale (T,)
void quantize_rows(const bf16 *x, const float *columns, i64 T, i64 D, int8_t *q, float *scale) {
  ROWS for (i64 t = 0; t < T; t++) {
    const bf16 *in = x + t * D;
    float largest = 0;
    if (columns) {
#pragma omp simd reduction(max : largest)
      for (i64 i = 0; i < D; i++) {
        float v = fabsf(up(in[i]) * columns[i]);
        largest = v > largest ? v : largest;
      }
    } else {
#pragma omp simd reduction(max : largest)
      for (i64 i = 0; i < D; i++) {
        float v = fabsf(up(in[i]));
        largest = v > largest ? v : largest;
      }
    }
    scale[t] = largest / 127.0f;
    float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    if (columns) {
      SIMD for (i64 i = 0; i < D; i++) q[t * D + i] = (int8_t)(int32_t)rintf(up(in[i]) * columns[i] * inverse);
    } else {
      SIMD for (i64 i = 0; i < D; i++) q[t * D + i] = (int8_t)(int32_t)rintf(up(in[i]) * inverse);
    }
  }
}

// products (T, N) int32 * rows (T,) * columns (N,) [+ side (T, N)] -> y
void dequantize(const int32_t *products, const float *rows, const float *columns, const bf16 *side, i64 T, i64 N,
                bf16 *y) {
  ROWS for (i64 t = 0; t < T; t++) {
    float r = rows[t];
    const int32_t *p = products + t * N;
    if (side) {
      SIMD for (i64 i = 0; i < N; i++) y[t * N + i] = down((float)p[i] * r * columns[i] + up(side[t * N + i]));
    } else {
      SIMD for (i64 i = 0; i < N; i++) y[t * N + i] = down((float)p[i] * r * columns[i]);
    }
  }
}

// --- nf4 --------------------------------------------------------------------------------------------------------------

static const float NF4[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                              -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                              0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                              0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// weight (out, in) bf16, in a multiple of 64 -> packed (out, in/2), scales (out, in/64)
void nf4_pack(const bf16 *weight, i64 out, i64 in, uint8_t *packed, bf16 *scales) {
  float edges[15];
  for (int i = 0; i < 15; i++) edges[i] = (NF4[i] + NF4[i + 1]) / 2;
  ROWS for (i64 o = 0; o < out; o++) {
    for (i64 b = 0; b < in / 64; b++) {
      const bf16 *w = weight + o * in + b * 64;
      float largest = 0;
      uint8_t code[64];
      for (int i = 0; i < 64; i++) largest = fabsf(up(w[i])) > largest ? fabsf(up(w[i])) : largest;
      bf16 s = down(largest);
      scales[o * (in / 64) + b] = s;
      float divisor = up(s) > 1e-30f ? up(s) : 1e-30f;
      SIMD for (int i = 0; i < 64; i++) {
        float x = up(w[i]) / divisor;
        int c = 0;
        for (int e = 0; e < 15; e++) c += x > edges[e];
        code[i] = (uint8_t)c;
      }
      for (int i = 0; i < 32; i++) packed[o * (in / 2) + b * 32 + i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
    }
  }
}

// -> weight (out, in) bf16
void nf4_unpack(const uint8_t *packed, const bf16 *scales, i64 out, i64 in, bf16 *weight) {
  ROWS for (i64 o = 0; o < out; o++) {
    for (i64 b = 0; b < in / 64; b++) {
      float s = up(scales[o * (in / 64) + b]);
      bf16 level[32];
      for (int i = 0; i < 16; i++) level[i] = level[i + 16] = down(NF4[i] * s);
      const uint8_t *p = packed + o * (in / 2) + b * 32;
      bf16 *w = weight + o * in + b * 64;
#ifdef __AVX512BW__
      __m512i table = _mm512_loadu_si512(level);
      for (int half = 0; half < 2; half++) {
        __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p + half * 16)));
        // a byte becomes two 16-bit indices: low nibble first
        __m512i index = _mm512_or_si512(_mm512_and_si512(bytes, _mm512_set1_epi32(15)),
                                        _mm512_slli_epi32(_mm512_srli_epi32(bytes, 4), 16));
        _mm512_storeu_si512(w + half * 32, _mm512_permutexvar_epi16(index, table));
      }
#else
      for (int i = 0; i < 32; i++) {
        w[2 * i] = level[p[i] & 15];
        w[2 * i + 1] = level[p[i] >> 4];
      }
#endif
    }
  }
}

// --- loss -------------------------------------------------------------------------------------------------------------

// logits (n, V) become weight * (softmax - onehot); loss (n,) each row's
void cross_entropy(bf16 *logits, const i64 *targets, i64 n, i64 V, float weight, float *loss) {
  ROWS for (i64 t = 0; t < n; t++) {
    bf16 *row = logits + t * V;
    float largest = -INFINITY, sum = 0, hit = up(row[targets[t]]);
#pragma omp simd reduction(max : largest)
    for (i64 i = 0; i < V; i++) largest = up(row[i]) > largest ? up(row[i]) : largest;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < V; i++) sum += fast_exp(up(row[i]) - largest);
    float lse = largest + logf(sum);
    loss[t] = lse - hit;
    SIMD for (i64 i = 0; i < V; i++) row[i] = down(weight * fast_exp(up(row[i]) - lse));
    row[targets[t]] = down(weight * (expf(hit - lse) - 1.0f));
  }
}

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

#ifdef __AVX512F__
static inline __m512 load_up(const bf16 *x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

// scores and weighted sums of `group` queries at once, head size 16 NV, everything in registers
static inline __attribute__((always_inline)) void score_fixed(const int NV, i64 group, const float *query,
                                                              const Keys *c, i64 first, i64 n, float *scores) {
  for (i64 j = first; j < n; j++) {
    const bf16 *key = key_at(c->pk, c->k, c, j);
    __m512 part[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) part[v] = load_up(key + 16 * v);
    for (i64 g = 0; g < group; g++) {
      __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) sum = _mm512_fmadd_ps(part[v], _mm512_loadu_ps(query + (g * NV + v) * 16), sum);
      scores[g * n + j] = _mm512_reduce_add_ps(sum);
    }
  }
}

static inline __attribute__((always_inline)) void mix_fixed(const int NV, i64 group, const float *weights,
                                                            const Keys *c, i64 first, i64 n, float *mixed) {
  for (i64 g = 0; g < group; g += 2) {
    int two = g + 1 < group;
    __m512 a[NV], b[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) a[v] = b[v] = _mm512_setzero_ps();
    const float *wa = weights + g * n, *wb = weights + (g + two) * n;
    for (i64 j = first; j < n; j++) {
      const bf16 *value = key_at(c->pv, c->v, c, j);
      __m512 x = _mm512_set1_ps(wa[j]), y = _mm512_set1_ps(wb[j]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        __m512 part = load_up(value + 16 * v);
        a[v] = _mm512_fmadd_ps(part, x, a[v]);
        b[v] = _mm512_fmadd_ps(part, y, b[v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
      _mm512_storeu_ps(mixed + (g * NV + v) * 16, a[v]);
      if (two) _mm512_storeu_ps(mixed + ((g + 1) * NV + v) * 16, b[v]);
    }
  }
}
#endif

static void score(i64 d, i64 group, const float *query, const Keys *c, i64 first, i64 n, float *scores) {
#ifdef __AVX512F__
  if (d == 64) return score_fixed(4, group, query, c, first, n, scores);
  if (d == 128) return score_fixed(8, group, query, c, first, n, scores);
#endif
  for (i64 j = first; j < n; j++)
    for (i64 g = 0; g < group; g++) scores[g * n + j] = dot_row(query + g * d, key_at(c->pk, c->k, c, j), d);
}

static void mix(i64 d, i64 group, const float *weights, const Keys *c, i64 first, i64 n, float *mixed) {
#ifdef __AVX512F__
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

#ifdef __AVX512BF16__

int has_attention(void) { return 1; }

enum { QB = 64, KB = 192 };  // queries, and keys, at a time

static inline __m512 exp512(__m512 x) {  // fast_exp, 16 at a time
  __m512 y = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), y);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), _mm512_set1_ps(1.0f));
  __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), tiny, _mm512_setzero_ps());
}

#define PAD(n, to) (((n) + (to) - 1) / (to) * (to))

// C[MR, 16 NV] (+)= A[MR, 2 K2] * B. Pair k of A's row r stands at A + r * rs + k * ks: ks is 2 where A is row-major.
// B is packed as [K2][ldb][2].
static inline __attribute__((always_inline)) void tile(const int MR, const int NV, i64 K2, const bf16 *A, i64 rs, i64 ks,
                                                       const bf16 *B, i64 ldb, float *C, i64 ldc, int add) {
  __m512 acc[12][2];
#pragma GCC unroll 12
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) acc[r][v] = add ? _mm512_loadu_ps(C + r * ldc + v * 16) : _mm512_setzero_ps();
  for (i64 k = 0; k < K2; k++) {
    __m512bh b[2];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) b[v] = (__m512bh)_mm512_loadu_si512(B + (k * ldb + v * 16) * 2);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      int32_t pair;
      memcpy(&pair, A + r * rs + k * ks, 4);
      __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) _mm512_storeu_ps(C + r * ldc + v * 16, acc[r][v]);
}

// M any, N a multiple of 16
static void gemm(i64 M, i64 N, i64 K2, const bf16 *A, i64 rs, i64 ks, const bf16 *B, i64 ldb, float *C, i64 ldc,
                 int add) {
  for (i64 n = 0; n < N;) {
    int nv = N - n >= 32 ? 2 : 1;
    const bf16 *b = B + n * 2;
    float *c = C + n;
    i64 m = 0;
#define RUN(MR)                                                                       \
  for (; m + MR <= M; m += MR) {                                                      \
    if (nv == 2) tile(MR, 2, K2, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);  \
    else tile(MR, 1, K2, A + m * rs, rs, ks, b, ldb, c + m * ldc, ldc, add);          \
  }
    RUN(12) RUN(4) RUN(1)
#undef RUN
    n += nv * 16;
  }
}

// rows (n, d) with stride -> packed [d/2][np][2]: the operand whose columns are the rows; columns n..np-1 are zero
static void pack_columns(const bf16 *x, i64 stride, i64 n, i64 np, i64 d, i64 at, bf16 *packed) {
  for (i64 r = 0; r < n; r++)
    for (i64 i = 0; i < d / 2; i++) memcpy(packed + (i * np + at + r) * 2, x + r * stride + 2 * i, 4);
}

// rows (n, d) with stride -> packed [n/2][d][2] from row `at` on: the operand whose rows they are
static void pack_rows(const bf16 *x, i64 stride, i64 n, i64 d, i64 at, bf16 *packed) {
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
    bf16 *keys = aligned_alloc(64, PAD(sizeof(bf16) * room * d, 64));
    bf16 *values = aligned_alloc(64, PAD(sizeof(bf16) * room * d, 64));
    float *scores = aligned_alloc(64, sizeof(float) * QB * room);
    bf16 *weights = aligned_alloc(64, sizeof(bf16) * QB * room);
    float *mixed = aligned_alloc(64, sizeof(float) * QB * PAD(d, 16));
    if (!keys || !values || !scores || !weights || !mixed) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic, 1) collapse(2)
      for (i64 e = 0; e < a->n; e++)
        for (i64 h = 0; h < a->H; h++) {
          i64 start = a->bounds[e], S = a->bounds[e + 1] - start, L = a->P + S, Lp = PAD(L, 32), kh = h / group;
          memset(keys, 0, sizeof(bf16) * Lp * d);
          memset(values, 0, sizeof(bf16) * Lp * d);
          if (a->P) {
            pack_columns(a->pk + kh * d, a->ps, a->P, Lp, d, 0, keys);
            pack_rows(a->pv + kh * d, a->ps, a->P, d, 0, values);
          }
          pack_columns(a->k + start * a->ks + kh * d, a->ks, S, Lp, d, a->P, keys);
          pack_rows(a->v + start * a->ks + kh * d, a->ks, S, d, a->P, values);
          for (i64 b = 0; b < S; b += QB) {
            i64 m = S - b < QB ? S - b : QB, Lb = PAD(a->P + b + m, 32);
            const bf16 *q = a->q + (start + b) * a->qs + h * d;
            gemm(m, Lb, d / 2, q, a->qs, 2, keys, Lp, scores, Lb, 0);
            float inverse[QB];
            for (i64 i = 0; i < m; i++) {
              i64 at = a->P + b + i, lo = first_key(a, at), hi = at + 1;
              float *row = scores + i * Lb, largest = -INFINITY, sum = 0;
              bf16 *w = weights + i * Lb;
#pragma omp simd reduction(max : largest)
              for (i64 j = lo; j < hi; j++) largest = row[j] > largest ? row[j] : largest;
              __m512 total = _mm512_setzero_ps(), top = _mm512_set1_ps(largest), factor = _mm512_set1_ps(scale);
              const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
              for (i64 j = 0; j < Lb; j += 16) {  // weights of keys outside lo..hi-1 are 0
                __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32((int)j));
                __mmask16 seen = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32((int)lo)) &
                                 _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32((int)hi));
                __m512 x = exp512(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + j), top), factor));
                x = _mm512_maskz_mov_ps(seen, x);
                total = _mm512_add_ps(total, x);
                _mm256_storeu_si256((__m256i *)(w + j), (__m256i)_mm512_cvtneps_pbh(x));
              }
              sum = _mm512_reduce_add_ps(total);
              lse[h * a->T + start + b + i] = largest * scale + logf(sum);
              inverse[i] = 1.0f / sum;
            }
            gemm(m, d, Lb / 2, weights, Lb, 2, values, d, mixed, d, 0);
            for (i64 i = 0; i < m; i++) {
              bf16 *o = out + ((start + b + i) * a->H + h) * d;
              SIMD for (i64 j = 0; j < d; j++) o[j] = down(mixed[i * d + j] * inverse[i]);
            }
          }
        }
    }
    free(keys), free(values), free(scores), free(weights), free(mixed);
  }
  return failed;
}

// What one block of queries needs: weights P = exp(S - lse), dS = P (dP - delta) scale, all transposed: (keys, queries).
// Key j of the block is seen by the queries from..to-1; columns beyond the last query have norm infinity: weight 0.
static void backward_block(i64 n, i64 mp, i64 first_from, i64 window, const float *scores, const float *dweights,
                           const float *norm, const float *delta, float scale, bf16 *weights, bf16 *dscores,
                           bf16 *dpairs) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512 s512 = _mm512_set1_ps(scale);
  for (i64 j = 0; j < n; j += 2) {
    for (i64 i = 0; i < mp; i += 16) {
      __m512i pair = _mm512_setzero_si512();
      for (int odd = 0; odd < 2 && j + odd < n; odd++) {
        i64 row = (j + odd) * mp + i, from = first_from + j + odd, to = window > 0 ? from + window : mp;
        __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32((int)i));
        __mmask16 seen = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32((int)from)) &
                         _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32((int)to));
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + row), s512, _mm512_loadu_ps(norm + i));
        x = _mm512_maskz_mov_ps(seen, exp512(x));
        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(dweights + row), _mm512_loadu_ps(delta + i));
        d = _mm512_mul_ps(_mm512_mul_ps(x, d), s512);
        __m256i w = (__m256i)_mm512_cvtneps_pbh(x), ds = (__m256i)_mm512_cvtneps_pbh(d);
        _mm256_storeu_si256((__m256i *)(weights + row), w);
        _mm256_storeu_si256((__m256i *)(dscores + row), ds);
        __m512i wide = _mm512_cvtepu16_epi32(ds);
        pair = _mm512_or_si512(pair, odd ? _mm512_slli_epi32(wide, 16) : wide);
      }
      _mm512_storeu_si512(dpairs + (j / 2 * mp + i) * 2, pair);
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
      size_t all = PAD(sizeof(bf16) * room * d, 64), block = sizeof(float) * KB * QB, query = sizeof(bf16) * QB * d;
      char *memory = aligned_alloc(64, 3 * all + 2 * block + 3 * block / 2 + 4 * query + PAD(sizeof(float) * QB * d, 64));
      bf16 *keys = (bf16 *)memory, *values = (bf16 *)(memory + all);  // (L, d)
      bf16 *pairs = (bf16 *)(memory + 2 * all);                       // keys as [L/2][d][2]
      char *rest = memory + 3 * all;
      float *scores = (float *)rest, *dweights = (float *)(rest + block);  // (KB, QB)
      bf16 *weights = (bf16 *)(rest + 2 * block), *dscores = (bf16 *)(rest + 2 * block + block / 2);
      bf16 *dpairs = (bf16 *)(rest + 3 * block);  // dscores as [KB/2][QB][2]
      rest += 2 * block + 3 * block / 2;
      bf16 *qc = (bf16 *)rest, *oc = (bf16 *)(rest + query), *qr = (bf16 *)(rest + 2 * query);
      bf16 *or_ = (bf16 *)(rest + 3 * query);
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
          for (i64 j = 0; j < L; j++) {
            const bf16 *key = j < a->P ? a->pk + j * a->ps + kh * d : a->k + (start + j - a->P) * a->ks + kh * d;
            const bf16 *value = j < a->P ? a->pv + j * a->ps + kh * d : a->v + (start + j - a->P) * a->ks + kh * d;
            memcpy(keys + j * d, key, sizeof(bf16) * d);
            memcpy(values + j * d, value, sizeof(bf16) * d);
          }
          memset(keys + L * d, 0, sizeof(bf16) * (room - L) * d);
          pack_rows(keys, d, PAD(L, 2), d, 0, pairs);
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
              gemm(n, mp, d / 2, keys + j * d, d, 2, qc, mp, scores, mp, 0);
              gemm(n, mp, d / 2, values + j * d, d, 2, oc, mp, dweights, mp, 0);
              backward_block(n, mp, j - a->P - b, a->window, scores, dweights, norm, delta, scale, weights, dscores,
                             dpairs);
              gemm(n, d, mp / 2, weights, mp, 2, or_, d, dvalues + j * d, d, 1);
              gemm(n, d, mp / 2, dscores, mp, 2, qr, d, dkeys + j * d, d, 1);
              gemm(m, d, PAD(n, 2) / 2, dpairs, 2, 2 * mp, pairs + j * d, d, dqueries, d, j > lo);
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
