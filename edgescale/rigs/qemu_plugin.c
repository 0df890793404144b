/* A QEMU TCG plug-in: exact instruction counts per layer and run, a limit, and a watch over memory.
 *
 * Built for this machine at first use. Distributions do not package QEMU's plug-in header, so the few
 * functions used are declared here; they have kept their signatures since version 1 of the interface, and
 * QEMU_PLUGIN_VERSION says which version the QEMU at hand expects.
 *
 * Arguments: config=FILE counts=FILE events=FILE. The configuration is lines of a word and numbers:
 *   layers N             counters 0 (outside layers) .. N
 *   mark A               executing the block at A begins the first run, and ends a run and begins the next
 *   limit N              instructions of one run after which the program is stopped
 *   range B E K          code at [B, E) belongs to counter K; other code to whoever called it
 *   harness B E          code at [B, E) is not counted
 *   memory B E W         watch accesses: [B, E) may be read, and written where W is 1
 *   guard K B E          accesses to [B, E) are noted as guard K
 * Counts: uint64 [runs][N + 1], host byte order. Events: lines of text
 *   guard RUN K LOW HIGH PC LAYER      the lowest and one past the highest byte touched; where first
 *   stop limit PC LAYER
 *   stop access PC LAYER ADDRESS SIZE STORE */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef uint64_t plugin_id;
typedef uint32_t memory_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
typedef void (*translate_callback)(plugin_id, struct qemu_plugin_tb *);
typedef void (*execute_callback)(unsigned, void *);
typedef void (*memory_callback)(unsigned, memory_info, uint64_t, void *);
enum { NO_REGISTERS = 0, READ_AND_WRITE = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translate_callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, execute_callback, int, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, memory_callback, int, int, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
unsigned qemu_plugin_mem_size_shift(memory_info);
bool qemu_plugin_mem_is_store(memory_info);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;
EXPORT int qemu_plugin_install(plugin_id id, const qemu_info_t *info, int argc, char **argv);

enum { EXIT_STOPPED = 97 };
enum { KEEP = -1, HARNESS = -2, MARK = -3 };
enum { MAX_MEMORY = 8, MAX_GUARDS = 4 };

typedef struct {
    uint64_t begin, end;
    int64_t number;
} range_t;

typedef struct {
    uint64_t begin, end, low, high, counter;
    int64_t layer;
} guard_t;

/* A translated block; lives as long as the process, as QEMU may keep the translation. */
typedef struct {
    uint64_t address, instructions;
    int64_t number;
} block_t;

static range_t *ranges, memory[MAX_MEMORY];
static size_t range_count, range_room, memory_count;
static guard_t guards[MAX_GUARDS];
static uint64_t *counts;
static uint64_t layers, mark_address, limit = UINT64_MAX, total, runs;
static int64_t layer = HARNESS;
static bool started;
static FILE *counts_file, *events_file;

static void add_range(uint64_t begin, uint64_t end, int64_t number)
{
    if (range_count == range_room) {
        range_room = 2 * range_room + 64;
        ranges = realloc(ranges, range_room * sizeof *ranges);
        if (ranges == NULL) {
            abort();
        }
    }
    ranges[range_count++] = (range_t){begin, end, number};
}

static int64_t number_of(uint64_t address)
{
    for (size_t i = 0; i < range_count; ++i) {
        if (address >= ranges[i].begin && address < ranges[i].end) {
            return ranges[i].number;
        }
    }
    return KEEP;
}

static void stop(void)
{
    fflush(counts_file);
    fflush(events_file);
    _exit(EXIT_STOPPED); /* QEMU has no call that ends it from a plug-in */
}

static void end_run(void)
{
    if (started) {
        for (size_t i = 0; i < MAX_GUARDS; ++i) {
            if (guards[i].high != 0) {
                fprintf(events_file, "guard %" PRIu64 " %zu %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 "\n", runs, i,
                        guards[i].low, guards[i].high, guards[i].counter, guards[i].layer);
                guards[i].low = guards[i].high = 0;
            }
        }
        fwrite(counts, sizeof *counts, layers + 1, counts_file);
        ++runs;
    }
    memset(counts, 0, (layers + 1) * sizeof *counts);
    total = 0;
    started = true;
}

static void on_block(unsigned cpu, void *user)
{
    (void)cpu;
    const block_t *block = user;
    if (block->number != KEEP) {
        layer = block->number;
    }
    if (layer >= 0) {
        counts[layer] += block->instructions;
        total += block->instructions;
        if (total > limit) {
            fprintf(events_file, "stop limit %" PRIu64 " %" PRId64 "\n", block->address, layer);
            stop();
        }
    } else if (layer == MARK) {
        end_run();
    }
}

static bool allowed(uint64_t address, uint64_t size, bool store)
{
    for (size_t i = 0; i < memory_count; ++i) {
        if (address >= memory[i].begin && address + size <= memory[i].end) {
            return !store || memory[i].number != 0;
        }
    }
    return false;
}

static void on_memory(unsigned cpu, memory_info info, uint64_t address, void *user)
{
    (void)cpu;
    if (!started || layer < 0) {
        return;
    }
    const uint64_t size = UINT64_C(1) << qemu_plugin_mem_size_shift(info), counter = (uintptr_t)user;
    const bool store = qemu_plugin_mem_is_store(info);
    if (!allowed(address, size, store)) {
        fprintf(events_file, "stop access %" PRIu64 " %" PRId64 " %" PRIu64 " %" PRIu64 " %d\n", counter, layer,
                address, size, store);
        stop();
    }
    for (size_t i = 0; i < MAX_GUARDS; ++i) {
        guard_t *guard = &guards[i];
        if (address + size <= guard->begin || address >= guard->end) {
            continue;
        }
        if (guard->high == 0) {
            guard->low = address;
            guard->counter = counter;
            guard->layer = layer;
        }
        guard->low = address < guard->low ? address : guard->low;
        guard->high = address + size > guard->high ? address + size : guard->high;
    }
}

static void on_translate(plugin_id id, struct qemu_plugin_tb *tb)
{
    (void)id;
    block_t *block = malloc(sizeof *block);
    if (block == NULL) {
        abort();
    }
    block->address = qemu_plugin_tb_vaddr(tb);
    block->instructions = qemu_plugin_tb_n_insns(tb);
    block->number = block->address == mark_address ? MARK : number_of(block->address);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, NO_REGISTERS, block);
    if (memory_count == 0 || block->number == HARNESS || block->number == MARK) {
        return;
    }
    for (size_t i = 0; i < block->instructions; ++i) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        void *counter = (void *)(uintptr_t)qemu_plugin_insn_vaddr(instruction);
        qemu_plugin_register_vcpu_mem_cb(instruction, on_memory, NO_REGISTERS, READ_AND_WRITE, counter);
    }
}

