// The small operations between the matrix products, fused; the same functions as TorchKernels' methods. In lanes what takes the
// most time, or rounds to bf16, for which some instruction sets have an instruction; else plain C that a compiler vectorizes.

#include "lanes.h"
#include "threads.h"

// --- norms, residual --------------------------------------------------------------------------------------------------

typedef struct {
  const float *h;
  const bf16 *weight;
  i64 D;
  float eps;
  bf16 *x, *normed;
  float *rstd;
} Norm;

static void norm_row(const void *how, i64 t, void *scratch) {
  const Norm *p = how;
  const i64 D = p->D;
  const float *row = p->h + t * D;
  const bf16 *weight = p->weight;
  bf16 *x = p->x + t * D, *normed = p->normed + t * D;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (i64 i = 0; i < D; i++) sum += row[i] * row[i];
  float r = 1.0f / sqrtf(sum / D + p->eps);
  p->rstd[t] = r;
  for (i64 i = 0; i < D; i += 16) {
    const i64 n = D - i;
    const vf y = f_from_bf16(f_to_bf16(f_mul(f_load_some(row + i, n), f_set(r))));
    h_store_some(normed + i, n, y);
    h_store_some(x + i, n, f_mul(y, h_load_some(weight + i, n)));
  }
  (void)scratch;
}

// h (T, D) f32 -> normed = h / rms (T, D), x = normed * weight (T, D), rstd (T,)
void rms_norm(const float *h, const bf16 *weight, i64 T, i64 D, float eps, bf16 *x, bf16 *normed, float *rstd) {
  Norm p = {h, weight, D, eps, x, normed, rstd};
  parallel(T, 0, norm_row, &p);
}

typedef struct {
  const bf16 *dy, *normed, *weight;
  const float *rstd;
  i64 D;
  float *dh;
} NormBackward;

static void norm_backward_row(const void *how, i64 t, void *scratch) {
  const NormBackward *p = how;
  const i64 D = p->D;
  const bf16 *g = p->dy + t * D, *n = p->normed + t * D, *weight = p->weight;
  float *out = p->dh + t * D, dot = 0;
#pragma omp simd reduction(+ : dot)
  for (i64 i = 0; i < D; i++) dot += bf16_to_f32(g[i]) * bf16_to_f32(weight[i]) * bf16_to_f32(n[i]);
  dot /= D;
  float r = p->rstd[t];
  SIMD for (i64 i = 0; i < D; i++) out[i] += r * (bf16_to_f32(g[i]) * bf16_to_f32(weight[i]) - bf16_to_f32(n[i]) * dot);
  (void)scratch;
}

// dh (T, D) f32 += what dy (T, D) sends through normed * weight
void rms_norm_backward(const bf16 *dy, const bf16 *normed, const float *rstd, const bf16 *weight, i64 T, i64 D,
                       float *dh) {
  NormBackward p = {dy, normed, weight, rstd, D, dh};
  parallel(T, 0, norm_backward_row, &p);
}

enum { SPAN = 4096 };  // numbers of a piece

typedef struct {
  float *h;
  const bf16 *y;
  i64 n;
} Sum;

static void add_span(const void *how, i64 b, void *scratch) {
  const Sum *p = how;
  float *h = p->h;
  const bf16 *y = p->y;
  i64 end = (b + 1) * SPAN < p->n ? (b + 1) * SPAN : p->n;
  SIMD for (i64 i = b * SPAN; i < end; i++) h[i] += bf16_to_f32(y[i]);
  (void)scratch;
}

// h (n,) f32 += y (n,)
void add_rows(float *h, const bf16 *y, i64 n) {
  Sum p = {h, y, n};
  parallel((n + SPAN - 1) / SPAN, 0, add_span, &p);
}

// --- MLP --------------------------------------------------------------------------------------------------------------

typedef struct {
  const bf16 *gate_up, *da;
  bf16 *out;
  i64 F;
} Gated;

// x times a sigmoid, and its derivative
typedef struct {
  vf value, slope;
} Gate;

ALWAYS vf sigmoid(vf x) {
  const vf one = f_set(1.0f), negative = f_sub(f_zero(), f_max(x, f_set(-88.0f)));  // beyond, f_exp overflows
  return f_div(one, f_add(one, f_exp(negative)));
}

ALWAYS Gate silu(vf x) {
  vf s = sigmoid(x), value = f_mul(x, s);
  return (Gate){value, f_fma(value, f_sub(f_set(1.0f), s), s)};
}

