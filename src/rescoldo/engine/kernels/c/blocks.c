// Blocks of a few bits a weight (ggml's formats, QLoRA's nf4) to numbers, 32 at a time, and on to int8 panels.
//
// Formats as in ggml-common.h and ggml-quants.c of ggml (github.com/ggml-org/ggml): d, m are half floats.

#include "blocks.h"

#ifdef HAS_LANES

int has_blocks(void) { return 1; }

enum { NF4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K };

static const float LEVELS[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                                 -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                                 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                                 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

typedef struct { vf a, b; } Floats;  // numbers 0..15 and 16..31

ALWAYS float half_at(const uint8_t *p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return _cvtsh_ss(h);
}

ALWAYS vi bytes(const uint8_t *p) { return i_bytes(_mm_loadu_si128((const __m128i *)p)); }
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
      __m128i x = _mm_loadu_si128((const __m128i *)(row + i * 16)), mask = _mm_set1_epi8(15);
      __m128i lo = _mm_and_si128(x, mask), hi = _mm_and_si128(_mm_srli_epi16(x, 4), mask);
      vf table = f_mul(f_load(LEVELS), f_set(up(scales[i / 2])));
      return (Floats){f_lookup(table, i_bytes(_mm_unpacklo_epi8(lo, hi))),
                      f_lookup(table, i_bytes(_mm_unpackhi_epi8(lo, hi)))};
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
      return (Floats){scaled(i_signed_bytes(_mm_loadu_si128((const __m128i *)(p + 2))), 0, d),
                      scaled(i_signed_bytes(_mm_loadu_si128((const __m128i *)(p + 18))), 0, d)};
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

static Row row_of(const Stored *w, i64 n) {
  const Blocks *b = w->part;
  while (n >= b->rows) n -= b->rows, b++;
  i64 at = b->order ? b->order[n] : n;
  return (Row){b->kind, b->data + at * b->row_bytes, b->scales ? b->scales + at * (w->K / 64) : NULL};
}

// rows n0..n1-1 -> out (n1-n0, K) f32
void blocks_decode(const Stored *w, i64 n0, i64 n1, float *out) {
  ROWS for (i64 n = n0; n < n1; n++) {
    Row r = row_of(w, n);
    float *to = out + (n - n0) * w->K;
#define CALL(KIND)                                          \
  for (i64 i = 0; i < w->K / 32; i++) {                     \
    Floats f = decode32(KIND, r.row, r.scales, i);          \
    f_store(to + i * 32, f.a), f_store(to + i * 32 + 16, f.b); \
  }
    BY_KIND(r.kind, CALL)
#undef CALL
  }
}

// widest (K,): each column's largest magnitude, if not NULL. largest (N,): each row's after its product with columns, if
// not NULL; picked (N, n): the columns `pick` (n,) as they are.
int blocks_measure(const Stored *w, float *widest, float *largest, const i64 *pick, i64 n_pick, float *picked) {
  int failed = 0;
#pragma omp parallel
  {
    i64 K = w->K;
    float *row = aligned_alloc(64, sizeof(float) * PAD(K, 16)), *wide = aligned_alloc(64, sizeof(float) * PAD(K, 16));
    if (!row || !wide) {
#pragma omp atomic write
      failed = 1;
    } else {
      memset(wide, 0, sizeof(float) * K);
#pragma omp for schedule(static)
      for (i64 n = 0; n < w->N; n++) {
        Row r = row_of(w, n);
#define CALL(KIND)                                          \
  for (i64 i = 0; i < K / 32; i++) {                        \
    Floats f = decode32(KIND, r.row, r.scales, i);          \
    f_store(row + i * 32, f.a), f_store(row + i * 32 + 16, f.b); \
  }
        BY_KIND(r.kind, CALL)
#undef CALL
        if (widest)
          for (i64 k = 0; k < K; k += 16)
            f_store(wide + k, f_max(f_load(wide + k), f_abs(f_load(row + k))));
        if (largest) {
          vf top = f_zero();
          for (i64 k = 0; k < K; k += 16)
            top = f_max(top, f_abs(f_mul(f_load(row + k), f_load(w->columns + k))));
          largest[n] = f_top(top);
        }
        for (i64 e = 0; e < n_pick; e++) picked[n * n_pick + e] = row[pick[e]];
      }
      if (widest)
#pragma omp critical
        for (i64 k = 0; k < K; k++) widest[k] = wide[k] > widest[k] ? wide[k] : widest[k];
    }
    free(row), free(wide);
  }
  return failed;
}

#ifdef LANES_512

// 16 rows of 32 bytes -> 8 vectors: four bytes of each row. Three times the even words of two vectors go to one, the
// odd ones to the other: that takes one bit from the words' place to the vectors' and one of the rows' the other way.
ALWAYS void transposed(const int8_t *rows, uint8_t *to) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1)), top = _mm512_set1_epi8((char)0x80);
  __m512i x[8], y[8];
  for (int i = 0; i < 8; i++) x[i] = _mm512_load_si512(rows + 64 * i);  // x[r3 r2 r1]: words r0 c2 c1 c0
  for (int i = 0; i < 4; i++) {
    y[i] = _mm512_permutex2var_epi32(x[2 * i], even, x[2 * i + 1]);
    y[4 + i] = _mm512_permutex2var_epi32(x[2 * i], odd, x[2 * i + 1]);  // y[c0 r3 r2]: r1 r0 c2 c1
  }
  for (int c = 0; c < 2; c++)
    for (int i = 0; i < 2; i++) {
      x[c * 2 + i] = _mm512_permutex2var_epi32(y[c * 4 + 2 * i], even, y[c * 4 + 2 * i + 1]);
      x[4 + c * 2 + i] = _mm512_permutex2var_epi32(y[c * 4 + 2 * i], odd, y[c * 4 + 2 * i + 1]);  // x[c1 c0 r3]
    }
  for (int c = 0; c < 4; c++) {
    y[c] = _mm512_permutex2var_epi32(x[2 * c], even, x[2 * c + 1]);
    y[4 + c] = _mm512_permutex2var_epi32(x[2 * c], odd, x[2 * c + 1]);  // y[c2 c1 c0]: rows
  }
  for (int i = 0; i < 8; i++) _mm512_storeu_si512(to + 64 * i, _mm512_xor_si512(y[i], top));
}

