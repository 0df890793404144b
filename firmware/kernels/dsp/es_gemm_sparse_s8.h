/* Products of four columns of activations with output channels most of whose weights are zero: what es_gemm_s8.h does,
 * by blocks of four taps, or by pairs of taps from within a block.
 *
 * One stream of words holds all that a channel needs, channel after channel. A head of a word in front and one with each
 * channel say what comes next (bits 8 and 9): another channel with weights (0), one without, whose output never changes
 * (3), or nothing (2). A channel without weights is one word: its output in the lowest byte, what comes next.
 *
 * Blocks: bias, the first block, head, the other blocks, offset, multiplier. A block is a word of four taps as they lie in
 * memory. Head: shift (bits 0-7), blocks from the last one of the channel before to the first (10-22, signed), number of
 * blocks after the first (23-31). How many blocks of zeros come before each of the others is a byte in places, behind the
 * stream, whose length in words is in bits 10-31 of the first head. 17 instructions for the 16 products of a block, against
 * 24 for 32 where nothing is skipped.
 *
 * Pairs: columns hold all six pairs of a block's four taps, in the order (0, 2), (1, 3), (0, 1), (2, 3), (0, 3), (1, 2). A
 * word of the stream has the weights of two of them, the first in bytes 0 and 2; steps has a byte for each of four, by
 * how far it lies behind the one before. Bias, weights, steps, head, then two words of weights and one of steps for each
 * four that follow, multiplier and offset in place of the first weights and the steps of the next. Head: shift, whether only the
 * second half of the first steps counts (bit 10), groups of four after the first (11-31). 32 instructions for the 32
 * products of four pairs: where two of four weights are zero, against 48.
 *
 * offset: (2 * zero_point + 1 of the output) << shift. */
#ifndef ES_GEMM_SPARSE_S8_H
#define ES_GEMM_SPARSE_S8_H

#include "es_gemm_s8.h"

#define ES_SPARSE_CONSTANT 0x100u

#if ES_DSP
#define ES_SPARSE_SCALE(acc, multiplier, offset)                                                                       \
    "lsl " acc ", " acc ", #1\n"                                                                                       \
    "smmlar r6, " acc ", " multiplier ", " offset "\n"                                                                 \
    "add " acc ", r6, " acc ", asr #31\n"                                                                              \
    "asr " acc ", " acc ", lr\n"                                                                                       \
    "ssat " acc ", #8, " acc ", asr #1\n"

/* sp+0 outputs of the four pixels, +16 columns; r0 the stream. The block is read: +0 weights +8 columns +36..+48 end
 * +52 channel. */
#define ES_SPARSE_ENTER                                                                                                \
    ".syntax unified\n"                                                                                                \
    "push {r4-r11, lr}\n"                                                                                              \
    "sub sp, #20\n"                                                                                                    \
    "ldr r6, [r0, #52]\n"                                                                                              \
    "ldrd r2, r3, [r0, #36]\n"                                                                                         \
    "ldrd r4, r5, [r0, #44]\n"                                                                                         \
    "ldr r1, [r0, #8]\n"                                                                                               \
    "ldr r0, [r0, #0]\n"                                                                                               \
    "add r2, r2, r6\n"                                                                                                 \
    "add r3, r3, r6\n"                                                                                                 \
    "add r4, r4, r6\n"                                                                                                 \
    "add r5, r5, r6\n"                                                                                                 \
    "ldr lr, [r0], #4\n"                                                                                               \
    "str r1, [sp, #16]\n"                                                                                              \
    "stm sp, {r2-r5}\n"

/* Accumulators r2-r5, stored from the last pixel to the first; then the next channel with weights from 1 on. Bits 9 and
 * 8 of lr become carry and sign. */
#define ES_SPARSE_LEAVE(multiplier, offset)                                                                            \
    ES_SPARSE_SCALE("r2", multiplier, offset)                                                                          \
    ES_SPARSE_SCALE("r3", multiplier, offset)                                                                          \
    ES_SPARSE_SCALE("r4", multiplier, offset)                                                                          \
    ES_SPARSE_SCALE("r5", multiplier, offset)                                                                          \
    "ldm sp, {r6-r9}\n"                                                                                                \
    "strb r5, [r9], #1\n"                                                                                              \
    "strb r4, [r8], #1\n"                                                                                              \
    "strb r3, [r7], #1\n"                                                                                              \
    "strb r2, [r6], #1\n"                                                                                              \
    "stm sp, {r6-r9}\n"                                                                                                \
    "5:\n"                                                                                                             \
    "lsls r10, lr, #23\n"                                                                                              \
    "bcc.w 1b\n"                                                                                                       \
    "bpl 7f\n"                                                                                                         \
    "6:\n"                                                                                                             \
    "ldr lr, [r0], #4\n"                                                                                               \
    "ldm sp, {r6-r9}\n"                                                                                                \
    "strb lr, [r9], #1\n"                                                                                              \
    "strb lr, [r8], #1\n"                                                                                              \
    "strb lr, [r7], #1\n"                                                                                              \
    "strb lr, [r6], #1\n"                                                                                              \
    "stm sp, {r6-r9}\n"                                                                                                \
    "lsls r10, lr, #23\n"                                                                                              \
    "bcc.w 1b\n"                                                                                                       \
    "bmi 6b\n"                                                                                                         \
    "7:\n"                                                                                                             \
    "add sp, #20\n"                                                                                                    \
    "pop {r4-r11, pc}\n"

