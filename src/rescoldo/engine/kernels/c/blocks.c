// Blocks of a few bits a weight (ggml's formats, QLoRA's nf4) to numbers, 32 at a time, and on to int8 panels.
//
// Formats as in ggml-common.h and ggml-quants.c of ggml (github.com/ggml-org/ggml): d, m are half floats.

#include "lanes.h"
#include "threads.h"

enum { NF4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K };

typedef struct { vf a, b; } Floats;  // numbers 0..15 and 16..31

ALWAYS float half_at(const uint8_t *p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return half_to_f32(h);
}

ALWAYS vi bytes(const uint8_t *p) { return i_bytes(b_load(p)); }
ALWAYS vi low4(vi x) { return i_and(x, i_set(15)); }
ALWAYS vf scaled(vi q, int less, float d) {
  return f_mul(f_of(i_sub(q, i_set(less))), f_set(d));
}
ALWAYS vf shifted(vi q, float d, float m) {
  return f_add(f_mul(f_of(q), f_set(d)), f_set(m));
}

// scale and minimum of sub-block j of a K block: 6 bits each, in 12 bytes
ALWAYS void scale_min(const uint8_t *s, i64 j, int *scale, int *least) {
  if (j < 4) *scale = s[j] & 63, *least = s[j + 4] & 63;
  else *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, *least = s[j + 4] >> 4 | (s[j] >> 6) << 4;
}

// the i-th 32 weights of a row
ALWAYS Floats decode32(const i64 kind, const uint8_t *row, const bf16 *scales, i64 i) {
  switch (kind) {
    case NF4: {
      vb first, second;
      b_nibbles(b_load(row + i * 16), &first, &second);
      vf table = f_mul(f_load(NF4_LEVELS), f_set(bf16_to_f32(scales[i / 2])));
      return (Floats){f_lookup(table, i_bytes(first)), f_lookup(table, i_bytes(second))};
    }
    case Q4_0: {
      const uint8_t *p = row + i * 18;
      float d = half_at(p);
      vi q = bytes(p + 2);
      return (Floats){scaled(low4(q), 8, d), scaled(i_right(q, 4), 8, d)};
    }
    case Q4_1: {
      const uint8_t *p = row + i * 20;
      float d = half_at(p), m = half_at(p + 2);
      vi q = bytes(p + 4);
      return (Floats){shifted(low4(q), d, m), shifted(i_right(q, 4), d, m)};
    }
    case Q5_0:
    case Q5_1: {
      const uint8_t *p = row + i * (kind == Q5_0 ? 22 : 24);
      float d = half_at(p), m = kind == Q5_0 ? 0.0f : half_at(p + 2);
      uint32_t high;
      p += kind == Q5_0 ? 2 : 4;
      memcpy(&high, p, 4);
      vi q = bytes(p + 4);
      vi a = i_add_where(low4(q), (uint16_t)high, 16), b = i_add_where(i_right(q, 4), (uint16_t)(high >> 16), 16);
      if (kind == Q5_0) return (Floats){scaled(a, 16, d), scaled(b, 16, d)};
      return (Floats){shifted(a, d, m), shifted(b, d, m)};
    }
    case Q8_0: {
      const uint8_t *p = row + i * 34;
      float d = half_at(p);
      return (Floats){scaled(i_signed_bytes(b_load(p + 2)), 0, d),
                      scaled(i_signed_bytes(b_load(p + 18)), 0, d)};
    }
    case Q4_K:
    case Q5_K: {
      const uint8_t *p = row + i / 8 * (kind == Q4_K ? 144 : 176);
      i64 j = i % 8;
      int scale, least;
      scale_min(p + 4, j, &scale, &least);
      float d = half_at(p) * (float)scale, m = -(half_at(p + 2) * (float)least);
      const uint8_t *qs = p + (kind == Q4_K ? 16 : 48) + j / 2 * 32;
      vi a = bytes(qs), b = bytes(qs + 16);
      a = j % 2 ? i_right(a, 4) : low4(a), b = j % 2 ? i_right(b, 4) : low4(b);
      if (kind == Q5_K) {
        a = i_add_if(a, bytes(p + 16), 1 << j, 16);
        b = i_add_if(b, bytes(p + 32), 1 << j, 16);
      }
      return (Floats){shifted(a, d, m), shifted(b, d, m)};
    }
    default: {  // Q6_K
      const uint8_t *p = row + i / 8 * 210;
      i64 half = i % 8 / 4, j = i % 4;
      const uint8_t *ql = p + half * 64 + j % 2 * 32, *qh = p + 128 + half * 32;
      const int8_t *scale = (const int8_t *)p + 192 + half * 8 + j * 2;
      float d = half_at(p + 208);
      vi a = bytes(ql), b = bytes(ql + 16), two = i_set(3);
      a = j / 2 ? i_right(a, 4) : low4(a), b = j / 2 ? i_right(b, 4) : low4(b);
      vi ha = i_and(i_right(bytes(qh), 2 * j), two);
      vi hb = i_and(i_right(bytes(qh + 16), 2 * j), two);
      a = i_or(a, i_left(ha, 4)), b = i_or(b, i_left(hb, 4));
      return (Floats){scaled(a, 32, d * (float)scale[0]), scaled(b, 32, d * (float)scale[1])};
    }
  }
}

