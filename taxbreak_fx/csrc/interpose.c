/* Times calls between loaded libraries, in process and without a profiler, by patching their import tables.
 *
 * tbx_install() looks through every loaded ELF object for imported functions whose names match the wanted patterns and
 * puts the address of a stub into each import slot (R_*_JUMP_SLOT, R_*_GLOB_DAT).  A stub carries its symbol's index:
 *   off: one load and a jump to the real function;
 *   on:  tbx_enter() notes the caller's return address on a per-thread shadow stack and puts tbx_exit in its place; the
 *        real function then runs on the caller's own stack, so arguments of every kind and number are where it expects
 *        them; tbx_exit keeps the returned registers, tbx_leave() notes the time, and control goes back to the caller.
 * Kept across the hooks: integer and 128-bit vector argument registers, integer, vector and x87 results.  Not possible
 * through a timed call: C++ exceptions (the unwinder knows no frame for tbx_exit) and by-value 256-bit vectors; vendor
 * C interfaces use neither.  A longjmp over a timed call loses that event and nothing else.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define POOL 2048 /* distinct functions that can be covered; torch with every CUDA library imports about 1,000 */
#define NESTING 64
#define STRIDE 16 /* bytes per stub */
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define HIDDEN __attribute__((visibility("hidden")))

enum { POOL_FULL = -1, NO_MEMORY = -2, PROTECTED = -3, SHADOW_STACK = -4 };

struct event {
    uint32_t symbol, thread, depth, unused;
    uint64_t start_ns, end_ns; /* CLOCK_MONOTONIC; end 0: the call has not returned */
};

struct object {
    char *path;
    void *handle;
    uintptr_t base, low, high, relro_low, relro_high;
    const ElfW(Dyn) * dynamic;
    int slots;
};

struct slot {
    void **where, *before;
    uint32_t symbol, object;
};

struct frame {
    void *back, *stack; /* the caller's return address; where its stack stood */
    uint64_t event;
    uint32_t generation;
};

HIDDEN int tbx_on;
HIDDEN void *tbx_real[POOL];
HIDDEN extern char tbx_stubs[], tbx_exit[];

static struct event *events;
static uint64_t capacity, taken;
static uint32_t generation;
static int too_deep;
static uint64_t delays_ns[POOL]; /* for tests of attribution: how long a call of the symbol spins before it begins */
static char *names[POOL];
static int symbol_count;
static struct object *objects;
static int object_count, unresolved;
static struct slot *slots;
static int slot_count;
static __thread struct {
    uint32_t id;
    int depth;
    struct frame frames[NESTING];
} self;

#if defined(__x86_64__) && defined(__LP64__)
#define JUMP_SLOT R_X86_64_JUMP_SLOT
#define GLOB_DAT R_X86_64_GLOB_DAT
__asm__(".text\n.balign 16\ntbx_stubs:\n.set tbx_index, 0\n"
        ".rept " TEXT(POOL) "\n"
        "  movl $tbx_index, %r11d\n  jmp tbx_common\n  .balign 16\n  .set tbx_index, tbx_index + 1\n"
        ".endr\n"
        "tbx_common:\n"
        "  cmpl $0, tbx_on(%rip)\n  jne 1f\n"
        "  leaq tbx_real(%rip), %r10\n  jmp *(%r10,%r11,8)\n"
        /* 184 = 8 vector and 7 integer registers; the stack stood 8 off a multiple of 16, now it is on one. */
        "1: subq $184, %rsp\n"
        "  movaps %xmm0, (%rsp)\n  movaps %xmm1, 16(%rsp)\n  movaps %xmm2, 32(%rsp)\n  movaps %xmm3, 48(%rsp)\n"
        "  movaps %xmm4, 64(%rsp)\n  movaps %xmm5, 80(%rsp)\n  movaps %xmm6, 96(%rsp)\n  movaps %xmm7, 112(%rsp)\n"
        "  movq %rdi, 128(%rsp)\n  movq %rsi, 136(%rsp)\n  movq %rdx, 144(%rsp)\n  movq %rcx, 152(%rsp)\n"
        "  movq %r8, 160(%rsp)\n  movq %r9, 168(%rsp)\n  movq %rax, 176(%rsp)\n" /* al: vector registers of varargs */
        "  movl %r11d, %edi\n  leaq 184(%rsp), %rsi\n  movq %rsi, %rdx\n  call tbx_enter\n  movq %rax, %r11\n"
        "  movaps (%rsp), %xmm0\n  movaps 16(%rsp), %xmm1\n  movaps 32(%rsp), %xmm2\n  movaps 48(%rsp), %xmm3\n"
        "  movaps 64(%rsp), %xmm4\n  movaps 80(%rsp), %xmm5\n  movaps 96(%rsp), %xmm6\n  movaps 112(%rsp), %xmm7\n"
        "  movq 128(%rsp), %rdi\n  movq 136(%rsp), %rsi\n  movq 144(%rsp), %rdx\n  movq 152(%rsp), %rcx\n"
        "  movq 160(%rsp), %r8\n  movq 168(%rsp), %r9\n  movq 176(%rsp), %rax\n"
        "  addq $184, %rsp\n  jmp *%r11\n"
        ".balign 16\ntbx_exit:\n" /* the real function popped the slot of its return address: 56(%rsp) is that slot */
        "  subq $64, %rsp\n"
        "  movaps %xmm0, (%rsp)\n  movaps %xmm1, 16(%rsp)\n  movq %rax, 32(%rsp)\n  movq %rdx, 40(%rsp)\n"
        "  leaq 56(%rsp), %rdi\n  call tbx_leave\n  movq %rax, 56(%rsp)\n"
        "  movaps (%rsp), %xmm0\n  movaps 16(%rsp), %xmm1\n  movq 32(%rsp), %rax\n  movq 40(%rsp), %rdx\n"
        "  addq $56, %rsp\n  ret\n");

