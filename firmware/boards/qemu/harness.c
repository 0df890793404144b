/* Drives a model on a QEMU board: samples from a file through run() into a file, by semihosting.
 *
 * The image is the one an application gets: its own start-up, main and model within the part's memories.
 * main calls es_harness_enter in place of the model's run function; harness code, data and stack lie in
 * memory the part does not have, and each run() starts with the stack pointer main left, so that depth of
 * stack and count of instructions are those of the plain image.
 *
 * Files, in QEMU's working directory:
 *   samples.bin  uint32 flags (1: paint the stack before each run; 2: take up the model's memory as memory.bin
 *                holds it; 4: leave it there), then samples of ES_HARNESS_INPUT_BYTES
 *   outputs.bin  per sample uint32 untouched bytes at the stack's low end (0xFFFFFFFF where not painted), uint32
 *                clock of the run less that of an empty function (0xFFFFFFFF where it overflowed), output
 *   fault.bin    where something went wrong: kind, program counter, return address, cause, address
 *
 * Defined by the build: ES_HARNESS_RUN, ES_HARNESS_INPUT, ES_HARNESS_OUTPUT and, for a model that has one,
 * ES_HARNESS_RESET (the model's functions), ES_HARNESS_INPUT_BYTES, ES_HARNESS_OUTPUT_BYTES. Build with -fno-builtin: no library function may be called,
 * since those belong to the model's count. */
#include <stdint.h>

#include "harness.h"

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT_EXTENDED = 0x20 };
enum { OPEN_READ_BINARY = 1, OPEN_WRITE_BINARY = 5 };
enum { APPLICATION_EXIT = 0x20026 };
enum { EXIT_DONE = 0, EXIT_FAULT = 98, EXIT_FILES = 99 };
enum { PAINT_STACK = 1, TAKE_UP = 2, LEAVE_BEHIND = 4 };

#define PAINT 0xA5A5A5A5u
#define NOT_PAINTED 0xFFFFFFFFu
#define OVERFLOWED 0xFFFFFFFFu

extern uint32_t es_board_data_start;
extern uint32_t es_board_bss_end;
extern uint32_t es_board_stack_limit;
extern uint32_t es_board_stack_top;

/* The stack pointer with which main called, kept by the assembly. */
uint32_t *es_harness_model_stack;
uint64_t es_harness_stack[ES_HARNESS_STACK_BYTES / sizeof(uint64_t)];

void ES_HARNESS_RUN(void);
void *ES_HARNESS_INPUT(void);
const void *ES_HARNESS_OUTPUT(void);
#if defined(ES_HARNESS_RESET)
void ES_HARNESS_RESET(void);
#endif

/* In assembly. */
uintptr_t es_harness_semihost(uint32_t operation, const void *block);
void *es_harness_call(void *(*function)(void)); /* calls on the model's stack */
void es_harness_mark(void);                     /* its address tells the plug-in that a run begins or has ended */
void es_harness_nothing(void);                  /* one instruction */
void es_harness_clock_start(void);
uint32_t es_harness_clock(void); /* since the start; instructions or ticks of virtual time, see the rig */

void es_harness_main(void);
void es_harness_report(uint32_t kind, uintptr_t counter, uintptr_t link, uint32_t cause, uint32_t address);

static void leave(uintptr_t code)
{
    const uintptr_t block[2] = {APPLICATION_EXIT, code};
    for (;;) {
        (void)es_harness_semihost(SYS_EXIT_EXTENDED, block);
    }
}

static uintptr_t open_file(const char *name, uintptr_t length, uintptr_t mode)
{
    const uintptr_t block[3] = {(uintptr_t)name, mode, length};
    const uintptr_t handle = es_harness_semihost(SYS_OPEN, block);
    if (handle == (uintptr_t)-1) {
        leave(EXIT_FILES);
    }
    return handle;
}

/* Bytes not read: 0 when the buffer is full. */
static uintptr_t read_file(uintptr_t handle, void *to, uintptr_t size)
{
    const uintptr_t block[3] = {handle, (uintptr_t)to, size};
    return es_harness_semihost(SYS_READ, block);
}

