// The small operations between the matrix products, fused; twins of rescoldo/engine/ops.py.
//
// Plain C that a compiler vectorizes by itself, but for 4-bit unpacking, which uses AVX-512 where the machine has it. All
// tensors are contiguous unless a stride is passed.

#include "common.h"

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

// gate_up (T, 2F) becomes its gradient, for da (T, F)
void silu_mul_backward(bf16 *gate_up, const bf16 *da, i64 T, i64 F) {
  ROWS for (i64 t = 0; t < T; t++) {
    bf16 *g = gate_up + t * 2 * F, *u = g + F;
    const bf16 *d = da + t * F;
    SIMD for (i64 i = 0; i < F; i++) {
      float x = up(g[i]), y = up(d[i]);
      float s = 1.0f / (1.0f + fast_exp(-x));
      float silu = x * s;
      g[i] = down(y * up(u[i]) * (s + silu * (1.0f - s)));
      u[i] = down(y * silu);
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