/* A hardware shadow stack would trap on the exchanged return address. */
static int shadow_stack(void)
{
    uint64_t pointer = 0;
    __asm__ volatile("rdsspq %0" : "+r"(pointer)); /* does nothing where there is none */
    return pointer != 0;
}
#elif defined(__aarch64__) && defined(__LP64__)
#define JUMP_SLOT R_AARCH64_JUMP_SLOT
#define GLOB_DAT R_AARCH64_GLOB_DAT
__asm__(".text\n.balign 16\ntbx_stubs:\n.set tbx_index, 0\n"
        ".rept " TEXT(POOL) "\n"
        "  hint #34\n  mov w16, #tbx_index\n  b tbx_common\n  .balign 16\n  .set tbx_index, tbx_index + 1\n"
        ".endr\n"
        "tbx_common:\n"
        "  adrp x17, tbx_on\n  ldr w17, [x17, :lo12:tbx_on]\n  cbnz w17, 1f\n"
        "  adrp x17, tbx_real\n  add x17, x17, :lo12:tbx_real\n  ldr x17, [x17, x16, lsl #3]\n  br x17\n"
        "1: stp x29, x30, [sp, #-224]!\n  mov x29, sp\n"
        "  stp x0, x1, [sp, #16]\n  stp x2, x3, [sp, #32]\n  stp x4, x5, [sp, #48]\n  stp x6, x7, [sp, #64]\n"
        "  str x8, [sp, #80]\n" /* where a large result goes */
        "  stp q0, q1, [sp, #96]\n  stp q2, q3, [sp, #128]\n  stp q4, q5, [sp, #160]\n  stp q6, q7, [sp, #192]\n"
        "  mov w0, w16\n  add x1, sp, #8\n  add x2, sp, #224\n  bl tbx_enter\n  mov x16, x0\n"
        "  ldp x0, x1, [sp, #16]\n  ldp x2, x3, [sp, #32]\n  ldp x4, x5, [sp, #48]\n  ldp x6, x7, [sp, #64]\n"
        "  ldr x8, [sp, #80]\n"
        "  ldp q0, q1, [sp, #96]\n  ldp q2, q3, [sp, #128]\n  ldp q4, q5, [sp, #160]\n  ldp q6, q7, [sp, #192]\n"
        "  ldp x29, x30, [sp], #224\n  br x16\n"
        ".balign 16\ntbx_exit:\n"
        "  sub sp, sp, #80\n"
        "  stp x0, x1, [sp]\n  stp q0, q1, [sp, #16]\n  stp q2, q3, [sp, #48]\n"
        "  add x0, sp, #80\n  bl tbx_leave\n  mov x30, x0\n"
        "  ldp x0, x1, [sp]\n  ldp q0, q1, [sp, #16]\n  ldp q2, q3, [sp, #48]\n"
        "  add sp, sp, #80\n  ret\n");