#define BY_KIND(kind, CALL)                                                                                       \
  switch (kind) {                                                                                                 \
    case NF4: CALL(NF4); break; case Q4_0: CALL(Q4_0); break; case Q4_1: CALL(Q4_1); break;                       \
    case Q5_0: CALL(Q5_0); break; case Q5_1: CALL(Q5_1); break; case Q8_0: CALL(Q8_0); break;                     \
    case Q4_K: CALL(Q4_K); break; case Q5_K: CALL(Q5_K); break; default: CALL(Q6_K); break;                       \
  }

typedef struct { i64 kind; const uint8_t *row; const bf16 *scales; } Row;

static Row row_of(const LazyInt8 *w, i64 n) {
  const QuantizedMatrix *b = w->part;
  while (n >= b->rows) n -= b->rows, b++;
  i64 at = b->order ? b->order[n] : n;
  return (Row){b->kind, b->data + at * b->row_bytes, b->scales ? b->scales + at * (w->K / 64) : NULL};
}

// row n of the weight -> (K,) f32
static void decode_row(const LazyInt8 *w, i64 n, float *to) {
  Row r = row_of(w, n);
#define CALL(KIND)                                             \
  for (i64 i = 0; i < w->K / 32; i++) {                        \
    Floats f = decode32(KIND, r.row, r.scales, i);             \
    f_store(to + i * 32, f.a), f_store(to + i * 32 + 16, f.b); \
  }
  BY_KIND(r.kind, CALL)
#undef CALL
}

typedef struct {
  const LazyInt8 *w;
  i64 n0;
  float *out;
} Decoding;

static void decode_piece(const void *how, i64 i, void *scratch) {
  const Decoding *p = how;
  decode_row(p->w, p->n0 + i, p->out + i * p->w->K);
  (void)scratch;
}

// rows n0..n1-1 -> out (n1-n0, K) f32
void blocks_decode(const LazyInt8 *w, i64 n0, i64 n1, float *out) {
  Decoding p = {w, n0, out};
  parallel(n1 - n0, 0, decode_piece, &p);
}

typedef struct {
  const LazyInt8 *w;
  float *widest, *largest;  // widest (parts, K)
  const i64 *pick;
  i64 n_pick, parts;
  float *picked;
} Measure;