static void write_file(uintptr_t handle, const void *from, uintptr_t size)
{
    const uintptr_t block[3] = {handle, (uintptr_t)from, size};
    if (es_harness_semihost(SYS_WRITE, block) != 0u) {
        leave(EXIT_FILES);
    }
}

static void paint_stack(void)
{
    for (volatile uint32_t *word = &es_board_stack_limit; word < es_harness_model_stack; ++word) {
        *word = PAINT;
    }
}

static uint32_t untouched_bytes(void)
{
    volatile uint32_t *word = &es_board_stack_limit;
    while (word < es_harness_model_stack && *word == PAINT) {
        ++word;
    }
    return (uint32_t)((uintptr_t)word - (uintptr_t)&es_board_stack_limit);
}

/* Never inlined, so that both of its uses cost the same. */
static __attribute__((noinline)) uint32_t timed_call(void *(*function)(void))
{
    es_harness_clock_start();
    (void)es_harness_call(function);
    return es_harness_clock();
}

static const char memory_name[] = "memory.bin";

static uintptr_t static_bytes(void)
{
    return (uintptr_t)&es_board_bss_end - (uintptr_t)&es_board_data_start;
}

/* A new stream, or the continued one of an earlier start of QEMU. */
static void start_stream(uint32_t flags)
{
    if ((flags & TAKE_UP) != 0u) {
        const uintptr_t handle = open_file(memory_name, sizeof memory_name - 1u, OPEN_READ_BINARY);
        if (read_file(handle, &es_board_data_start, static_bytes()) != 0u) {
            leave(EXIT_FILES);
        }
        return;
    }
#if defined(ES_HARNESS_RESET)
    (void)es_harness_call((void *(*)(void))ES_HARNESS_RESET);
#endif
}

void es_harness_main(void)
{
    static const char samples_name[] = "samples.bin", outputs_name[] = "outputs.bin";
    const uintptr_t samples = open_file(samples_name, sizeof samples_name - 1u, OPEN_READ_BINARY);
    const uintptr_t outputs = open_file(outputs_name, sizeof outputs_name - 1u, OPEN_WRITE_BINARY);
    void *const input = es_harness_call(ES_HARNESS_INPUT);
    uint32_t flags;
    if (read_file(samples, &flags, sizeof flags) != 0u) {
        leave(EXIT_FILES);
    }
    start_stream(flags);
    (void)timed_call((void *(*)(void))es_harness_nothing); /* QEMU's first access to a clock is off by one */
    const uint32_t nothing = timed_call((void *(*)(void))es_harness_nothing);
    es_harness_mark();
    while (read_file(samples, input, ES_HARNESS_INPUT_BYTES) == 0u) {
        if ((flags & PAINT_STACK) != 0u) {
            paint_stack();
        }
        const uint32_t clock = timed_call((void *(*)(void))ES_HARNESS_RUN);
        es_harness_mark();
        const uint32_t untouched = (flags & PAINT_STACK) != 0u ? untouched_bytes() : NOT_PAINTED;
        const uint32_t record[2] = {untouched, clock == OVERFLOWED ? OVERFLOWED : clock - nothing};
        write_file(outputs, record, sizeof record);
        write_file(outputs, es_harness_call((void *(*)(void))ES_HARNESS_OUTPUT), ES_HARNESS_OUTPUT_BYTES);
    }
    (void)es_harness_semihost(SYS_CLOSE, &outputs);
    if ((flags & LEAVE_BEHIND) != 0u) {
        write_file(open_file(memory_name, sizeof memory_name - 1u, OPEN_WRITE_BINARY), &es_board_data_start,
                   static_bytes());
    }
    leave(EXIT_DONE);
}

void es_harness_report(uint32_t kind, uintptr_t counter, uintptr_t link, uint32_t cause, uint32_t address)
{
    static const char name[] = "fault.bin";
    const uint32_t report[5] = {kind, (uint32_t)counter, (uint32_t)link, cause, address};
    write_file(open_file(name, sizeof name - 1u, OPEN_WRITE_BINARY), report, sizeof report);
    leave(EXIT_FAULT);
}
