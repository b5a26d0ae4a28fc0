// What the kernels' callers see: the structures that Python fills (native.py mirrors them; `kernels_layout` lets it check
// that both agree) and the functions. All tensors are contiguous unless a stride is passed. A function that returns int
// returns 1 where there is no memory left, 0 otherwise.

#ifndef RESCOLDO_KERNELS_H
#define RESCOLDO_KERNELS_H

#include "common.h"

typedef struct {
  const i64 *rows;  // (T,) what each row's mask is drawn from; NULL: no dropout
  i64 key, threshold;
  float scale;
} Mask;

// One matrix in blocks of a few bits. `order`: row n of the weight is row order[n] of the data; NULL: row n.
typedef struct {
  i64 kind, rows, row_bytes;  // kind: an index into blocks.c's formats
  const uint8_t *data;
  const i64 *order;
  const bf16 *scales;  // nf4's, (rows, K/64)
} QuantizedMatrix;

// Matrices that share an input, stacked by rows; as int8: round(w · channel_scale[k] · inverse[n])
typedef struct {
  i64 parts, N, K;  // K is a multiple of 32
  const QuantizedMatrix *part;
  const float *channel_scale, *inverse;  // (K,), (N,)
} LazyInt8;

typedef struct {
  i64 from, to;    // columns of x
  const float *b;  // (to - from, np) float
  i64 n, np;       // outputs, and padded to a multiple of 16
  i64 at;          // first column of z
} Segment;

typedef struct {
  i64 T, K, Kp, group, groups;
  const bf16 *x;               // (T, K)
  const float *channel_scale;  // (K,) or NULL
  void *q;                     // (T, Kp) int8 or int16, or NULL: not quantized
  float *scale;                // (T, groups)
  int32_t *sum;                // (T, groups), NULL for int16
  i64 segments, Z;             // small products, columns of z
  const Segment *segment;
  float *z;                    // (T, Z)
  i64 n_outliers, outliers_at;
  const i64 *outliers;         // columns of x copied to z from column outliers_at on
  Mask mask;                   // of the small products' input
} Int8Input;

typedef struct {
  i64 T, V, Vp, group, groups, passes;  // passes: 2: with what the first quantization has lost
  const bf16 *logits;          // (T, V), lost where q is in the same memory
  const i64 *targets;          // (T,)
  const float *channel_scale;  // (V,)
  void *q;                     // (T, passes, Vp) int8 or int16; the logits' memory, or none of it
  float *scale;                // (T, passes, groups)
  int32_t *sum;                // (T, passes, groups), NULL for int16
  float *loss;                 // (T,)
  float weight;
} Int8Entropy;

typedef struct {
  i64 T, K, N;           // rows, inputs padded to 16, outputs
  i64 group, groups;     // inputs under one scale of a row
  const void *q;         // (T, K) int8 or int16
  const float *scale;    // (T, groups)
  const int32_t *sum;    // (T, groups), NULL for int16
  const uint8_t *w;      // panels; forward (N/16, K/4, 16, 4), backward (K/16, N/4, 16, 4)
  const LazyInt8 *lazy;  // or the weight's blocks, unpacked piece by piece in cache
  i64 backward;
  const float *channel_scale;  // (N,) what each output is multiplied by
  // the low-rank terms: y[t, n] += sum_s z[t, at[n/16] + s] own[n/16, s, n%16], s < n_own, and the same for z from
  // `common_at` on, s < n_common, and `common`; the sum times the mask
  const float *z, *own, *common;
  i64 Z, n_own, n_common, common_at;
  const int32_t *at;     // (N/16,), -1: none of its own
  Mask mask;
  const bf16 *bias;      // (N,) or NULL
  bf16 *y;               // (T, N)
} Int8Product;

