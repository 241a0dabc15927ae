/* Launches without Python: what one launch call costs the host, and when its kernel has reached the host's memory.
 *
 * Every function returns 0, a positive CUresult or cudaError_t, or one of the negative codes below.  Times are
 * CLOCK_MONOTONIC nanoseconds.  The caller's thread must have a current CUDA context.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

enum { NO_LIBRARY = -1, TIME_LIMIT = -2, NO_THREAD = -3 };
enum { POLLS_PER_CLOCK_READ = 256 }; /* so that the time limit costs the polling loop nothing that shows */

struct dim3 { unsigned x, y, z; };

/* A kernel of one block.  `handle` is a CUfunction, or a cudaKernel_t when `runtime` is set. */
struct launch {
    void *handle, *stream, **params;
    uint32_t threads;
    int32_t runtime;
};

static int (*driver_launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                            void **, void **);
static int (*driver_sync)(void *);
static int (*driver_load)(void **, const void *);
static int (*driver_function)(void **, void *, const char *);
static int (*runtime_launch)(const void *, struct dim3, struct dim3, void **, size_t, void *);

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static int issue(const struct launch *what) {
    if (what->runtime)
        return runtime_launch(what->handle, (struct dim3){1, 1, 1}, (struct dim3){what->threads, 1, 1}, what->params,
                              0, what->stream);
    return driver_launch(what->handle, 1, 1, 1, what->threads, 1, 1, 0, what->stream, what->params, NULL);
}

/* One launch and nothing else: the stream may be recording a graph. */
int launch_loop_issue(const struct launch *what) { return issue(what); }

/* Resolve the driver's entry points in the library of that name. */
int launch_loop_open(const char *driver) {
    void *library = dlopen(driver, RTLD_NOW);
    if (!library) return NO_LIBRARY;
    driver_launch = dlsym(library, "cuLaunchKernel");
    driver_sync = dlsym(library, "cuStreamSynchronize");
    driver_load = dlsym(library, "cuModuleLoadData");
    driver_function = dlsym(library, "cuModuleGetFunction");
    return driver_launch && driver_sync && driver_load && driver_function ? 0 : NO_LIBRARY;
}

/* The CUfunction called `name` in a compiled image; its module stays loaded. */
int launch_loop_kernel(const void *image, const char *name, void **handle) {
    void *module;
    int status = driver_load(&module, image);
    return status ? status : driver_function(handle, module, name);
}

/* The same as a cudaKernel_t of the CUDA runtime that is already loaded under that name. */
int launch_loop_runtime_kernel(const char *runtime, const void *image, const char *name, void **handle) {
    void *library = dlopen(runtime, RTLD_NOW | RTLD_NOLOAD), *code;
    if (!library) return NO_LIBRARY;
    int (*load)(void **, const void *, void *, void *, unsigned, void *, void *, unsigned) =
        dlsym(library, "cudaLibraryLoadData");
    int (*get)(void **, void *, const char *) = dlsym(library, "cudaLibraryGetKernel");
    runtime_launch = dlsym(library, "cudaLaunchKernel");
    if (!load || !get || !runtime_launch) return NO_LIBRARY;
    int status = load(&code, image, NULL, NULL, 0, NULL, NULL, 0);
    return status ? status : get(handle, code, name);
}

/* What two clock reads in a row differ by. */
int launch_loop_clock(int count, int64_t *ns) {
    for (int i = 0; i < count; i++) {
        int64_t before = now();
        ns[i] = now() - before;
    }
    return 0;
}

/* Entry to return of `count` launch calls, the stream idle before every `per_drain`-th of them. */
int launch_loop_host(const struct launch *what, int per_drain, int count, int64_t *ns) {
    for (int i = 0; i < count; i++) {
        int status = i % per_drain ? 0 : driver_sync(what->stream);
        if (status) return status;
        int64_t before = now();
        status = issue(what);
        ns[i] = now() - before;
        if (status) return status;
    }
    return driver_sync(what->stream);
}

/* A thread that notes when a word of memory takes a value: the launching thread may still be inside the launch call. */
struct watch {
    volatile int32_t *word;
    _Atomic int32_t awaited; /* 0: nothing */
    _Atomic int64_t seen;    /* 0: not yet */
    _Atomic int stop;
    pthread_t thread;
};

static void *look(void *argument) {
    struct watch *watch = argument;
    while (!watch->stop) {
        int32_t awaited = watch->awaited;
        if (awaited && *watch->word == awaited) {
            int64_t at = now();
            watch->awaited = 0;
            watch->seen = at;
        } else
            PAUSE();
    }
    return NULL;
}

int launch_loop_watch(volatile int32_t *word, struct watch **opened) {
    struct watch *watch = calloc(1, sizeof *watch);
    if (!watch) return NO_THREAD;
    watch->word = word;
    if (pthread_create(&watch->thread, NULL, look, watch)) {
        free(watch);
        return NO_THREAD;
    }
    *opened = watch;
    return 0;
}

/* Await `value`, which is not 0, in the watched word, which is set to 0. */
void launch_loop_await(struct watch *watch, int32_t value) {
    watch->awaited = 0;
    *watch->word = 0;
    watch->seen = 0;
    watch->awaited = value;
}

/* When the awaited value was seen. */
int launch_loop_seen(struct watch *watch, int64_t limit_ns, int64_t *at) {
    int64_t begin = now();
    while (!(*at = watch->seen)) {
        if (now() - begin > limit_ns) return TIME_LIMIT;
        PAUSE();
    }
    return 0;
}

void launch_loop_unwatch(struct watch *watch) {
    watch->stop = 1;
    pthread_join(watch->thread, NULL);
    free(watch);
}

/* Launch call entry to the moment when the host sees what the kernel wrote into `flag`, on an idle stream.  `value` is
 * where the kernel's argument lies: the driver copies it during the call. */
int launch_loop_flag(const struct launch *what, volatile int32_t *flag, int32_t *value, int count, int64_t limit_ns,
                     int64_t *ns) {
    struct watch *watch;
    int status = launch_loop_watch(flag, &watch);
    if (status) return status;
    for (int i = 0; i < count && !status; i++) {
        int64_t at;
        if ((status = driver_sync(what->stream))) break;
        *value = i + 1;
        launch_loop_await(watch, i + 1);
        int64_t before = now();
        if ((status = issue(what))) break;
        status = launch_loop_seen(watch, limit_ns, &at);
        ns[i] = at - before;
    }
    launch_loop_unwatch(watch);
    int after = driver_sync(what->stream);
    return status ? status : after;
}

/* Host writes `question`, a kernel that polls it copies it to `answer`, the host sees that: time of each round.  The
 * kernel ends by itself, after the last round or when no question comes. */
int launch_loop_round_trip(const struct launch *what, volatile int32_t *question, volatile int32_t *answer, int count,
                           int64_t limit_ns, int64_t *ns) {
    *question = *answer = 0;
    int status = driver_sync(what->stream);
    if (!status) status = issue(what);
    for (int i = 1; i <= count && !status; i++) {
        int64_t before = now();
        *question = i;
        for (unsigned polls = 1; *answer != i; polls++)
            if (polls % POLLS_PER_CLOCK_READ == 0 && now() - before > limit_ns) {
                status = TIME_LIMIT;
                break;
            }
        ns[i - 1] = now() - before;
    }
    int after = driver_sync(what->stream);
    return status ? status : after;
}