// the tanh approximation of GELU (arXiv 1606.08415): x sigmoid(2u), u = sqrt(2/π) (x + 0.044715 x³)
ALWAYS Gate gelu(vf x) {
  const vf one = f_set(1.0f), twice = f_set(1.5957691216f);
  vf z = f_sub(f_zero(), f_max(f_sub(f_zero(), f_max(x, f_set(-30.0f))), f_set(-30.0f)));  // beyond 30 it is 1 or 0
  vf square = f_mul(z, z), s = sigmoid(f_mul(twice, f_fma(f_mul(square, z), f_set(0.044715f), z)));
  vf inner = f_mul(twice, f_fma(square, f_set(0.134145f), one));
  return (Gate){f_mul(x, s), f_fma(f_mul(f_mul(z, s), f_sub(one, s)), inner, s)};
}

enum { AHEAD = 512 };  // numbers: a row's two halves are streams of their own, in pages that end within them

#define GATED(NAME)                                                                                            \
  static void NAME##_mul_row(const void *how, i64 t, void *scratch) {                                          \
    const Gated *p = how;                                                                                      \
    const bf16 *g = p->gate_up + t * 2 * p->F, *u = g + p->F;                                                  \
    for (i64 i = 0; i < p->F; i += 16) {                                                                       \
      const i64 n = p->F - i;                                                                                  \
      __builtin_prefetch(g + i + AHEAD), __builtin_prefetch(u + i + AHEAD);                                    \
      h_store_some(p->out + t * p->F + i, n, f_mul(NAME(h_load_some(g + i, n)).value, h_load_some(u + i, n))); \
    }                                                                                                          \
    (void)scratch;                                                                                             \
  }                                                                                                            \
  void NAME##_mul(const bf16 *gate_up, i64 T, i64 F, bf16 *a) {                                                \
    Gated p = {gate_up, NULL, a, F};                                                                           \
    parallel(T, 0, NAME##_mul_row, &p);                                                                        \
  }                                                                                                            \
  static void NAME##_mul_backward_row(const void *how, i64 t, void *scratch) {                                 \
    const Gated *p = how;                                                                                      \
    bf16 *g = p->out + t * 2 * p->F, *u = g + p->F;                                                            \
    for (i64 i = 0; i < p->F; i += 16) {                                                                       \
      const i64 n = p->F - i;                                                                                  \
      __builtin_prefetch(g + i + AHEAD), __builtin_prefetch(u + i + AHEAD);                                    \
      const vf y = h_load_some(p->da + t * p->F + i, n);                                                       \
      const Gate gate = NAME(h_load_some(g + i, n));                                                           \
      h_store_some(g + i, n, f_mul(f_mul(y, h_load_some(u + i, n)), gate.slope));                              \
      h_store_some(u + i, n, f_mul(y, gate.value));                                                            \
    }                                                                                                          \
    (void)scratch;                                                                                             \
  }                                                                                                            \
  void NAME##_mul_backward(bf16 *gate_up, const bf16 *da, i64 T, i64 F) {                                      \
    Gated p = {NULL, da, gate_up, F};                                                                          \
    parallel(T, 0, NAME##_mul_backward_row, &p);                                                               \
  }

// NAME_mul: gate_up (T, 2F) -> a = NAME(gate) * up (T, F). NAME_mul_backward: gate_up becomes its gradient, for da (T, F).
GATED(silu)
GATED(gelu)

// --- rotary embedding -------------------------------------------------------------------------------------------------

typedef struct {
  bf16 *x;
  const float *cos, *sin;
  i64 heads, d, stride;
  float sign;
} Rotation;

static void rotate_row(const void *how, i64 t, void *scratch) {
  const Rotation *p = how;
  const i64 half = p->d / 2;
  const float *c = p->cos + t * half, *s = p->sin + t * half, sign = p->sign;
  for (i64 h = 0; h < p->heads; h++) {
    bf16 *x = p->x + t * p->stride + h * p->d;
    for (i64 i = 0; i < half; i += 16) {
      const i64 n = half - i;
      const vf a = h_load_some(x + i, n), b = h_load_some(x + half + i, n), cosine = f_load_some(c + i, n);
      const vf sine = f_mul(f_load_some(s + i, n), f_set(sign));
      h_store_some(x + i, n, f_fms(a, cosine, f_mul(b, sine)));
      h_store_some(x + half + i, n, f_fma(b, cosine, f_mul(a, sine)));
    }
  }
  (void)scratch;
}

// x (T, heads, d) with `stride` elements from row to row, in place; cos, sin (T, d/2); sign -1: the inverse
void rotate(bf16 *x, const float *cos, const float *sin, i64 T, i64 heads, i64 d, i64 stride, float sign) {
  Rotation p = {x, cos, sin, heads, d, stride, sign};
  parallel(T, 0, rotate_row, &p);
}

