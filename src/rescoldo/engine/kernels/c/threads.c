// A pool of threads. The calling thread opens a region and works in it; workers join, claim pieces until there are none
// left, and wait for the next: a moment spinning, then parked. Whoever has a slow core, or loses it, claims fewer pieces.

#include "threads.h"
#include "kernels.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum { MOST = 256 };
enum { SPIN_WORKER = 60000, SPIN_CALLER = 20000, LOST = 500000, CROWDED = 100000000 };  // nanoseconds

static struct {
  pthread_mutex_t region, lock;  // held while a region runs; around parking
  pthread_cond_t work, done;
  _Alignas(64) _Atomic uint64_t open;  // the number of the region that runs, 0: none
  _Alignas(64) _Atomic i64 next;       // the first piece that nobody has claimed
  _Alignas(64) _Atomic int inside, parked, waiting;  // workers in the region; parked ones; whether the caller is parked
  _Atomic i64 crowded;           // until then (ns) nobody spins: a thread has lost its core while it did
  _Alignas(64) uint64_t regions;
  i64 n, threads;                // of the region
  size_t scratch;
  Piece piece;
  const void *how;
  int workers;
  void *room[MOST];              // each thread's scratch, kept
  size_t bytes[MOST];
} pool = {.region = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static _Thread_local i64 wanted = 1;

void kernels_set_threads(i64 n) { wanted = n < 1 ? 1 : n > MOST ? MOST : n; }

i64 threads_in_use(void) { return wanted; }

static i64 now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// 1 as soon as `ready`, 0 after `spin` nanoseconds, or at once where cores are crowded
static int spin(int (*ready)(uint64_t), uint64_t what, i64 spin) {
  i64 began = now(), last = began;
  if (began < atomic_load_explicit(&pool.crowded, memory_order_relaxed)) return ready(what);
  for (;;) {
    for (int i = 0; i < 32; i++) {
      if (ready(what)) return 1;
      relax();
    }
    i64 at = now();
    if (at - last > LOST) atomic_store(&pool.crowded, at + CROWDED);
    if (at - began > spin) return ready(what);
    last = at;
  }
}

static int opened(uint64_t seen) {
  uint64_t open = atomic_load(&pool.open);
  return open != 0 && open != seen;
}

static int left(uint64_t unused) { return (void)unused, atomic_load(&pool.inside) == 0; }

static void *room_of(int w, size_t scratch) {
  if (pool.bytes[w] < scratch) {
    free(pool.room[w]);
    pool.room[w] = aligned_alloc(64, PAD(scratch, 64));
    pool.bytes[w] = pool.room[w] ? PAD(scratch, 64) : 0;
  }
  return pool.room[w];
}

// claim pieces and do them: many at a time in the beginning, one at a time towards the end
static void take_part(int w) {
  void *room = pool.scratch ? room_of(w, pool.scratch) : NULL;
  if (pool.scratch && !room) return;  // the others do it all
  i64 from = atomic_load(&pool.next);
  for (;;) {
    i64 take = (pool.n - from) / (2 * pool.threads);
    take = take < 1 ? 1 : take;
    if (from >= pool.n) return;
    if (!atomic_compare_exchange_weak(&pool.next, &from, from + take)) continue;
    for (i64 i = from; i < from + take; i++) pool.piece(pool.how, i, room);
    from = atomic_load(&pool.next);
  }
}

static void *worker(void *number) {
  int w = (int)(intptr_t)number;
  uint64_t seen = 0;
  for (;;) {
    if (!spin(opened, seen, SPIN_WORKER)) {
      pthread_mutex_lock(&pool.lock);
      atomic_fetch_add(&pool.parked, 1);
      while (!opened(seen)) pthread_cond_wait(&pool.work, &pool.lock);
      atomic_fetch_sub(&pool.parked, 1);
      pthread_mutex_unlock(&pool.lock);
    }
    seen = atomic_load(&pool.open);
    atomic_fetch_add(&pool.inside, 1);  // from here on the caller waits, or has closed the region
    if (seen != 0 && atomic_load(&pool.open) == seen && w < pool.threads) take_part(w);
    if (atomic_fetch_sub(&pool.inside, 1) == 1 && atomic_load(&pool.waiting)) {
      pthread_mutex_lock(&pool.lock);
      pthread_cond_signal(&pool.done);
      pthread_mutex_unlock(&pool.lock);
    }
  }
  return NULL;
}

// a child process has none of its parent's threads
static void forget_workers(void) {
  pthread_mutex_init(&pool.region, NULL), pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.work, NULL), pthread_cond_init(&pool.done, NULL);
  atomic_store(&pool.open, 0), atomic_store(&pool.inside, 0), atomic_store(&pool.parked, 0);
  atomic_store(&pool.waiting, 0);
  pool.workers = 0;
}

// as many workers as a region of so many threads needs, if the system lets us; signals stay the program's business
static void hire(i64 threads) {
  static int prepared;
  if (pool.workers >= threads - 1) return;
  if (!prepared) prepared = 1, pthread_atfork(NULL, NULL, forget_workers);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (pool.workers < threads - 1) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(pool.workers + 1))) break;
    pthread_detach(thread);
    pool.workers++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int alone(i64 n, size_t scratch, Piece piece, const void *how) {
  void *room = scratch ? aligned_alloc(64, PAD(scratch, 64)) : NULL;
  if (scratch && !room) return 1;
  for (i64 i = 0; i < n; i++) piece(how, i, room);
  free(room);
  return 0;
}

int parallel(i64 n, size_t scratch, Piece piece, const void *how) {
  if (n <= 0) return 0;
  if (pthread_mutex_trylock(&pool.region)) return alone(n, scratch, piece, how);  // another thread of the program's
  pool.n = n, pool.scratch = scratch, pool.piece = piece, pool.how = how;
  pool.threads = n < wanted ? n : wanted;
  atomic_store(&pool.next, 0);
  if (pool.threads > 1) {
    hire(pool.threads);
    atomic_store(&pool.open, ++pool.regions);
    if (atomic_load(&pool.parked)) {
      pthread_mutex_lock(&pool.lock);
      pthread_cond_broadcast(&pool.work);
      pthread_mutex_unlock(&pool.lock);
    }
  }
  take_part(0);
  if (pool.threads > 1) {
    atomic_store(&pool.open, 0);
    if (!spin(left, 0, SPIN_CALLER)) {
      pthread_mutex_lock(&pool.lock);
      atomic_store(&pool.waiting, 1);
      while (!left(0)) pthread_cond_wait(&pool.done, &pool.lock);
      atomic_store(&pool.waiting, 0);
      pthread_mutex_unlock(&pool.lock);
    }
  }
  int failed = atomic_load(&pool.next) < n;
  pthread_mutex_unlock(&pool.region);
  return failed;
}