static void measure_part(const void *how, i64 part, void *scratch) {
  const Measure *p = how;
  const LazyInt8 *w = p->w;
  i64 K = w->K;
  float *row = scratch, *wide = p->widest ? p->widest + part * K : NULL;
  for (i64 n = part * w->N / p->parts; n < (part + 1) * w->N / p->parts; n++) {
    decode_row(w, n, row);
    if (wide)
      for (i64 k = 0; k < K; k += 16) f_store(wide + k, f_max(f_load(wide + k), f_abs(f_load(row + k))));
    if (p->largest) {
      vf top = f_zero();
      for (i64 k = 0; k < K; k += 16) top = f_max(top, f_abs(f_mul(f_load(row + k), f_load(w->channel_scale + k))));
      p->largest[n] = f_reduce_max(top);
    }
    for (i64 e = 0; e < p->n_pick; e++) p->picked[n * p->n_pick + e] = row[p->pick[e]];
  }
}

// widest (K,): each column's largest magnitude, if not NULL. largest (N,): each row's after its product with
// channel_scale, if not NULL; picked (N, n): the columns `pick` (n,) as they are.
int blocks_measure(const LazyInt8 *w, float *widest, float *largest, const i64 *pick, i64 n_pick, float *picked) {
  i64 parts = w->N < 64 ? w->N : 64, K = w->K;
  float *wide = widest ? calloc((size_t)(parts * K), sizeof(float)) : NULL;
  if (widest && !wide) return 1;
  Measure p = {w, wide, largest, pick, n_pick, parts, picked};
  int failed = parallel(parts, sizeof(float) * (size_t)K, measure_part, &p);
  for (i64 part = 0; part < parts && widest; part++)
    for (i64 k = 0; k < K; k++) widest[k] = wide[part * K + k] > widest[k] ? wide[part * K + k] : widest[k];
  free(wide);
  return failed;
}

ALWAYS vb quantized(vf w, vf channel_scale, vf inverse) {
  return to_bytes(i_of(f_mul(f_mul(w, channel_scale), inverse)));
}

void unpack_panel(const LazyInt8 *w, i64 n, i64 k0, i64 k1, uint8_t *to) {
  _Alignas(64) int8_t rows[16 * 32];
  Row row[16] = {{0}};
  int m = w->N - n < 16 ? (int)(w->N - n) : 16, same = 1;
  for (int r = 0; r < m; r++) {
    row[r] = row_of(w, n + r);
    same &= row[r].kind == row[0].kind;
  }
  memset(rows, 0, sizeof(rows));
#define CALL(KIND)                                                                                            \
  for (i64 i = k0 / 32; i < k1 / 32; i++) {                                                                   \
    vf ca = f_load(w->channel_scale + i * 32), cb = f_load(w->channel_scale + i * 32 + 16);                   \
    for (int r = 0; r < m; r++) {                                                                             \
      Floats f = decode32(KIND, row[r].row, row[r].scales, i);                                                \
      vf inverse = f_set(w->inverse[n + r]);                                                     \
      b_store(rows + r * 32, quantized(f.a, ca, inverse));                                                    \
      b_store(rows + r * 32 + 16, quantized(f.b, cb, inverse));                                               \
    }                                                                                                         \
    transpose_rows(rows, to + (i * 32 - k0) * 16);                                                            \
  }
  if (same) {
    BY_KIND(row[0].kind, CALL)
  } else {
    CALL(row[r].kind)
  }
#undef CALL
}

typedef struct {
  const LazyInt8 *w;
  uint8_t *panels;
} Unpacking;

static void unpack_piece(const void *how, i64 panel, void *scratch) {
  const Unpacking *p = how;
  unpack_panel(p->w, panel * 16, 0, p->w->K, p->panels + panel * p->w->K * 16);
  (void)scratch;
}

// the whole weight -> panels (PAD(N, 16)/16, K/4, 16, 4)
void int8_unpack(const LazyInt8 *w, uint8_t *panels) {
  Unpacking p = {w, panels};
  parallel(PAD(w->N, 16) / 16, 0, unpack_piece, &p);
}