static int shadow_stack(void) { return 0; }
#else
#error "import tables are patched on 64-bit x86-64 and aarch64 Linux only"
#endif

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Returns the function to jump to.  `back` holds the return address, `stack` is where the caller's stack stood. */
HIDDEN __attribute__((used)) void *tbx_enter(uint32_t index, void **back, void *stack)
{
    if (delays_ns[index])
        for (uint64_t until = now_ns() + delays_ns[index]; now_ns() < until;)
            ;
    /* Frames below the caller were left by longjmp.  One at the same place is live only when the function that it
     * times has jumped here as its last act (a tail call): then our exit stands as return address. */
    while (self.depth > 0) {
        void *top = self.frames[self.depth - 1].stack;
        if (top > stack || (top == stack && *back == (void *)tbx_exit))
            break;
        self.depth--;
    }
    if (self.depth == NESTING) {
        too_deep = 1;
        return tbx_real[index];
    }
    uint32_t born = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);
    uint64_t event = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
    if (event >= capacity)
        return tbx_real[index];
    if (self.id == 0)
        self.id = (uint32_t)syscall(SYS_gettid);
    struct frame *frame = &self.frames[self.depth];
    *frame = (struct frame){*back, stack, event, born};
    events[event] = (struct event){index, self.id, (uint32_t)self.depth, 0, 0, 0};
    self.depth++;
    *back = (void *)tbx_exit;
    events[event].start_ns = now_ns();
    return tbx_real[index];
}

/* Returns the address to go back to. */
HIDDEN __attribute__((used)) void *tbx_leave(void *stack)
{
    uint64_t end = now_ns();
    while (self.depth > 0 && self.frames[self.depth - 1].stack != stack)
        self.depth--;
    if (self.depth == 0)
        abort(); /* nobody knows where to go back to */
    struct frame *frame = &self.frames[--self.depth];
    if (frame->generation == __atomic_load_n(&generation, __ATOMIC_ACQUIRE))
        __atomic_store_n(&events[frame->event].end_ns, end, __ATOMIC_RELEASE);
    return frame->back;
}

void tbx_delay(int symbol, uint64_t ns) { delays_ns[symbol] = ns; }
void tbx_listen(int on) { __atomic_store_n(&tbx_on, on, __ATOMIC_SEQ_CST); }

/* Forgets all events and makes room for `room`, every page touched now.  Only while not listening. */
int tbx_reset(uint64_t room)
{
    __atomic_add_fetch(&generation, 1, __ATOMIC_SEQ_CST);
    if (room != capacity) {
        if (events)
            munmap(events, capacity * sizeof *events);
        capacity = 0;
        events = mmap(NULL, room * sizeof *events, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
                      -1, 0);
        if (events == MAP_FAILED) {
            events = NULL;
            return NO_MEMORY;
        }
        capacity = room;
    } else { /* an entry that is taken but not written yet must not show what stood there before */
        memset(events, 0, (taken < capacity ? taken : capacity) * sizeof *events);
    }
    taken = 0;
    too_deep = 0;
    return 0;
}

uint64_t tbx_count(void) { return taken < capacity ? taken : capacity; }
int tbx_overflowed(void) { return taken > capacity || too_deep; }
const struct event *tbx_events(void) { return events; }
int tbx_symbol_count(void) { return symbol_count; }
const char *tbx_symbol_name(int index) { return names[index]; }
int tbx_object_count(void) { return object_count; }
const char *tbx_object_path(int index) { return objects[index].path; }
int tbx_object_slots(int index) { return objects[index].slots; }
int tbx_unresolved(void) { return unresolved; }

static __attribute__((noinline)) int probe(int x)
{
    __asm__ volatile("" : "+r"(x));
    return x;
}

static void *stub(int symbol) { return tbx_stubs + (size_t)symbol * STRIDE; }

static int is_stub(const void *address)
{
    return (const char *)address >= tbx_stubs && (const char *)address < tbx_stubs + (size_t)POOL * STRIDE;
}

/* The index under which `real` is timed; POOL_FULL or NO_MEMORY.  Entries stay for good: a program may have copied a
 * stub's address out of an import slot, and must still be led to the real function after uninstalling. */
static int symbol_of(const char *name, void *real)
{
    for (int i = 0; i < symbol_count; i++)
        if (tbx_real[i] == real && strcmp(names[i], name) == 0)
            return i;
    if (symbol_count == POOL)
        return POOL_FULL;
    names[symbol_count] = strdup(name);
    if (names[symbol_count] == NULL)
        return NO_MEMORY;
    tbx_real[symbol_count] = real;
    return symbol_count++;
}

