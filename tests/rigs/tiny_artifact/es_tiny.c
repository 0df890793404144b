#include "es_tiny.h"

#define ES_NOINLINE __attribute__((noinline))

#if defined(__ELF__)
__attribute__((section(".bss.es_arena")))
#endif
__attribute__((aligned(8))) uint8_t es_tiny_arena[ES_TINY_ARENA_CAPACITY];

/* Arena: [0, 144) convolution output, [144, 208) input, [208, 211) output of the last layer. */
static const int8_t weights0[4 * 9] = {
    1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, 0, 0, 0, 3, 2, 1, 5, -5, 5, -5, 5, -5, 5, -5, 5, 9, 8, 7, 6, 5, 4, 3, 2, 1,
};
static const int32_t bias0[4] = {100, -200, 300, -400};
static const int8_t weights1[3] = {1, -2, 3};

/* Shared by both layers and never inlined: its instructions belong to the layer that calls it. */
static ES_NOINLINE int8_t saturate(int32_t value)
{
    return (int8_t)(value > 127 ? 127 : value < -128 ? -128 : value);
}

static ES_NOINLINE void es_tiny_l000_conv(void)
{
    const int8_t *in = (const int8_t *)es_tiny_arena + 144;
    int8_t *out = (int8_t *)es_tiny_arena;
    for (int y = 0; y < 6; ++y)
        for (int x = 0; x < 6; ++x)
            for (int o = 0; o < 4; ++o) {
                int32_t sum = bias0[o];
                for (int k = 0; k < 9; ++k)
                    sum += weights0[o * 9 + k] * in[(y + k / 3) * 8 + x + k % 3];
                *out++ = saturate(sum / 37); /* a division: a library call on ARMv6-M */
            }
}

static ES_NOINLINE void es_tiny_l001_sum(void)
{
    const int8_t *in = (const int8_t *)es_tiny_arena;
    int8_t *out = (int8_t *)es_tiny_arena + 208;
    for (int o = 0; o < 3; ++o) {
        volatile int32_t partial[8]; /* stack that is really touched */
        for (int i = 0; i < 8; ++i)
            partial[i] = 0;
        for (int i = 0; i < 144; ++i)
            partial[i & 7] += weights1[o] * in[i];
        int32_t sum = 0;
        for (int i = 0; i < 8; ++i)
            sum += partial[i];
        out[o] = saturate(sum >> 4);
    }
}

int8_t *es_tiny_input(void) { return (int8_t *)es_tiny_arena + 144; }
const int8_t *es_tiny_output(void) { return (const int8_t *)es_tiny_arena + 208; }

void es_tiny_run(void)
{
    es_tiny_l000_conv();
    es_tiny_l001_sum();
}
