/* Native observers of an emulated core: hooks that unicorn calls, free of Python on the hot path.
 *
 * Counts how often each block (a run of instructions without a branch) was entered and how it was
 * left, charges it to the layer that runs, plays the flash caches, and watches memory limits.
 * `probe.py` declares the same structures and attaches the hooks; costs are computed there. */
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { WAYS = 4, TABLE = 1 << 16, KEEP_LAYER = 0xFFFF };
enum { STOP_NONE = 0, STOP_LIMIT = 1, STOP_TABLE = 2, STOP_ALIGNMENT = 3 };

/* One (layer, block) pair. 80 bytes, no padding. */
typedef struct {
    uint32_t address, size, layer, predictor;
    uint64_t entries;
    uint64_t taken;          /* left by a taken branch (the next block is not the next address) */
    uint64_t wide_unaligned; /* of those, to a 32-bit instruction that straddles words */
    uint64_t mispredicted;   /* a two-bit counter per block guessed its exit wrongly */
    uint64_t jump_misses;    /* instruction lines fetched late, after a jump */
    uint64_t stream_misses;  /* instruction lines fetched in sequence, which prefetch partly hides */
    uint64_t data_misses;    /* constant lines fetched from flash */
    uint64_t next_hint;      /* index + 1 of the record that followed last time */
} record_t;

typedef struct {
    uint64_t tag[WAYS]; /* line number + 1, most recently used first */
} set_t;

typedef struct {
    uint64_t sets; /* 0: only the line in the read buffer is free */
    uint64_t last; /* line number + 1 of the last access */
    set_t *set;
} cache_t;

typedef struct {
    /* set by the caller */
    uint64_t stop_function, register_read, register_write; /* of unicorn */
    uint64_t code_begin, code_end;
    uint64_t code; /* host address of the bytes at code_begin */
    uint64_t layer_of; /* host address of uint16 per halfword of code */
    uint64_t line_shift;
    uint64_t detailed;
    int64_t byte_budget; /* stops when executed code bytes exceed it */
    cache_t instruction, data;
    record_t *records; /* TABLE entries, zeroed */
    /* state and results */
    uint64_t used, current, layer, previous_end, stop_reason, fault_address, fault_size;
} probe_t;

/* A range of addresses that must not be touched; `low`..`high` is what was. */
typedef struct {
    probe_t *probe;
    uint64_t low, high, hits, block, layer, wrote;
} guard_t;

EXPORT uint32_t probe_sizes(void)
{
    return (uint32_t)(sizeof(record_t) << 20 | sizeof(probe_t) << 8 | sizeof(guard_t));
}

static void stop(probe_t *probe, void *engine, uint64_t reason)
{
    if (probe->stop_reason == STOP_NONE) {
        probe->stop_reason = reason;
    }
    ((int (*)(void *))(uintptr_t)probe->stop_function)(engine);
}

/* Whether `line` was present; it is afterwards. Four ways, least recently used replaced. */
static int touch(cache_t *cache, uint64_t line)
{
    uint64_t tag = line + 1;
    if (cache->last == tag) {
        return 1;
    }
    cache->last = tag;
    if (cache->sets == 0) {
        return 0;
    }
    uint64_t *way = cache->set[line % cache->sets].tag;
    int hit = 0, place = WAYS - 1;
    for (int i = 0; i < WAYS; ++i) {
        if (way[i] == tag) {
            place = i;
            hit = 1;
            break;
        }
    }
    memmove(way + 1, way, (size_t)place * sizeof *way);
    way[0] = tag;
    return hit;
}

/* Index of the record, or TABLE when full. */
static uint32_t find(probe_t *probe, uint32_t address, uint32_t size)
{
    uint32_t layer = (uint32_t)probe->layer;
    uint32_t slot = (address >> 1) * 2654435761u ^ size * 40503u ^ layer * 2246822519u;
    slot ^= slot >> 15;
    for (uint32_t i = 0; i < TABLE; ++i, ++slot) {
        record_t *record = &probe->records[slot & (TABLE - 1)];
        if (record->entries == 0) {
            if (probe->used > TABLE / 2) {
                return TABLE;
            }
            probe->used++;
            record->address = address;
            record->size = size;
            record->layer = layer;
            record->predictor = 2; /* weakly taken */
        } else if (record->address != address || record->size != size || record->layer != layer) {
            continue;
        }
        return slot & (TABLE - 1);
    }
    return TABLE;
}

static void leave(probe_t *probe, uint64_t address, int jumped)
{
    record_t *before = &probe->records[probe->current - 1];
    if (jumped) {
        before->taken++;
        uint64_t offset = address - probe->code_begin;
        if ((address & 3u) == 2u && offset + 1 < probe->code_end - probe->code_begin) {
            uint16_t half;
            memcpy(&half, (const uint8_t *)(uintptr_t)probe->code + offset, sizeof half);
            before->wide_unaligned += half >= 0xE800u;
        }
    }
    before->mispredicted += (before->predictor >= 2) != jumped;
    if (jumped) {
        before->predictor += before->predictor < 3;
    } else {
        before->predictor -= before->predictor > 0;
    }
}

