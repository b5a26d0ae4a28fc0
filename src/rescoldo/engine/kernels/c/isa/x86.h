// What all instruction sets of x86 share: 16 bytes and 16 words in memory's order, half floats.

#ifndef RESCOLDO_X86_H
#define RESCOLDO_X86_H

#include <immintrin.h>

#include "../kernels.h"

typedef __m128i vb;  // 16 bytes
typedef __m256i vw;  // 16 words of 16 bits

ALWAYS vb b_load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
ALWAYS void b_store(void *p, vb x) { _mm_storeu_si128((__m128i *)p, x); }
ALWAYS vw w_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
ALWAYS void w_store(void *p, vw x) { _mm256_storeu_si256((__m256i *)p, x); }
ALWAYS float half_to_f32(uint16_t h) { return _cvtsh_ss(h); }

// the 32 numbers of four bits in x, the lower half of each byte first
ALWAYS void b_nibbles(vb x, vb *first, vb *second) {
  const __m128i mask = _mm_set1_epi8(15);
  __m128i low = _mm_and_si128(x, mask), high = _mm_and_si128(_mm_srli_epi16(x, 4), mask);
  *first = _mm_unpacklo_epi8(low, high), *second = _mm_unpackhi_epi8(low, high);
}

// mix32 of x, x + step, x + 2 step, x + 3 step, as 16 bytes
ALWAYS vb b_mix32(uint32_t seed, uint32_t step) {
  __m128i x = _mm_add_epi32(_mm_set1_epi32((int)seed), _mm_setr_epi32(0, (int)step, (int)(2 * step), (int)(3 * step)));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 16));
  x = _mm_mullo_epi32(x, _mm_set1_epi32(0x7FEB352D));
  x = _mm_xor_si128(x, _mm_srli_epi32(x, 15));
  x = _mm_mullo_epi32(x, _mm_set1_epi32((int)0x846CA68Bu));
  return _mm_xor_si128(x, _mm_srli_epi32(x, 16));
}

#endif
