// Weights as files and QLoRA store them, in blocks of a few bits; unpacked for each product. See blocks.c.

#ifndef RESCOLDO_BLOCKS_H
#define RESCOLDO_BLOCKS_H

#include "simd.h"

// One matrix. `order`: row n of the weight is row order[n] of the data; NULL: row n. `scales`: nf4's, (rows, K/64).
typedef struct {
  i64 kind, rows, row_bytes;
  const uint8_t *data;
  const i64 *order;
  const bf16 *scales;
} Blocks;

// Matrices that share an input, one behind the other; as int8: round(w · columns[k] · inverse[n])
typedef struct {
  i64 parts, N, K;  // K is a multiple of 32
  const Blocks *part;
  const float *columns, *inverse;  // (K,), (N,)
} Stored;

// rows n..n+15 (those beyond N are zero), columns k0..k1-1 (multiples of 32) -> to ((k1-k0)/4, 16, 4), each plus 128
void unpack_panel(const Stored *w, i64 n, i64 k0, i64 k1, uint8_t *to);

#endif