EXPORT void probe_block(void *engine, uint64_t address, uint32_t size, void *user)
{
    probe_t *probe = user;
    probe->byte_budget -= size;
    if (probe->byte_budget < 0) {
        stop(probe, engine, STOP_LIMIT);
    }
    if (!probe->detailed) {
        probe->previous_end = address + size;
        return;
    }
    int inside = address >= probe->code_begin && address < probe->code_end;
    if (inside) {
        uint16_t layer = ((const uint16_t *)(uintptr_t)probe->layer_of)[(address - probe->code_begin) >> 1];
        if (layer != KEEP_LAYER) {
            probe->layer = layer;
        }
    }
    int jumped = probe->previous_end != address;
    uint32_t index = TABLE;
    record_t *before = probe->current ? &probe->records[probe->current - 1] : 0;
    if (before != 0) {
        leave(probe, address, jumped);
        if (before->next_hint != 0) {
            record_t *guess = &probe->records[before->next_hint - 1];
            if (guess->address == address && guess->size == size && guess->layer == probe->layer) {
                index = (uint32_t)before->next_hint - 1;
            }
        }
    }
    if (index == TABLE) {
        index = find(probe, (uint32_t)address, size);
        if (index == TABLE) {
            stop(probe, engine, STOP_TABLE);
            return;
        }
        if (before != 0) {
            before->next_hint = index + 1u;
        }
    }
    record_t *record = &probe->records[index];
    record->entries++;
    probe->current = index + 1u;
    probe->previous_end = address + size;
    if (inside && probe->line_shift != 0) {
        uint64_t first = address >> probe->line_shift, last = (address + size - 1) >> probe->line_shift;
        for (uint64_t line = first; line <= last; ++line) {
            if (!touch(&probe->instruction, line)) {
                if (line == first && jumped) {
                    record->jump_misses++;
                } else {
                    record->stream_misses++;
                }
            }
        }
    }
}

/* For a memory hook unicorn restores the processor state of the accessing instruction, the conditions of an IT
 * block included, and leaves them behind: the next block would begin inside that IT block and skip or execute
 * what it should not (unicorn issue 2309, seen in 2.1.4). Nothing else reads these bits, so they are cleared. */
static void leave_it_block(const probe_t *probe, void *engine)
{
    enum { UC_ARM_REG_EPSR = 121 };
    const uint32_t it_bits = 0x0600FC00u;
    uint32_t state = 0;
    ((int (*)(void *, int, void *))(uintptr_t)probe->register_read)(engine, UC_ARM_REG_EPSR, &state);
    if ((state & it_bits) != 0) {
        state &= ~it_bits;
        ((int (*)(void *, int, const void *))(uintptr_t)probe->register_write)(engine, UC_ARM_REG_EPSR, &state);
    }
}

/* Reads of constants in flash. */
EXPORT void probe_flash_read(void *engine, int type, uint64_t address, int size, int64_t value, void *user)
{
    (void)type, (void)value;
    probe_t *probe = user;
    leave_it_block(probe, engine);
    if (probe->current == 0 || probe->line_shift == 0) {
        return;
    }
    uint64_t last = (address + (uint64_t)size - 1) >> probe->line_shift;
    for (uint64_t line = address >> probe->line_shift; line <= last; ++line) {
        probe->records[probe->current - 1].data_misses += !touch(&probe->data, line);
    }
}

/* ARMv6-M faults on an unaligned access; the emulator lets it pass. */
EXPORT void probe_alignment(void *engine, int type, uint64_t address, int size, int64_t value, void *user)
{
    (void)type, (void)value;
    probe_t *probe = user;
    if ((address & (uint64_t)(size - 1)) != 0 && probe->stop_reason == STOP_NONE) {
        probe->fault_address = address;
        probe->fault_size = (uint64_t)size;
        stop(probe, engine, STOP_ALIGNMENT);
    }
}

EXPORT void probe_guard(void *engine, int type, uint64_t address, int size, int64_t value, void *user)
{
    (void)value;
    guard_t *guard = user;
    leave_it_block(guard->probe, engine);
    uint64_t end = address + (uint64_t)size;
    if (guard->hits++ == 0) {
        guard->low = address;
        guard->high = end;
        guard->block = guard->probe->previous_end; /* end of the block that runs */
        guard->layer = guard->probe->layer;
        guard->wrote = type == 17; /* UC_MEM_WRITE */
    }
    guard->low = address < guard->low ? address : guard->low;
    guard->high = end > guard->high ? end : guard->high;
}

/* Starts a run: no block before it, cold caches, budget of code bytes. */
EXPORT void probe_begin(probe_t *probe, int64_t byte_budget)
{
    probe->byte_budget = byte_budget;
    probe->current = probe->layer = probe->stop_reason = 0;
    probe->previous_end = 0;
    probe->instruction.last = probe->data.last = 0;
    if (probe->instruction.sets != 0) {
        memset(probe->instruction.set, 0, probe->instruction.sets * sizeof(set_t));
    }
    if (probe->data.sets != 0) {
        memset(probe->data.set, 0, probe->data.sets * sizeof(set_t));
    }
}

/* Ends a run: the last block left by a return, which no further block shows. */
EXPORT void probe_end(probe_t *probe)
{
    if (probe->current != 0) {
        leave(probe, probe->code_begin, 1);
        probe->current = 0;
    }
}