typedef struct {
  i64 T, H, K, d, P, n;       // rows, heads, key/value heads, head size, prefix, examples
  i64 qs, ks, ps;             // row strides of q; of k and v; of the prefix's k and v
  i64 window;                 // 0: none
  const i64 *bounds;          // (n + 1,)
  const bf16 *q, *k, *v, *pk, *pv;
  float scale, cap;           // of scores: 0: 1/sqrt(d); cap · tanh(score / cap), 0: none
} Attention;

#pragma GCC visibility push(default)  // what follows is what the library exports, and nothing else

// sizes and offsets of the structures above, in native.py's order; their number
const i64 *kernels_layout(i64 *n);
// to be called before all others; not 0: the system refuses what the instruction set needs
int kernels_start(void);
// how many threads the calling thread's next operations use
void kernels_set_threads(i64 n);
// the largest value of an int8 product's quantized inputs
int kernels_qmax(void);

// elementwise.c
void rms_norm(const float *h, const bf16 *weight, i64 T, i64 D, float eps, bf16 *x, bf16 *normed, float *rstd);
void rms_norm_backward(const bf16 *dy, const bf16 *normed, const float *rstd, const bf16 *weight, i64 T, i64 D,
                       float *dh);
void add_rows(float *h, const bf16 *y, i64 n);
void silu_mul(const bf16 *gate_up, i64 T, i64 F, bf16 *a);
void silu_mul_backward(bf16 *gate_up, const bf16 *da, i64 T, i64 F);
void gelu_mul(const bf16 *gate_up, i64 T, i64 F, bf16 *a);
void gelu_mul_backward(bf16 *gate_up, const bf16 *da, i64 T, i64 F);
void rotate(bf16 *x, const float *cos, const float *sin, i64 T, i64 heads, i64 d, i64 stride, float sign);
void dropout(const bf16 *x, const i64 *rows, uint32_t key, int threshold, float scale, i64 T, i64 D, int add, bf16 *y);
void nf4_pack(const bf16 *weight, i64 out, i64 in, uint8_t *packed, bf16 *scales);
void cross_entropy(bf16 *logits, const i64 *targets, i64 n, i64 V, float weight, float *loss);

// int8.c
int int8_pack(const bf16 *weight, const float *channel_scale, i64 N, i64 K, uint8_t *panels, float *scale);
int int8_input(const Int8Input *p);
void int8_residual(bf16 *x, const float *channel_scale, i64 T, i64 K, i64 Kp, i64 group, i64 groups, const void *q,
                   const float *scale);
// cross_entropy, its gradient times channel_scale quantized as int8_input does it
int int8_entropy(const Int8Entropy *p);
int int8_product(const Int8Product *p);
int outer_rows(const float *z, i64 Z, i64 R, const bf16 *x, i64 stride, i64 T, i64 C, const Mask *mask, float factor,
               int transposed, float *out);

// blocks.c
void blocks_decode(const LazyInt8 *w, i64 n0, i64 n1, float *out);
int blocks_measure(const LazyInt8 *w, float *widest, float *largest, const i64 *pick, i64 n_pick, float *picked);
void int8_unpack(const LazyInt8 *w, uint8_t *panels);
// rows n..n+15 (those beyond N are zero), columns k0..k1-1 (multiples of 32) -> to ((k1-k0)/4, 16, 4), each plus 128
void unpack_panel(const LazyInt8 *w, i64 n, i64 k0, i64 k1, uint8_t *to);

// attention.c
int attend_cached(const bf16 *q, i64 qs, const bf16 *pk, const bf16 *pv, i64 P, const bf16 *k, const bf16 *v,
                  const i64 *lengths, i64 capacity, i64 B, i64 H, i64 K, i64 d, i64 window, float scale, float cap,
                  bf16 *out, float *found);
i64 attention_pieces(i64 H);
int attend(const Attention *a, bf16 *out, float *lse);
int attend_backward(const Attention *a, const bf16 *dout, const bf16 *out, const float *lse, bf16 *dq, bf16 *dk,
                    bf16 *dv, i64 dqs, i64 dks, float *dpk, float *dpv, float *scratch);

#pragma GCC visibility pop

#endif