/* r1 columns, r12 places. The first block of a channel adds to its bias in r5. */
static ES_NAKED void es_gemm_blocks_s8(const es_gemm_block *block ES_UNUSED)
{
    __asm__ volatile(ES_SPARSE_ENTER
                     "lsr r12, lr, #10\n"
                     "add r12, r0, r12, lsl #2\n"
                     "b.w 5f\n"
                     ".balign 4\n"
                     "1:\n"
                     "ldm r0!, {r5, r11, lr}\n"
                     "sbfx r6, lr, #10, #13\n"
                     "add r1, r1, r6, lsl #5\n"
                     "sxtb16 r10, r11\n"
                     "ldm r1!, {r6-r9}\n"
                     "smlad r2, r6, r10, r5\n"
                     "smlad r3, r7, r10, r5\n"
                     "smlad r4, r8, r10, r5\n"
                     "smlad r5, r9, r10, r5\n"
                     "sxtb16 r11, r11, ror #8\n"
                     "ldm r1!, {r6-r9}\n"
                     "smlad r2, r6, r11, r2\n"
                     "smlad r3, r7, r11, r3\n"
                     "smlad r4, r8, r11, r4\n"
                     "smlad r5, r9, r11, r5\n"
                     "subs lr, lr, #0x800000\n"
                     "bmi 3f\n"
                     "2:\n"
                     "ldrb r6, [r12], #1\n"
                     "ldr r11, [r0], #4\n"
                     "add r1, r1, r6, lsl #5\n"
                     "sxtb16 r10, r11\n"
                     "sxtb16 r11, r11, ror #8\n"
                     "ldm r1!, {r6-r9}\n"
                     "smlad r2, r6, r10, r2\n"
                     "smlad r3, r7, r10, r3\n"
                     "smlad r4, r8, r10, r4\n"
                     "smlad r5, r9, r10, r5\n"
                     "ldm r1!, {r6-r9}\n"
                     "smlad r2, r6, r11, r2\n"
                     "smlad r3, r7, r11, r3\n"
                     "smlad r4, r8, r11, r4\n"
                     "smlad r5, r9, r11, r5\n"
                     "subs lr, lr, #0x800000\n"
                     "bpl 2b\n"
                     "3:\n" ::
                         : "memory");
    /* C99 promises strings of 4095 characters, hence two. */
    __asm__ volatile("ldm r0!, {r10, r11}\n" ES_SPARSE_LEAVE("r11", "r10")::: "memory");
}

/* r1 columns, r12 steps. Behind the last pairs r11 and r12 hold multiplier and offset. */
static ES_NAKED void es_gemm_pairs_s8(const es_gemm_block *block ES_UNUSED)
{
    __asm__ volatile(ES_SPARSE_ENTER
                     "b.w 5f\n"
                     ".balign 4\n"
                     "1:\n"
                     "ldm r0!, {r2, r11, r12, lr}\n"
                     "ldr r1, [sp, #16]\n"
                     "mov r3, r2\n"
                     "mov r4, r2\n"
                     "mov r5, r2\n"
                     "lsls r10, lr, #22\n"
                     "bcs 3f\n"
                     "2:\n"
                     "uxtab r1, r1, r12\n"
                     "sxtb16 r10, r11\n"
                     "ldm r1, {r6-r9}\n"
                     "smlad r2, r6, r10, r2\n"
                     "smlad r3, r7, r10, r3\n"
                     "smlad r4, r8, r10, r4\n"
                     "smlad r5, r9, r10, r5\n"
                     "uxtab r1, r1, r12, ror #8\n"
                     "sxtb16 r11, r11, ror #8\n"
                     "ldm r1, {r6-r9}\n"
                     "smlad r2, r6, r11, r2\n"
                     "smlad r3, r7, r11, r3\n"
                     "smlad r4, r8, r11, r4\n"
                     "smlad r5, r9, r11, r5\n"
                     "ldr r11, [r0], #4\n"
                     "3:\n"
                     "uxtab r1, r1, r12, ror #16\n"
                     "sxtb16 r10, r11\n"
                     "ldm r1, {r6-r9}\n"
                     "smlad r2, r6, r10, r2\n"
                     "smlad r3, r7, r10, r3\n"
                     "smlad r4, r8, r10, r4\n"
                     "smlad r5, r9, r10, r5\n"
                     "uxtab r1, r1, r12, ror #24\n"
                     "sxtb16 r11, r11, ror #8\n"
                     "ldm r1, {r6-r9}\n"
                     "smlad r2, r6, r11, r2\n"
                     "smlad r3, r7, r11, r3\n"
                     "smlad r4, r8, r11, r4\n"
                     "smlad r5, r9, r11, r5\n"
                     "ldm r0!, {r11, r12}\n"
                     "subs lr, lr, #0x800\n"
                     "bpl.w 2b\n" ::
                         : "memory");
    __asm__ volatile(ES_SPARSE_LEAVE("r11", "r12")::: "memory");
}
#else
/* The same in C. Signed fields of a head, whose upper bits hold `count` blocks or groups less one. */
ES_INLINE int32_t es_sparse_delta(uint32_t head)
{
    return (int32_t)((head >> 10 & 0x1FFFu) ^ 0x1000u) - 0x1000;
}

