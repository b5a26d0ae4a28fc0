#include "threads.h"

#include <omp.h>

i64 threads_in_use(void) { return omp_get_max_threads(); }

int parallel(i64 n, size_t scratch, Piece piece, const void *how) {
  int failed = 0;
#pragma omp parallel
  {
    void *room = scratch ? aligned_alloc(64, PAD(scratch, 64)) : NULL;
    if (scratch && !room) {
#pragma omp atomic write
      failed = 1;
    } else {
#pragma omp for schedule(dynamic, 1)
      for (i64 i = 0; i < n; i++) piece(how, i, room);
    }
    free(room);
  }
  return failed;
}
