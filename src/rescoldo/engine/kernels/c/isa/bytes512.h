// Inputs and weights of int8 products as bytes, with AVX-512: what the products of VNNI and of AMX share.

#ifndef RESCOLDO_BYTES512_H
#define RESCOLDO_BYTES512_H

#include "lanes512.h"

typedef int8_t level;
enum { QMAX = 127, WEIGHT_BYTES = 1, CHUNK_BYTES = 1 << 19 };
ALWAYS void store_levels(level *q, vi n) { b_store(q, to_bytes(n)); }
ALWAYS vi load_levels(const level *q) { return i_signed_bytes(b_load(q)); }

ALWAYS void transpose_panel(const uint8_t *from, i64 n, i64 deep, uint8_t *to) {
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

#endif
