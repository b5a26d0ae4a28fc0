// Work in pieces, shared out over threads. Which thread takes which piece never changes a result.

#ifndef RESCOLDO_THREADS_H
#define RESCOLDO_THREADS_H

#include "common.h"

typedef void (*Piece)(const void *how, i64 i, void *scratch);

// piece(how, i, scratch) for i = 0..n-1; each thread has `scratch` bytes of its own, on a cache line's boundary, whose
// content is undefined. Returns 1 if there is no memory for it.
int parallel(i64 n, size_t scratch, Piece piece, const void *how);

// how many threads share the pieces
i64 threads_in_use(void);

#endif
