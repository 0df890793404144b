/* Products of one row of activations with all output channels: fully connected layers, convolutions of one pixel.
 *
 * Weights are those of es_gemm_s8.h, half = 256 * w1 + w0, in another order: for four taps t .. t+3 of a channel pair
 * the words (t, t+2) and (t+1, t+3); four pairs side by side, then, for what is left of the pairs, one after another.
 * Activations are read as they lie in memory and unpacked once for eight channels. */
#ifndef ES_DENSE_S8_H
#define ES_DENSE_S8_H

#include "es_scale_s8.h"

/* One row; the assembly knows the order of the fields. */
typedef struct {
    const int32_t *bias; /* [channel pairs][2]: b0, 256 * b1 + b0, input zero-point folded in */
    const es_scale_pair *scale;
    int32_t scale_step; /* bytes from a channel pair's scale to the next: 0 where one serves all */
    const int8_t *x;    /* readable to a multiple of four bytes */
    const int8_t *x_end;
    int32_t rounding; /* 2 * zero_point + 1 of the output */
    int32_t quads;    /* taps / 4 */
    int8_t *out;
    int8_t *out_end;
    const int32_t *bias_end; /* of the channels in groups of eight */
    const uint32_t *weights;
} es_dense_row;

#if ES_DSP
ES_STATIC_ASSERT(dense_row_layout, sizeof(es_dense_row) == 44 && offsetof(es_dense_row, weights) == 40);

/* Two words of one channel pair: r10, r11 taps, acc channel 0, both channels. */
#define ES_DENSE_PAIR(acc, both)                                                                                       \
    "ldrd r12, lr, [r0], #8\n"                                                                                         \
    "smlad " both ", r10, r12, " both "\n"                                                                             \
    "sxtb16 r12, r12\n"                                                                                                \
    "smlad " acc ", r10, r12, " acc "\n"                                                                               \
    "smlad " both ", r11, lr, " both "\n"                                                                              \
    "sxtb16 lr, lr\n"                                                                                                  \
    "smlad " acc ", r11, lr, " acc "\n"

#define ES_DENSE_UNPACK                                                                                                \
    "ldr.w r11, [r1], #4\n"                                                                                            \
    "sxtb16 r10, r11\n"                                                                                                \
    "sxtb16 r11, r11, ror #8\n"

#define ES_DENSE_TAPS                                                                                                  \
    ES_DENSE_UNPACK                                                                                                    \
    ES_DENSE_PAIR("r2", "r3") ES_DENSE_PAIR("r4", "r5") ES_DENSE_PAIR("r6", "r7") ES_DENSE_PAIR("r8", "r9")

/* r1 offset, lr shift; r10 is lost */
#define ES_DENSE_SINGLE(acc, multiplier) "smmla " acc ", " acc ", " multiplier ", r1\n"
#define ES_DENSE_DOUBLE(acc, multiplier)                                                                               \
    "smmlar r10, " acc ", " multiplier ", r1\n"                                                                        \
    "add " acc ", r10, " acc ", asr #31\n"
#define ES_DENSE_END(acc)                                                                                              \
    "asr " acc ", " acc ", lr\n"                                                                                       \
    "ssat " acc ", #8, " acc ", asr #1\n"

/* A finished channel pair: rescaled, stored; jumps to 9 after the last channel. CENTRE: what the odd channel needs. */
#define ES_DENSE_STORE(acc, both, SCALE, double_acc, down, CENTRE)                                                     \
    "ldrd r10, r1, [sp, #4]\n"                                                                                         \
    "ldm r10, {r11, r12, lr}\n"                                                                                        \
    "add r10, r10, r1\n"                                                                                               \
    "str r10, [sp, #4]\n"                                                                                              \
    "ldr r1, [sp, #20]\n"                                                                                              \
    "sub " both ", " both ", " acc "\n"                                                                                \
    "lsl r1, r1, lr\n" double_acc SCALE(acc, "r11") ES_DENSE_END(acc)                                                  \
    "ldr r1, [sp, #20]\n"                                                                                              \
    "lsr lr, lr, #8\n"                                                                                                 \
    "lsl r1, r1, lr\n"                                                                                                 \
    "asr " both ", " both ", #" down "\n" CENTRE(both) SCALE(both, "r12") ES_DENSE_END(both)                           \
    "ldrd r1, r11, [sp, #28]\n"                                                                                        \
    "strb " acc ", [r1], #1\n"                                                                                         \
    "cmp r1, r11\n"                                                                                                    \
    "beq.w 9f\n"                                                                                                       \
    "strb " both ", [r1], #1\n"                                                                                        \
    "str r1, [sp, #28]\n"                                                                                              \
    "cmp r1, r11\n"                                                                                                    \
    "beq.w 9f\n"