static int configure(FILE *file)
{
    char word[16];
    uint64_t a, b, c;
    while (fscanf(file, "%15s", word) == 1) {
        const bool three = strcmp(word, "range") == 0 || strcmp(word, "memory") == 0 || strcmp(word, "guard") == 0;
        const bool two = three || strcmp(word, "harness") == 0;
        b = c = 0;
        if (fscanf(file, "%" SCNu64, &a) != 1 || (two && fscanf(file, "%" SCNu64, &b) != 1) ||
            (three && fscanf(file, "%" SCNu64, &c) != 1)) {
            return -1;
        }
        if (strcmp(word, "layers") == 0) {
            layers = a;
        } else if (strcmp(word, "mark") == 0) {
            mark_address = a;
        } else if (strcmp(word, "limit") == 0) {
            limit = a;
        } else if (strcmp(word, "range") == 0 && c <= layers) {
            add_range(a, b, (int64_t)c);
        } else if (strcmp(word, "harness") == 0) {
            add_range(a, b, HARNESS);
        } else if (strcmp(word, "memory") == 0 && memory_count < MAX_MEMORY) {
            memory[memory_count++] = (range_t){a, b, (int64_t)c};
        } else if (strcmp(word, "guard") == 0 && a < MAX_GUARDS) {
            guards[a].begin = b;
            guards[a].end = c;
        } else {
            return -1;
        }
    }
    counts = calloc(layers + 1, sizeof *counts);
    return counts == NULL ? -1 : 0;
}

EXPORT int qemu_plugin_install(plugin_id id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    FILE *config = NULL;
    for (int i = 0; i < argc; ++i) {
        if (strncmp(argv[i], "config=", 7) == 0) {
            config = fopen(argv[i] + 7, "r");
        } else if (strncmp(argv[i], "counts=", 7) == 0) {
            counts_file = fopen(argv[i] + 7, "wb");
        } else if (strncmp(argv[i], "events=", 7) == 0) {
            events_file = fopen(argv[i] + 7, "w");
        }
    }
    if (config == NULL || counts_file == NULL || events_file == NULL || configure(config) != 0) {
        fputs("plug-in: bad arguments or configuration\n", stderr);
        return -1;
    }
    fclose(config);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    return 0;
}
