// What tests/engine/test_threads.py builds with the kernels' sources and the thread sanitizer. Exit code 1: a result
// depends on threads, or a piece was not done exactly once. The sanitizer adds its own exit code.

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "kernels.h"
#include "threads.h"

static uint32_t state = 1;

static uint32_t draw(uint32_t below) {
  state = state * 1664525 + 1013904223;
  return (state >> 8) % below;
}

#define CHECK(what)                                       \
  do {                                                    \
    if (!(what)) {                                        \
      fprintf(stderr, "%d: not so: %s\n", __LINE__, #what); \
      exit(1);                                            \
    }                                                     \
  } while (0)

// --- the pool ---------------------------------------------------------------------------------------------------------

typedef struct {
  int *done;  // plain: two threads at one piece, or a caller that does not wait, are races
  size_t scratch;
} Count;

static void count(const void *how, i64 i, void *scratch) {
  const Count *p = how;
  if (p->scratch) memset(scratch, (int)i, p->scratch);
  p->done[i]++;
}

static void region(i64 n, i64 threads, size_t scratch) {
  int *done = calloc((size_t)n + 1, sizeof(int));
  Count how = {done, scratch};
  kernels_set_threads(threads);
  CHECK(parallel(n, scratch, count, &how) == 0);
  for (i64 i = 0; i < n; i++) CHECK(done[i] == 1);
  free(done);
}

static void *caller(void *rounds) {
  for (i64 i = 0; i < (i64)(intptr_t)rounds; i++) region(1 + i % 40, 1 + i % 4, (size_t)(i % 3) * 100);
  return NULL;
}

static void the_pool(i64 rounds) {
  for (i64 i = 0; i < rounds; i++) {
    region(1 + draw(200), 1 + draw(6), draw(4) ? 0 : 1 + draw(5000));
    if (!draw(20)) usleep(1 + draw(200));  // some workers park, some are about to
  }
  pthread_t callers[4];
  for (int i = 0; i < 4; i++) pthread_create(callers + i, NULL, caller, (void *)(intptr_t)(rounds / 4));
  for (int i = 0; i < 4; i++) pthread_join(callers[i], NULL);
}

// --- operations --------------------------------------------------------------------------------------------------------

static bf16 *halves(i64 n) {
  bf16 *x = aligned_alloc(64, PAD((size_t)n * 2, 64));
  for (i64 i = 0; i < n; i++) x[i] = f32_to_bf16((float)draw(2001) / 1000.0f - 1.0f);
  return x;
}

static void *zeros(i64 bytes) {
  void *x = aligned_alloc(64, PAD((size_t)bytes, 64));
  memset(x, 0, (size_t)bytes);
  return x;
}

enum { T = 150, H = 4, KV = 2, D = 32, WIDE = 96, GROUP = 32, OUT = 160, RANK = 8, ROW = (H + 2 * KV) * D };

typedef struct {
  bf16 out[T * H * D], grad[T * ROW], y[T * OUT], norm[T * WIDE];
  float lse[H * T], z[T * RANK], adapter[RANK * WIDE];
} Results;

static void operations(const bf16 *x, const bf16 *weight, i64 threads, Results *to) {
  static const i64 bounds[] = {0, 70, 71, T};
  static int32_t none[OUT / 16];
  for (int i = 0; i < OUT / 16; i++) none[i] = -1;
  float one[OUT], b[WIDE * 16] = {0}, *scratch = zeros(sizeof(float) * 2 * 16 * T * D), scale[OUT], rstd[T];
  for (int i = 0; i < OUT; i++) one[i] = 1.0f;
  for (int i = 0; i < WIDE * 16; i++) b[i] = (float)(i % 7);
  void *q = zeros(2 * T * WIDE);
  float *scales = zeros(sizeof(float) * T * WIDE / GROUP);
  int32_t *sums = kernels_qmax() == 127 ? zeros(sizeof(int32_t) * T * WIDE / GROUP) : NULL;
  uint8_t *panels = zeros(OUT * WIDE);
  float h[T * WIDE];
  for (int i = 0; i < T * WIDE; i++) h[i] = (float)(i % 13);
  memset(to, 0, sizeof(*to));
  kernels_set_threads(threads);
  Attention a = {.T = T, .H = H, .K = KV, .d = D, .n = 3, .qs = ROW, .ks = ROW, .bounds = bounds, .q = x,
                 .k = x + H * D, .v = x + (H + KV) * D};
  CHECK(attend(&a, to->out, to->lse) == 0);
  CHECK(attend_backward(&a, x, to->out, to->lse, to->grad, to->grad + H * D, to->grad + (H + KV) * D, ROW, ROW, NULL,
                        NULL, scratch) == 0);
  CHECK(int8_pack(weight, one, OUT, WIDE, panels, scale) == 0);
  Segment down = {0, WIDE, b, RANK, 16, 0};
  Int8Input in = {.T = T, .K = WIDE, .Kp = WIDE, .group = GROUP, .groups = WIDE / GROUP, .x = x, .q = q,
                  .scale = scales, .sum = sums, .segments = 1, .Z = RANK, .segment = &down, .z = to->z};
  CHECK(int8_input(&in) == 0);
  Int8Product product = {.T = T, .K = WIDE, .N = OUT, .group = GROUP, .groups = WIDE / GROUP, .q = q, .scale = scales,
                         .sum = sums, .w = panels, .channel_scale = scale, .z = to->z, .Z = RANK, .at = none,
                         .y = to->y};
  CHECK(int8_product(&product) == 0);
  CHECK(outer_rows(to->z, RANK, RANK, x, WIDE, T, WIDE, &in.mask, 1.0f, 0, to->adapter) == 0);
  rms_norm(h, weight, T, WIDE, 1e-5f, to->norm, to->norm, rstd);
  free(scratch), free(q), free(scales), free(sums), free(panels);
}

int main(int arguments, char **argument) {
  i64 rounds = arguments > 1 ? atoi(argument[1]) : 1000;
  CHECK(kernels_start() == 0);
  the_pool(rounds);
  bf16 *x = halves(T * ROW), *weight = halves(OUT * WIDE);
  Results *first = malloc(sizeof(Results)), *other = malloc(sizeof(Results));
  operations(x, weight, 4, first);
  for (i64 i = 0; i < rounds / 20; i++) {
    operations(x, weight, 4, other);
    CHECK(memcmp(first, other, sizeof(Results)) == 0);
  }
  puts("same bytes");
  return 0;
}