ES_INLINE int8_t es_sparse_output(uint32_t acc, uint32_t multiplier, uint32_t offset, uint32_t shift)
{
    const int32_t acc2 = (int32_t)(acc * 2u);
    return (int8_t)es_half_s8((es_smmlar(acc2, (int32_t)multiplier, (int32_t)offset) + (acc2 >> 31)) >> shift);
}

/* Whether channel c has no weights: then its output is stored. */
ES_INLINE int32_t es_sparse_constant(const es_gemm_block *block, int32_t c, uint32_t head, uint32_t value)
{
    if ((head & ES_SPARSE_CONSTANT) == 0)
        return 0;
    for (int32_t p = 3; p >= 0; p--)
        block->end[p][c] = (int8_t)(uint8_t)(value & 0xFFu);
    return 1;
}

static ES_NOINLINE ES_UNUSED void es_gemm_blocks_s8(const es_gemm_block *block)
{
    const uint32_t *w = block->weights + 1;
    const uint32_t *places = w + (block->weights[0] >> 10);
    uint32_t head = block->weights[0];
    int32_t at = 0, before = 0;
    for (int32_t c = block->channel; c < 0; c++) {
        if (es_sparse_constant(block, c, head, *w)) {
            head = *w++;
            continue;
        }
        head = w[2];
        const int32_t others = (int32_t)(head >> 23), first = before + es_sparse_delta(head);
        const uint32_t *const scale = w + 3 + others;
        for (int32_t p = 3; p >= 0; p--) {
            uint32_t acc = w[0];
            const uint32_t *x = block->columns + 8 * first + p;
            before = first + 1;
            for (int32_t j = 0; j <= others; j++, x += 8) {
                const uint32_t taps = j == 0 ? w[1] : w[2 + j];
                if (j > 0) {
                    const int32_t i = at + j - 1, step = (int32_t)(places[i >> 2] >> 8 * (i & 3) & 0xFFu);
                    x += 8 * step;
                    before += step + 1;
                }
                acc = es_smlad(x[0], es_sxtb16(taps), acc);
                acc = es_smlad(x[4], es_sxtb16_odd(taps), acc);
            }
            block->end[p][c] = es_sparse_output(acc, scale[1], scale[0], head & 0xFFu);
        }
        w = scale + 2;
        at += others;
    }
}

static ES_NOINLINE ES_UNUSED void es_gemm_pairs_s8(const es_gemm_block *block)
{
    const uint32_t *w = block->weights + 1;
    uint32_t head = block->weights[0];
    for (int32_t c = block->channel; c < 0; c++) {
        if (es_sparse_constant(block, c, head, *w)) {
            head = *w++;
            continue;
        }
        head = w[3];
        const uint32_t *next = w;
        for (int32_t p = 3; p >= 0; p--) {
            uint32_t acc = w[0], taps = w[1], steps = w[2];
            const uint32_t *x = block->columns + p;
            next = w + 4;
            int32_t i = (head >> 10 & 1u) != 0 ? 2 : 0;
            for (int32_t left = (int32_t)(head >> 11); left >= 0; left--) {
                for (; i < 4; i++) {
                    if (i == 2 && (next != w + 4 || (head >> 10 & 1u) == 0))
                        taps = *next++;
                    x += (steps >> 8 * i & 0xFFu) / 4u;
                    acc = es_smlad(*x, i % 2 == 0 ? es_sxtb16(taps) : es_sxtb16_odd(taps), acc);
                }
                i = 0;
                taps = next[0];
                steps = next[1];
                next += 2;
            }
            block->end[p][c] = es_sparse_output(acc, taps, steps, head & 0xFFu);
        }
        w = next;
    }
}
#endif

#endif