/* Nanoseconds of `calls` calls of a function that does nothing, directly or through its stub (always symbol 0). */
int64_t tbx_probe_ns(int calls, int through_stub)
{
    if (symbol_count == 0 && symbol_of("tbx_probe", (void *)probe) != 0)
        return NO_MEMORY;
    int (*volatile call)(int) = through_stub ? (int (*)(int))stub(0) : probe;
    uint64_t start = now_ns();
    for (int i = 0; i < calls; i++)
        call(i);
    return (int64_t)(now_ns() - start);
}

struct loaded {
    struct object *found;
    int count, failed;
};

static int collect(struct dl_phdr_info *info, size_t size, void *into)
{
    (void)size;
    struct loaded *loaded = into;
    struct object one = {.base = info->dlpi_addr, .low = UINTPTR_MAX};
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t low = info->dlpi_addr + part->p_vaddr, high = low + part->p_memsz;
        if (part->p_type == PT_DYNAMIC)
            one.dynamic = (const void *)low;
        if (part->p_type == PT_LOAD && low < one.low)
            one.low = low;
        if (part->p_type == PT_LOAD && high > one.high)
            one.high = high;
        if (part->p_type == PT_GNU_RELRO) { /* rounded as the dynamic linker does when it protects the range */
            one.relro_low = low & ~(page - 1);
            one.relro_high = high & ~(page - 1);
        }
    }
    int own = (uintptr_t)tbx_stubs >= one.low && (uintptr_t)tbx_stubs < one.high;
    if (own || one.dynamic == NULL)
        return 0;
    struct object *grown = realloc(loaded->found, (size_t)(loaded->count + 1) * sizeof *grown);
    one.path = strdup(info->dlpi_name);
    if (grown)
        loaded->found = grown;
    if (grown == NULL || one.path == NULL) {
        free(one.path);
        loaded->failed = 1;
        return 1;
    }
    loaded->found[loaded->count++] = one;
    return 0;
}

/* A pattern is a name, or a prefix and '*'. */
static int wanted(const char *name, const char *const *patterns)
{
    for (; *patterns; patterns++) {
        size_t length = strlen(*patterns);
        int prefix = length > 0 && (*patterns)[length - 1] == '*';
        if (prefix ? strncmp(name, *patterns, length - 1) == 0 : strcmp(name, *patterns) == 0)
            return 1;
    }
    return 0;
}

static int protect(const struct object *object, int protection)
{
    size_t size = object->relro_high - object->relro_low;
    return size == 0 || mprotect((void *)object->relro_low, size, protection) == 0;
}

static void *open_again(const char *path) { return dlopen(*path ? path : NULL, RTLD_LAZY | RTLD_NOLOAD); }

/* The entry of an object in `objects`, which holds the object loaded for as long as its slots are ours. */
static int object_of(const struct object *object)
{
    for (int i = 0; i < object_count; i++)
        if (objects[i].base == object->base && objects[i].dynamic == object->dynamic)
            return i;
    struct object *grown = realloc(objects, (size_t)(object_count + 1) * sizeof *grown);
    if (grown == NULL)
        return NO_MEMORY;
    objects = grown;
    struct object added = *object;
    added.path = strdup(object->path);
    added.handle = open_again(object->path);
    if (added.path == NULL || added.handle == NULL)
        return NO_MEMORY;
    objects[object_count] = added;
    return object_count++;
}

static int patch_slot(struct object *object, void **where, const char *name)
{
    void *value = __atomic_load_n(where, __ATOMIC_ACQUIRE), *real = value;
    if (is_stub(value))
        return 0;
    if (object->handle == NULL)
        object->handle = open_again(object->path);
    /* A slot that is not bound yet points into its own object, at the code that asks the dynamic linker. */
    if ((uintptr_t)value >= object->low && (uintptr_t)value < object->high)
        real = object->handle ? dlsym(object->handle, name) : NULL;
    Dl_info info;
    const ElfW(Sym) *definition = NULL;
    if (real == NULL || object->handle == NULL || !dladdr1(real, &info, (void **)&definition, RTLD_DL_SYMENT)) {
        unresolved++;
        return 0;
    }
    if (definition && ELF64_ST_TYPE(definition->st_info) == STT_OBJECT)
        return 0; /* data under a name like a function's */
    int symbol = symbol_of(name, real);
    if (symbol < 0)
        return symbol;
    int number = object_of(object);
    struct slot *grown = realloc(slots, (size_t)(slot_count + 1) * sizeof *grown);
    if (grown)
        slots = grown;
    if (number < 0 || grown == NULL)
        return NO_MEMORY;
    slots[slot_count++] = (struct slot){where, value, (uint32_t)symbol, (uint32_t)number};
    objects[number].slots++;
    __atomic_store_n(where, stub(symbol), __ATOMIC_RELEASE);
    return 1;
}