#else

// 8 rows of 8 words -> each word of all of them side by side, 64 bytes from word to word
ALWAYS void transposed8(const int8_t *rows, uint8_t *to) {
  const __m256i top = _mm256_set1_epi8((char)0x80);
  __m256i x[8], y[8];
  for (int r = 0; r < 8; r++) x[r] = _mm256_load_si256((const __m256i *)(rows + 32 * r));
  for (int r = 0; r < 8; r += 2) {
    y[r] = _mm256_unpacklo_epi32(x[r], x[r + 1]);      // words 0 1 | 4 5 of two rows
    y[r + 1] = _mm256_unpackhi_epi32(x[r], x[r + 1]);  // words 2 3 | 6 7
  }
  for (int r = 0; r < 8; r += 4)
    for (int h = 0; h < 2; h++) {
      x[r + 2 * h] = _mm256_unpacklo_epi64(y[r + h], y[r + 2 + h]);      // word 2h | 2h + 4 of four rows
      x[r + 2 * h + 1] = _mm256_unpackhi_epi64(y[r + h], y[r + 2 + h]);  // word 2h + 1 | 2h + 5
    }
  for (int c = 0; c < 4; c++) {
    __m256i low = _mm256_permute2x128_si256(x[c], x[4 + c], 0x20), high = _mm256_permute2x128_si256(x[c], x[4 + c], 0x31);
    _mm256_storeu_si256((__m256i *)(to + 64 * c), _mm256_xor_si256(low, top));
    _mm256_storeu_si256((__m256i *)(to + 64 * (c + 4)), _mm256_xor_si256(high, top));
  }
}

// 16 rows of 32 bytes -> 8 times four bytes of each row
ALWAYS void transposed(const int8_t *rows, uint8_t *to) { transposed8(rows, to), transposed8(rows + 256, to + 32); }

#endif

ALWAYS __m128i quantized(vf w, vf columns, vf inverse) {
  return to_bytes(i_of(f_mul(f_mul(w, columns), inverse)));
}

void unpack_panel(const Stored *w, i64 n, i64 k0, i64 k1, uint8_t *to) {
  _Alignas(64) int8_t rows[16 * 32];
  Row row[16];
  int m = w->N - n < 16 ? (int)(w->N - n) : 16, same = 1;
  for (int r = 0; r < m; r++) {
    row[r] = row_of(w, n + r);
    same &= row[r].kind == row[0].kind;
  }
  memset(rows, 0, sizeof(rows));
#define CALL(KIND)                                                                                            \
  for (i64 i = k0 / 32; i < k1 / 32; i++) {                                                                   \
    vf ca = f_load(w->columns + i * 32), cb = f_load(w->columns + i * 32 + 16);         \
    for (int r = 0; r < m; r++) {                                                                             \
      Floats f = decode32(KIND, row[r].row, row[r].scales, i);                                                \
      vf inverse = f_set(w->inverse[n + r]);                                                     \
      _mm_store_si128((__m128i *)(rows + r * 32), quantized(f.a, ca, inverse));                               \
      _mm_store_si128((__m128i *)(rows + r * 32 + 16), quantized(f.b, cb, inverse));                          \
    }                                                                                                         \
    transposed(rows, to + (i * 32 - k0) * 16);                                                                \
  }
  if (same) {
    BY_KIND(row[0].kind, CALL)
  } else {
    CALL(row[r].kind)
  }
#undef CALL
}

// the whole weight -> panels (PAD(N, 16)/16, K/4, 16, 4)
void int8_unpack(const Stored *w, uint8_t *panels) {
  ROWS for (i64 panel = 0; panel < PAD(w->N, 16) / 16; panel++)
    unpack_panel(w, panel * 16, 0, w->K, panels + panel * w->K * 16);
}

#else

int has_blocks(void) { return 0; }

#endif