// --- dropout ----------------------------------------------------------------------------------------------------------

typedef struct {
  const bf16 *x;
  const i64 *rows;
  uint32_t key;
  int threshold, add;
  float scale;
  i64 D;
  bf16 *y;
} Drop;

static void dropout_row(const void *how, i64 t, void *scratch) {
  const Drop *p = how;
  const i64 D = p->D;
  const int threshold = p->threshold;
  const float scale = p->scale;
  uint32_t row = mix32((uint32_t)p->rows[t] ^ p->key), random[16];
  const uint8_t *byte = (const uint8_t *)random;
  const bf16 *in = p->x + t * D;
  bf16 *out = p->y + t * D;
  for (i64 i = 0; i < D; i += 64) {
    draw64(row, i / 4, random);
    int n = D - i < 64 ? (int)(D - i) : 64;
    if (p->add) {
      SIMD for (int j = 0; j < n; j++) {
        float kept = byte[j] >= threshold ? scale : 0.0f;
        bf16 dropped = f32_to_bf16(bf16_to_f32(in[i + j]) * kept);
        out[i + j] = f32_to_bf16(bf16_to_f32(out[i + j]) + bf16_to_f32(dropped));
      }
    } else {
      SIMD for (int j = 0; j < n; j++) {
        float kept = byte[j] >= threshold ? scale : 0.0f;
        out[i + j] = f32_to_bf16(bf16_to_f32(in[i + j]) * kept);
      }
    }
  }
  (void)scratch;
}

// y = x * keep * scale, or y += that where `add`
void dropout(const bf16 *x, const i64 *rows, uint32_t key, int threshold, float scale, i64 T, i64 D, int add, bf16 *y) {
  Drop p = {x, rows, key, threshold, add, scale, D, y};
  parallel(T, 0, dropout_row, &p);
}

// --- nf4 --------------------------------------------------------------------------------------------------------------

typedef struct {
  const bf16 *weight;
  i64 in;
  uint8_t *packed;
  bf16 *scales;
} Nf4;

static void nf4_row(const void *how, i64 o, void *scratch) {
  const Nf4 *p = how;
  const i64 in = p->in;
  float edges[15];
  for (int i = 0; i < 15; i++) edges[i] = (NF4_LEVELS[i] + NF4_LEVELS[i + 1]) / 2;
  for (i64 b = 0; b < in / 64; b++) {
    const bf16 *w = p->weight + o * in + b * 64;
    float largest = 0;
    uint8_t code[64];
    for (int i = 0; i < 64; i++) largest = fabsf(bf16_to_f32(w[i])) > largest ? fabsf(bf16_to_f32(w[i])) : largest;
    bf16 s = f32_to_bf16(largest);
    p->scales[o * (in / 64) + b] = s;
    float divisor = bf16_to_f32(s) > 1e-30f ? bf16_to_f32(s) : 1e-30f;
    SIMD for (int i = 0; i < 64; i++) {
      float x = bf16_to_f32(w[i]) / divisor;
      int c = 0;
      for (int e = 0; e < 15; e++) c += x > edges[e];
      code[i] = (uint8_t)c;
    }
    uint8_t *to = p->packed + o * (in / 2) + b * 32;
    for (int i = 0; i < 32; i++) to[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
  }
  (void)scratch;
}

// weight (out, in) bf16, in a multiple of 64 -> packed (out, in/2), scales (out, in/64)
void nf4_pack(const bf16 *weight, i64 out, i64 in, uint8_t *packed, bf16 *scales) {
  Nf4 p = {weight, in, packed, scales};
  parallel(out, 0, nf4_row, &p);
}

// --- loss -------------------------------------------------------------------------------------------------------------

typedef struct {
  bf16 *logits;
  const i64 *targets;
  i64 V;
  float weight, *loss;
} Entropy;

static void entropy_row(const void *how, i64 t, void *scratch) {
  const Entropy *p = how;
  const i64 V = p->V, target = p->targets[t];
  bf16 *row = p->logits + t * V;
  float lse = log_sum_exp(row, V);
  p->loss[t] = lse - bf16_to_f32(row[target]);
  softmax_gradient(row, 0, V, target, lse, p->weight, row);
  (void)scratch;
}

// logits (n, V) become weight * (softmax - onehot); loss (n,) each row's
void cross_entropy(bf16 *logits, const i64 *targets, i64 n, i64 V, float weight, float *loss) {
  Entropy p = {logits, targets, V, weight, loss};
  parallel(n, 0, entropy_row, &p);
}