#define ES_DENSE_NO_CENTRE(both)
/* The next word of the scale table behind the pair's entry, which has been passed. */
#define ES_DENSE_CENTRE(both)                                                                                          \
    "ldr r10, [sp, #4]\n"                                                                                              \
    "ldr r10, [r10, #-4]\n"                                                                                            \
    "add " both ", " both ", r10\n"
#define ES_DENSE_TWICE(acc) "lsl " acc ", " acc ", #1\n"

#define ES_DENSE_STORE_SINGLE(acc, both) ES_DENSE_STORE(acc, both, ES_DENSE_SINGLE, "", "8", ES_DENSE_NO_CENTRE)
#define ES_DENSE_STORE_DOUBLE(acc, both)                                                                               \
    ES_DENSE_STORE(acc, both, ES_DENSE_DOUBLE, ES_DENSE_TWICE(acc), "7", ES_DENSE_NO_CENTRE)
#define ES_DENSE_STORE_SINGLE_WIDE(acc, both) ES_DENSE_STORE(acc, both, ES_DENSE_SINGLE, "", "8", ES_DENSE_CENTRE)
#define ES_DENSE_STORE_DOUBLE_WIDE(acc, both)                                                                          \
    ES_DENSE_STORE(acc, both, ES_DENSE_DOUBLE, ES_DENSE_TWICE(acc), "7", ES_DENSE_CENTRE)

/* r0 weights, r1 x. The row is copied to the stack: sp+0 bias +4 scale +8 scale_step +12 x +16 x_end +20 rounding
 * +24 entry of the loop +28 out +32 out_end +36 bias_end. C99 promises strings of 4095 characters, hence several. */
#define ES_DENSE_FUNCTION(STORE)                                                                                       \
    __asm__ volatile(                                                                                                  \
        ".syntax unified\n"                                                                                            \
        "push {r4-r11, lr}\n"                                                                                          \
        "sub sp, #44\n"                                                                                                \
        "ldm r0!, {r1-r7}\n"                                                                                           \
        "stm sp, {r1-r7}\n"                                                                                            \
        "ldm r0, {r1-r4}\n"                                                                                            \
        /* Four taps are 124 bytes of code, four times that a turn; the first turn takes what quads % 4 leaves. */     \
        "rsb r7, r7, #0\n"                                                                                             \
        "and r7, r7, #3\n"                                                                                             \
        "adr.w r5, 2f\n"                                                                                               \
        "add r5, r5, r7, lsl #7\n"                                                                                     \
        "sub r5, r5, r7, lsl #2\n"                                                                                     \
        "orr r5, r5, #1\n"                                                                                             \
        "strd r5, r1, [sp, #24]\n"                                                                                     \
        "strd r2, r3, [sp, #32]\n"                                                                                     \
        "mov r0, r4\n"                                                                                                 \
        "1:\n"                                                                                                         \
        "ldr r10, [sp, #0]\n"                                                                                          \
        "ldr r11, [sp, #36]\n"                                                                                         \
        "ldr r1, [sp, #12]\n"                                                                                          \
        "cmp r10, r11\n"                                                                                               \
        "beq.w 3f\n"                                                                                                   \
        "ldm r10!, {r2-r9}\n"                                                                                          \
        "str r10, [sp, #0]\n"                                                                                          \
        "ldr.w pc, [sp, #24]\n"                                                                                        \
        ".balign 4\n"                                                                                                  \
        "2:\n" ES_DENSE_TAPS ES_DENSE_TAPS ES_DENSE_TAPS ES_DENSE_TAPS                                                 \
        "ldr r12, [sp, #16]\n"                                                                                         \
        "cmp r1, r12\n"                                                                                                \
        "bne.w 2b\n" ::: "memory");                                                                                    \
    __asm__ volatile(STORE("r2", "r3") STORE("r4", "r5")::: "memory");                                                 \
    __asm__ volatile(STORE("r6", "r7") STORE("r8", "r9")::: "memory");                                                 \
    __asm__ volatile(                                                                                                  \
        "b.w 1b\n"                                                                                                     \
        "3:\n"                                                                                                         \
        "ldrd r2, r3, [r10], #8\n"                                                                                     \
        "str r10, [sp, #0]\n"                                                                                          \
        "4:\n" ES_DENSE_UNPACK ES_DENSE_PAIR("r2", "r3")                                                               \
        "ldr r12, [sp, #16]\n"                                                                                         \
        "cmp r1, r12\n"                                                                                                \
        "bne.w 4b\n" STORE("r2", "r3")                                                                                 \
        "ldr r10, [sp, #0]\n"                                                                                          \
        "ldr r1, [sp, #12]\n"                                                                                          \
        "b.w 3b\n"                                                                                                     \
        "9:\n"                                                                                                         \
        "add sp, #44\n"                                                                                                \
        "pop {r4-r11, pc}\n" ::: "memory")

