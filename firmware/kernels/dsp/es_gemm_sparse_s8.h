/* Products of four columns of activations with output channels of block-sparse weights: es_gemm_s8.h for layers most
 * of whose blocks of four taps are zero.
 *
 * Weights hold a word with the number of blocks that are not, then these blocks, a word each of four taps as they lie
 * in memory, then places, four bytes a word, the lowest first: for each channel the count of its blocks, and for each
 * block how many blocks of zeros come before it. Every channel has at least one block. A block takes 17 instructions for
 * its 16 products, against 24 for 32 where nothing is skipped. */
#ifndef ES_GEMM_SPARSE_S8_H
#define ES_GEMM_SPARSE_S8_H

#include "es_gemm_s8.h"

#if ES_DSP
#define ES_SPARSE_SCALE(acc)                                                                                           \
    "lsl " acc ", " acc ", #1\n"                                                                                       \
    "smmlar r6, " acc ", r11, r10\n"                                                                                   \
    "add " acc ", r6, " acc ", asr #31\n"                                                                              \
    "asr " acc ", " acc ", lr\n"                                                                                       \
    "ssat " acc ", #8, " acc ", asr #1\n"

/* r0 blocks, r1 columns, r2-r5 the four pixels, r12 places. The block is read where it is: +0 weights +4 bias +8 columns
 * +16 rounding +24 scale_mask +28 multiplier +32 shift +36..+48 end +52 channel; on the stack sp+0 bias +4 channel
 * +8 block. C99 promises strings of 4095 characters, hence two. */
static ES_NAKED void es_gemm_4x1_sparse_s8(const es_gemm_block *block ES_UNUSED)
{
    __asm__ volatile(".syntax unified\n"
                     "push {r4-r11, lr}\n"
                     "sub sp, #12\n"
                     "ldr r1, [r0, #4]\n"
                     "ldr r2, [r0, #52]\n"
                     "strd r1, r2, [sp, #0]\n"
                     "str r0, [sp, #8]\n"
                     "ldr r0, [r0, #0]\n"
                     "ldr r12, [r0], #4\n"
                     "add r12, r0, r12, lsl #2\n"
                     "1:\n"
                     "ldr r10, [sp, #0]\n"
                     "ldr r11, [sp, #8]\n"
                     "ldr r2, [r10], #4\n"
                     "str r10, [sp, #0]\n"
                     "ldr r1, [r11, #8]\n"
                     "ldrb lr, [r12], #1\n"
                     "mov r3, r2\n"
                     "mov r4, r2\n"
                     "mov r5, r2\n"
                     ".balign 4\n"
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
                     "subs lr, lr, #1\n"
                     "bne 2b\n" ::
                         : "memory");
    __asm__ volatile("ldrd r1, r9, [sp, #4]\n"
                     "ldrd r6, r7, [r9, #24]\n"
                     "ldr r8, [r9, #32]\n"
                     "ldr r10, [r9, #16]\n"
                     "and r6, r6, r1\n"
                     "ldr r11, [r7, r6, lsl #2]\n"
                     "ldrb lr, [r8, r6]\n"
                     "lsl r10, r10, lr\n" ES_SPARSE_SCALE("r2") ES_SPARSE_SCALE("r3") ES_SPARSE_SCALE("r4")
                         ES_SPARSE_SCALE("r5")
                     "ldrd r6, r7, [r9, #36]\n"
                     "ldrd r8, r9, [r9, #44]\n"
                     "strb r5, [r9, r1]\n"
                     "strb r4, [r8, r1]\n"
                     "strb r3, [r7, r1]\n"
                     "strb r2, [r6, r1]\n"
                     "adds r1, r1, #1\n"
                     "str r1, [sp, #4]\n"
                     "bne.w 1b\n"
                     "add sp, #12\n"
                     "pop {r4-r11, pc}\n" ::
                         : "memory");
}
#else
/* The same in C. */
ES_INLINE int32_t es_sparse_place(const uint32_t *places, int32_t at)
{
    return (int32_t)(places[at >> 2] >> 8 * (at & 3) & 0xFFu);
}

static ES_NOINLINE ES_UNUSED void es_gemm_4x1_sparse_s8(const es_gemm_block *block)
{
    const uint32_t *w = block->weights + 1;
    const uint32_t *places = w + block->weights[0];
    const int32_t *bias = block->bias;
    int32_t at = 0;
    for (int32_t c = block->channel; c < 0; c++, bias++) {
        const int32_t multiplier = block->multiplier[c & block->scale_mask];
        const int32_t shift = block->shift[c & block->scale_mask];
        const int32_t blocks = es_sparse_place(places, at++);
        for (int32_t p = 3; p >= 0; p--) {
            uint32_t acc = (uint32_t)*bias;
            const uint32_t *x = block->columns + p;
            for (int32_t j = 0; j < blocks; j++, x += 8) {
                x += 8 * es_sparse_place(places, at + j);
                acc = es_smlad(x[0], es_sxtb16(w[j]), acc);
                acc = es_smlad(x[4], es_sxtb16_odd(w[j]), acc);
            }
            block->end[p][c] = (int8_t)es_scale_double((int32_t)(acc * 2u), multiplier, shift, block->rounding);
        }
        w += blocks;
        at += blocks;
    }
}
#endif

#endif
