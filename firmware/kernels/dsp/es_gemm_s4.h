/* Products of two columns of activations with groups of four output channels whose weights have 4 bits.
 *
 * Each half of a word of weights holds one tap of four channels, half = 4096 * w3 + 256 * u2 + 16 * u1 + u0, with u = w + 8,
 * so that no borrow runs between them. SMLAD adds the sum of x * half; with the highest nibble masked out, those of
 * three channels, then two, then one: differences, shifted down, are the sums of single channels. What 8 * sum of x
 * adds to three of them is taken off the start values. Eight products take four bits of weights each and three masks for
 * four channels. Sums of the fourth channel must stay below 2^19, of the third below 2^23: the code generator proves it.
 *
 * Columns are those of es_columns_s8.h. table: for every four channels nine words, twice the biases with the input's
 * zero-point folded in, multipliers, and a byte each of shifts. */
#ifndef ES_GEMM_S4_H
#define ES_GEMM_S4_H

#include "es_gemm_s8.h"

/* Words of the table for four channels. */
#define ES_NIBBLE_TABLE 9

/* What the sums of all four, three, two and one channel start from, for -8 * the sum of x. */
ES_INLINE void es_nibble_start(int32_t correction, int32_t start[4])
{
    start[0] = 273 * correction;
    start[1] = 273 * correction;
    start[2] = 17 * correction;
    start[3] = correction;
}

/* The C of the assembly below: the sum of channel k of four. */
ES_INLINE int32_t es_nibble_sum(const uint32_t sums[4], int32_t k)
{
    /* sums[0] holds four channels, sums[3] the first alone. */
    return k == 0 ? (int32_t)sums[3] : (int32_t)(sums[3 - k] - sums[4 - k]) >> (4 * k);
}

/* Adds the taps x of `word` to the sums. */
ES_INLINE void es_nibble_add(uint32_t sums[4], uint32_t x, uint32_t word)
{
    sums[0] = es_smlad(x, word, sums[0]);
    sums[1] = es_smlad(x, word & 0x0FFF0FFFu, sums[1]);
    sums[2] = es_smlad(x, word & 0x00FF00FFu, sums[2]);
    sums[3] = es_smlad(x, word & 0x000F000Fu, sums[3]);
}

/* Two neighbouring pixels of a block; the assembly knows the order of the fields. */
typedef struct {
    const uint32_t *weights; /* [groups of four channels][tap pairs] */
    const int32_t *table;
    const uint32_t *columns; /* of the first of both pixels */
    const uint32_t *columns_end;
    int32_t rounding;
    int32_t tap_pairs;
    const int32_t *start; /* [2][4] */
    int8_t *end[2];       /* behind the last channel; the second is stored before the first */
    int32_t channel;      /* minus the channels */
} es_nibble_block;

#if ES_DSP
ES_STATIC_ASSERT(nibble_block_layout, sizeof(es_nibble_block) == 40 && offsetof(es_nibble_block, end) == 28);

#define ES_GEMM_S4_TAPS                                                                                                \
    "ldr.w r10, [r0], #4\n"                                                                                            \
    "ldrd r12, lr, [r1], #16\n"                                                                                        \
    "smlad r2, r12, r10, r2\n"                                                                                         \
    "smlad r6, lr, r10, r6\n"                                                                                          \
    "bic r10, r10, #0xF000F000\n"                                                                                      \
    "smlad r3, r12, r10, r3\n"                                                                                         \
    "smlad r7, lr, r10, r7\n"                                                                                          \
    "and r10, r10, #0x00FF00FF\n"                                                                                      \
    "smlad r4, r12, r10, r4\n"                                                                                         \
    "smlad r8, lr, r10, r8\n"                                                                                          \
    "and r10, r10, #0x000F000F\n"                                                                                      \
    "smlad r5, r12, r10, r5\n"                                                                                         \
    "smlad r9, lr, r10, r9\n"