static ES_NAKED void es_dense_single_s8(const es_dense_row *row ES_UNUSED)
{
    ES_DENSE_FUNCTION(ES_DENSE_STORE_SINGLE);
}

static ES_NAKED void es_dense_double_s8(const es_dense_row *row ES_UNUSED)
{
    ES_DENSE_FUNCTION(ES_DENSE_STORE_DOUBLE);
}

/* For odd channels whose accumulators reach 2^23 but stay within 2^23 of a centre: scale holds 16 bytes a channel pair, an
 * es_scale_pair and the centre, or twice that where rounding is double; bias holds 256 * (b1 - centre) + b0. */
static ES_NAKED void es_dense_single_wide_s8(const es_dense_row *row ES_UNUSED)
{
    ES_DENSE_FUNCTION(ES_DENSE_STORE_SINGLE_WIDE);
}

static ES_NAKED void es_dense_double_wide_s8(const es_dense_row *row ES_UNUSED)
{
    ES_DENSE_FUNCTION(ES_DENSE_STORE_DOUBLE_WIDE);
}
#else
/* The same in C. */
ES_INLINE void es_dense_any_s8(const es_dense_row *row, int32_t single, int32_t wide)
{
    const uint32_t *w = row->weights;
    const uint8_t *scale = (const uint8_t *)row->scale;
    int8_t *y = row->out;
    for (const int32_t *bias = row->bias; y != row->out_end;) {
        const int32_t pairs = bias < row->bias_end ? 4 : 1;
        for (int32_t pair = 0; pair < pairs && y != row->out_end; pair++, bias += 2, scale += row->scale_step) {
            const es_scale_pair *s = (const es_scale_pair *)(const void *)scale;
            uint32_t acc = (uint32_t)bias[0], both = (uint32_t)bias[1];
            for (int32_t i = 0; i < row->quads; i++) {
                const uint32_t x = es_load_word(row->x + 4 * i);
                const uint32_t *word = w + 2 * (i * pairs + pair);
                acc = es_smlad(es_sxtb16(x), es_sxtb16(word[0]), acc);
                acc = es_smlad(es_sxtb16_odd(x), es_sxtb16(word[1]), acc);
                both = es_smlad(es_sxtb16(x), word[0], both);
                both = es_smlad(es_sxtb16_odd(x), word[1], both);
            }
            *y++ = (int8_t)es_scale((int32_t)acc, s->multiplier[0], s->shifts & 0xFF, row->rounding, single);
            if (y != row->out_end) {
                const uint32_t centre = wide ? (uint32_t)((const int32_t *)(const void *)scale)[3] : 0u;
                const int32_t shift = s->shifts >> 8;
                const uint32_t odd = (uint32_t)((int32_t)(both - acc) >> (single ? 8 : 7)) + centre;
                *y++ = (int8_t)(single ? es_scale_single((int32_t)odd, s->multiplier[1], shift, row->rounding)
                                       : es_scale_double((int32_t)odd, s->multiplier[1], shift, row->rounding));
            }
        }
        w += 2 * pairs * row->quads;
    }
}

static ES_NOINLINE ES_UNUSED void es_dense_single_s8(const es_dense_row *row) { es_dense_any_s8(row, 1, 0); }
static ES_NOINLINE ES_UNUSED void es_dense_double_s8(const es_dense_row *row) { es_dense_any_s8(row, 0, 0); }
static ES_NOINLINE ES_UNUSED void es_dense_single_wide_s8(const es_dense_row *row) { es_dense_any_s8(row, 1, 1); }
static ES_NOINLINE ES_UNUSED void es_dense_double_wide_s8(const es_dense_row *row) { es_dense_any_s8(row, 0, 1); }
#endif

#endif