static int patch_table(struct object *object, const ElfW(Rela) * table, size_t bytes, const ElfW(Sym) * imports,
                       const char *strings, const char *const *patterns, int *writable)
{
    int patched = 0;
    for (const ElfW(Rela) *entry = table; (size_t)((const char *)entry - (const char *)table) < bytes; entry++) {
        uint64_t kind = ELF64_R_TYPE(entry->r_info);
        if (kind != JUMP_SLOT && kind != GLOB_DAT)
            continue;
        const ElfW(Sym) *import = &imports[ELF64_R_SYM(entry->r_info)];
        const char *name = strings + import->st_name;
        if (import->st_shndx != SHN_UNDEF || !wanted(name, patterns))
            continue;
        if (!*writable && !protect(object, PROT_READ | PROT_WRITE))
            return PROTECTED;
        *writable = 1;
        int done = patch_slot(object, (void **)(object->base + entry->r_offset), name);
        if (done < 0)
            return done;
        patched += done;
    }
    return patched;
}

static int patch_object(struct object *object, const char *const *patterns)
{
    uintptr_t at[DT_NUM] = {0};
    size_t sizes[DT_NUM] = {0};
    for (const ElfW(Dyn) *entry = object->dynamic; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag < 0 || entry->d_tag >= DT_NUM)
            continue;
        sizes[entry->d_tag] = entry->d_un.d_val;
        /* Some dynamic linkers leave offsets here, glibc puts addresses. */
        uintptr_t value = entry->d_un.d_ptr;
        at[entry->d_tag] = value < object->base ? value + object->base : value;
    }
    if (sizes[DT_SYMTAB] == 0 || sizes[DT_STRTAB] == 0)
        return 0;
    int writable = 0, patched = 0;
    const int tables[2][2] = {{DT_RELA, DT_RELASZ}, {DT_JMPREL, DT_PLTRELSZ}};
    for (int i = 0; i < 2 && patched >= 0; i++) {
        if (sizes[tables[i][0]] == 0)
            continue;
        int more = patch_table(object, (const void *)at[tables[i][0]], sizes[tables[i][1]], (const void *)at[DT_SYMTAB],
                               (const char *)at[DT_STRTAB], patterns, &writable);
        patched = more < 0 ? more : patched + more;
    }
    if (writable && !protect(object, PROT_READ))
        return PROTECTED;
    return patched;
}

/* Patches what is not patched yet; `patterns` ends with NULL.  Returns the number of new slots, or a negative reason. */
int tbx_install(const char *const *patterns)
{
    if (shadow_stack())
        return SHADOW_STACK;
    if (symbol_count == 0 && symbol_of("tbx_probe", (void *)probe) != 0)
        return NO_MEMORY;
    /* The list first: asking the dynamic linker for a symbol while it lists its objects could lock up. */
    struct loaded loaded = {0};
    dl_iterate_phdr(collect, &loaded);
    int patched = loaded.failed ? NO_MEMORY : 0;
    unresolved = 0;
    for (int i = 0; i < loaded.count; i++) {
        int more = patched < 0 ? 0 : patch_object(&loaded.found[i], patterns);
        patched = more < 0 ? more : patched + more;
        if (loaded.found[i].handle)
            dlclose(loaded.found[i].handle);
        free(loaded.found[i].path);
    }
    free(loaded.found);
    return patched;
}

/* Puts back what every slot held, unless somebody else has changed it since.  0, or PROTECTED. */
int tbx_uninstall(void)
{
    int failed = 0;
    for (int i = 0; i < object_count; i++)
        failed |= !protect(&objects[i], PROT_READ | PROT_WRITE);
    for (int i = 0; i < slot_count && !failed; i++) {
        void *expected = stub((int)slots[i].symbol);
        __atomic_compare_exchange_n(slots[i].where, &expected, slots[i].before, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    for (int i = 0; i < object_count; i++) {
        protect(&objects[i], PROT_READ);
        if (!failed) {
            dlclose(objects[i].handle);
            free(objects[i].path);
        }
    }
    if (failed)
        return PROTECTED;
    object_count = slot_count = 0;
    return 0;
}