/* r11 the table's entry; r12 bias, r10 multiplier, lr shift, r1 offset of channel k */                                \
#define ES_NIBBLE_LOAD(k)                                                                                              \
    "ldr r12, [r11, #(4 * " k ")]\n"                                                                                   \
    "ldr r10, [r11, #(16 + 4 * " k ")]\n"                                                                              \
    "ldrb lr, [r11, #(32 + " k ")]\n"                                                                                  \
    "ldr r1, [sp, #12]\n"                                                                                              \
    "lsl r1, r1, lr\n"

/* acc: twice the accumulator; t is lost. */                                                                           \
#define ES_NIBBLE_DOUBLE(acc, t)                                                                                       \
    "smmlar " t ", " acc ", r10, r1\n"                                                                                 \
    "add " acc ", " t ", " acc ", asr #31\n"                                                                           \
    "asr " acc ", " acc ", lr\n"                                                                                       \
    "ssat " acc ", #8, " acc ", asr #1\n"

/* Channel k of both pixels: what lies above the next lower sum, or, of the first channel, all. */                     \
#define ES_GEMM_S4_CHANNEL(k, a, a_low, b, b_low, down)                                                                \
    ES_NIBBLE_LOAD(k)                                                                                                  \
    "sub " a ", " a ", " a_low "\n"                                                                                    \
    "sub " b ", " b ", " b_low "\n"                                                                                    \
    "add " a ", r12, " a ", asr #" down "\n"                                                                           \
    "add " b ", r12, " b ", asr #" down "\n" ES_NIBBLE_DOUBLE(a, "r12") ES_NIBBLE_DOUBLE(b, "r12")

/* r0 weights, r1 columns, r2-r5 the sums of the first pixel, r6-r9 of the second. The block is copied to the stack:
 * sp+0 table +4 columns +8 columns_end +12 rounding +16 entry of the loop +20 start +24 +28 end +32 channel. C99 promises
 * strings of 4095 characters, hence two. */
static ES_NAKED void es_gemm_2x4_pixels_s4(const es_nibble_block *block ES_UNUSED)
{
    __asm__ volatile(
        ".syntax unified\n"
        "push {r4-r11, lr}\n"
        "sub sp, #36\n"
        "ldm r0!, {r1-r7}\n"
        /* The loop takes eight tap pairs a turn; the first turn starts where tap_pairs % 8 are left. */
        "rsb r6, r6, #0\n"
        "and r6, r6, #7\n"
        "mov r9, #52\n" /* bytes of code a tap pair */
        "mul r6, r6, r9\n"
        "adr.w r8, 2f\n"
        "add r6, r6, r8\n"
        "orr r6, r6, #1\n"
        "ldm r0, {r8-r10}\n"
        "stm sp, {r2-r10}\n"
        "mov r0, r1\n"
        "1:\n"
        "ldr r10, [sp, #20]\n"
        "ldr r1, [sp, #4]\n"
        "ldm r10, {r2-r9}\n"
        "ldr.w pc, [sp, #16]\n"
        ".balign 4\n"
        "2:\n" ES_GEMM_S4_TAPS ES_GEMM_S4_TAPS ES_GEMM_S4_TAPS ES_GEMM_S4_TAPS ES_GEMM_S4_TAPS ES_GEMM_S4_TAPS
            ES_GEMM_S4_TAPS ES_GEMM_S4_TAPS
        "ldr r10, [sp, #8]\n"
        "cmp r1, r10\n"
        "bne.w 2b\n" ::: "memory");
    __asm__ volatile(
        "ldr r11, [sp, #0]\n"
        ES_GEMM_S4_CHANNEL("3", "r2", "r3", "r6", "r7", "11") ES_GEMM_S4_CHANNEL("2", "r3", "r4", "r7", "r8", "7")
        ES_GEMM_S4_CHANNEL("1", "r4", "r5", "r8", "r9", "3") ES_NIBBLE_LOAD("0")
        "add r5, r12, r5, lsl #1\n"
        "add r9, r12, r9, lsl #1\n" ES_NIBBLE_DOUBLE("r5", "r12") ES_NIBBLE_DOUBLE("r9", "r12")
        "add r11, r11, #36\n"
        "str r11, [sp, #0]\n"
        "ldrd r10, r11, [sp, #24]\n"
        "ldr r1, [sp, #32]\n"
        "strb r9, [r11, r1]\n"
        "strb r5, [r10, r1]\n"
        "adds r1, r1, #1\n"
        "beq 3f\n"
        "strb r8, [r11, r1]\n"
        "strb r4, [r10, r1]\n"
        "adds r1, r1, #1\n"
        "beq 3f\n"
        "strb r7, [r11, r1]\n"
        "strb r3, [r10, r1]\n"
        "adds r1, r1, #1\n"
        "beq 3f\n"
        "strb r6, [r11, r1]\n"
        "strb r2, [r10, r1]\n"
        "adds r1, r1, #1\n"
        "str r1, [sp, #32]\n"
        "bne.w 1b\n"
        "3:\n"
        "add sp, #36\n"
        "pop {r4-r11, pc}\n" ::: "memory");
}
#else
/* The same in C. */
static ES_NOINLINE ES_UNUSED void es_gemm_2x4_pixels_s4(const es_nibble_block *block)
{
    const uint32_t *w = block->weights;
    const int32_t *table = block->table;
    for (int32_t c = block->channel; c < 0; c += 4, table += ES_NIBBLE_TABLE) {
        const uint8_t *shift = (const uint8_t *)(const void *)(table + 8);
        for (int32_t p = 1; p >= 0; p--) {
            uint32_t sums[4];
            for (int32_t k = 0; k < 4; k++)
                sums[k] = (uint32_t)block->start[4 * p + k];
            for (int32_t j = 0; j < block->tap_pairs; j++)
                es_nibble_add(sums, block->columns[4 * j + p], w[j]);
            for (int32_t k = 0; k < 4 && c + k < 0; k++)
                block->end[p][c + k] = (int8_t)es_scale_double(
                    (int32_t)((uint32_t)table[k] + (uint32_t)es_nibble_sum(sums, k) * 2u), table[4 + k], shift[k],
                    block->rounding);
        }
        w += block->tap_pairs;
    }
}
#endif

/* A block of four pixels, its tables in `bias`: es_gemm_4x2_s8 for weights of 4 bits. The last pixels are finished
 * first, so that what those beyond the image write is written again. */
static ES_NOINLINE ES_UNUSED void es_gemm_2x4_s4(const es_gemm_block *block)
{
    es_nibble_block pixels;
    int32_t start[4][4];
    uint32_t sums[4] = {0u, 0u, 0u, 0u};
    const uint32_t ones = 0x00010001u;
    ES_UNROLL_NOT
    for (const uint32_t *x = block->columns; x != block->columns_end; x += 4) {
        ES_UNROLL_FULL
        for (int32_t p = 0; p < 4; p++)
            sums[p] = es_smlad(x[p], ones, sums[p]);
    }
    ES_UNROLL_FULL
    for (int32_t p = 0; p < 4; p++)
        es_nibble_start((int32_t)sums[p] * -8, start[p]);
    pixels.weights = block->weights;
    pixels.table = block->bias;
    pixels.rounding = block->rounding;
    pixels.tap_pairs = block->tap_pairs;
    pixels.channel = block->channel;
    ES_UNROLL_NOT
    for (int32_t p = block->end[2] == block->end[1] ? 0 : 2; p >= 0; p -= 2) {
        pixels.columns = block->columns + p;
        pixels.columns_end = block->columns_end + p;
        pixels.start = start[p];
        pixels.end[0] = block->end[p];
        pixels.end[1] = block->end[p + 1];
        es_gemm_2x4_pixels_s4(&pixels);
    }
}

#endif
