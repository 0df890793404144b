/* Products of four columns of activations with pairs of output channels: the core of the dsp convolutions.
 *
 * Columns hold taps as 16-bit values, two taps of a pixel in a word, four pixels side by side:
 *   columns[4 * j + p] = taps (a_j, b_j) of pixel p.
 * Weights hold, for the same two taps, both channels of a pair in each half of a word: half = 256 * w1 + w0. One SMLAD
 * then adds 256 * acc1 + acc0, and another, after SXTB16 has cut out w0, adds acc0; at the end acc1 is the difference
 * shifted down. Eight products take eight bits of weights a MAC, one SXTB16 and no second unpacking. The difference is
 * exact modulo 2^24, so every |acc1| must stay below 2^23 (es_gemm_4x2_wide_s8: within 2^23 of a centre), and 256 * w1 + w0 within 16 bits (w1 = -128 only beside
 * w0 >= 0): the code generator proves both. */
#ifndef ES_GEMM_S8_H
#define ES_GEMM_S8_H

#include "es_scale_s8.h"

/* One block of four pixels; the assembly knows the order of the fields. Tables of a value a channel are given by their
 * ends, with `scale_mask` -1; where one scale serves all channels, by their starts, with 0. */
typedef struct {
    const uint32_t *weights; /* [channel pairs][tap pairs] */
    const int32_t *bias;     /* [channel pairs][2]: b0, 256 * b1 + b0, input zero-point folded in */
    const uint32_t *columns;
    const uint32_t *columns_end;
    int32_t rounding; /* 2 * zero_point + 1 of the output */
    int32_t tap_pairs;
    int32_t scale_mask;
    const int32_t *multiplier;
    const uint8_t *shift; /* aligned to two bytes with its start; a pair's are read at once */
    int8_t *end[4];       /* behind the last channel of each pixel; those beyond the image repeat the last one inside, which
                           * is stored after them */
    int32_t channel;      /* minus the channels */
} es_gemm_block;

#if ES_DSP
ES_STATIC_ASSERT(gemm_block_layout, sizeof(es_gemm_block) == 56 && offsetof(es_gemm_block, end) == 36);

#define ES_GEMM_TAPS                                                                                                   \
    "ldr.w r10, [r0], #4\n"                                                                                            \
    "sxtb16 r11, r10\n"                                                                                                \
    "ldrd r12, lr, [r1], #8\n"                                                                                         \
    "smlad r2, r12, r11, r2\n"                                                                                         \
    "smlad r6, r12, r10, r6\n"                                                                                         \
    "smlad r3, lr, r11, r3\n"                                                                                          \
    "smlad r7, lr, r10, r7\n"                                                                                          \
    "ldrd r12, lr, [r1], #8\n"                                                                                         \
    "smlad r4, r12, r11, r4\n"                                                                                         \
    "smlad r8, r12, r10, r8\n"                                                                                         \
    "smlad r5, lr, r11, r5\n"                                                                                          \
    "smlad r9, lr, r10, r9\n"

/* acc is twice the accumulator; r11 multiplier, r10 offset, lr shift */
#define ES_GEMM_SCALE(acc, multiplier)                                                                                 \
    "smmlar r1, " acc ", " multiplier ", r10\n"                                                                        \
    "add " acc ", r1, " acc ", asr #31\n"                                                                              \
    "asr " acc ", " acc ", lr\n"                                                                                       \
    "ssat " acc ", #8, " acc ", asr #1\n"

/* r0 weights, r1 columns, r2-r5 channel 0 of the four pixels, r6-r9 both channels. The block is copied to the stack:
 * sp+0 bias +4 columns +8 columns_end +12 rounding +16 entry of the loop +20 scale_mask +24 multiplier +28 shift
 * +32..+44 end +48 channel. C99 promises strings of 4095 characters, hence two. */
#define ES_GEMM_FUNCTION(BIAS, CENTRE)                                                                                 \
    __asm__ volatile(                                                                                                  \
        ".syntax unified\n"                                                                                            \
        "push {r4-r11, lr}\n"                                                                                          \
        "sub sp, #52\n"                                                                                                \
        "ldm r0!, {r1-r7}\n"                                                                                           \
        /* The loop takes eight tap pairs a turn; the first turn starts where tap_pairs % 8 are left. */               \
        "rsb r6, r6, #0\n"                                                                                             \
        "and r6, r6, #7\n"                                                                                             \
        "adr.w r8, 2f\n"                                                                                               \
        "add r6, r6, r6, lsl #1\n" /* 48 bytes of code a tap pair */                                                   \
        "add r6, r8, r6, lsl #4\n"                                                                                     \
        "orr r6, r6, #1\n"                                                                                             \
        "stm sp, {r2-r7}\n"                                                                                            \
        "ldm r0, {r2-r8}\n"                                                                                            \
        "add r0, sp, #24\n"                                                                                            \
        "stm r0, {r2-r8}\n"                                                                                            \
        "mov r0, r1\n"                                                                                                 \
        "1:\n"                                                                                                         \
        "ldrd r10, r1, [sp, #0]\n"                                                                                     \
        "ldrd r2, r6, [r10], #" BIAS "\n"                                                                              \
        "str r10, [sp, #0]\n"                                                                                          \
        "mov r3, r2\n"                                                                                                 \
        "mov r4, r2\n"                                                                                                 \
        "mov r5, r2\n"                                                                                                 \
        "mov r7, r6\n"                                                                                                 \
        "mov r8, r6\n"                                                                                                 \
        "mov r9, r6\n"                                                                                                 \
        "ldr.w pc, [sp, #16]\n"                                                                                        \
        ".balign 4\n"                                                                                                  \
        "2:\n" ES_GEMM_TAPS ES_GEMM_TAPS ES_GEMM_TAPS ES_GEMM_TAPS ES_GEMM_TAPS ES_GEMM_TAPS ES_GEMM_TAPS ES_GEMM_TAPS \
        "ldr r10, [sp, #8]\n"                                                                                          \
        "cmp r1, r10\n"                                                                                                \
        "bne.w 2b\n" ::: "memory");                                                                                    \
    __asm__ volatile(                                                                                                  \
        "ldr r1, [sp, #48]\n"                                                                                          \
        "ldrd r10, r12, [sp, #20]\n"                                                                                   \
        "ldr lr, [sp, #28]\n"                                                                                          \
        "and r10, r10, r1\n"                                                                                           \
        "add r12, r12, r10, lsl #2\n"                                                                                  \
        "ldrh lr, [lr, r10]\n"                                                                                         \
        "ldm r12, {r11, r12}\n"                                                                                        \
        "ldr r10, [sp, #12]\n"                                                                                         \
        "sub r6, r6, r2\n"                                                                                             \
        "sub r7, r7, r3\n"                                                                                             \
        "sub r8, r8, r4\n"                                                                                             \
        "sub r9, r9, r5\n"                                                                                             \
        "lsl r10, r10, lr\n" /* shifts by registers take the lowest byte */                                            \
        "lsl r2, r2, #1\n"                                                                                             \
        "lsl r3, r3, #1\n"                                                                                             \
        "lsl r4, r4, #1\n"                                                                                             \
        "lsl r5, r5, #1\n"                                                                                             \
        ES_GEMM_SCALE("r2", "r11") ES_GEMM_SCALE("r3", "r11") ES_GEMM_SCALE("r4", "r11") ES_GEMM_SCALE("r5", "r11")    \
        "ldr r10, [sp, #12]\n"                                                                                         \
        "lsr lr, lr, #8\n"                                                                                             \
        "lsl r10, r10, lr\n"                                                                                           \
        "asr r6, r6, #7\n"                                                                                             \
        "asr r7, r7, #7\n"                                                                                             \
        "asr r8, r8, #7\n"                                                                                             \
        "asr r9, r9, #7\n" CENTRE                                                                                      \
        ES_GEMM_SCALE("r6", "r12") ES_GEMM_SCALE("r7", "r12") ES_GEMM_SCALE("r8", "r12") ES_GEMM_SCALE("r9", "r12")    \
        "ldrd r10, r11, [sp, #32]\n"                                                                                   \
        "ldrd r12, lr, [sp, #40]\n"                                                                                    \
        "ldr r1, [sp, #48]\n"                                                                                          \
        "strb r5, [lr, r1]\n"                                                                                          \
        "strb r4, [r12, r1]\n"                                                                                         \
        "strb r3, [r11, r1]\n"                                                                                         \
        "strb r2, [r10, r1]\n"                                                                                         \
        "adds r1, r1, #1\n"                                                                                            \
        "beq 3f\n"                                                                                                     \
        "strb r9, [lr, r1]\n"                                                                                          \
        "strb r8, [r12, r1]\n"                                                                                         \
        "strb r7, [r11, r1]\n"                                                                                         \
        "strb r6, [r10, r1]\n"                                                                                         \
        "adds r1, r1, #1\n"                                                                                            \
        "str r1, [sp, #48]\n"                                                                                          \
        "bne.w 1b\n"                                                                                                   \
        "3:\n"                                                                                                         \
        "add sp, #52\n"                                                                                                \
        "pop {r4-r11, pc}\n" ::: "memory")

static ES_NAKED void es_gemm_4x2_s8(const es_gemm_block *block ES_UNUSED) { ES_GEMM_FUNCTION("8", ""); }

#define ES_GEMM_CENTRE                                                                                                 \
    "ldr r1, [sp, #0]\n"                                                                                               \
    "ldr r1, [r1, #-4]\n"                                                                                              \
    "add r6, r6, r1\n"                                                                                                 \
    "add r7, r7, r1\n"                                                                                                 \
    "add r8, r8, r1\n"                                                                                                 \
    "add r9, r9, r1\n"

/* For odd channels whose accumulators reach 2^23 but stay within 2^23 of a centre, as those with a large bias do:
 * bias holds three words a channel pair, b0, 256 * (b1 - centre) + b0, 2 * centre. */
static ES_NAKED void es_gemm_4x2_wide_s8(const es_gemm_block *block ES_UNUSED)
{
    ES_GEMM_FUNCTION("12", ES_GEMM_CENTRE);
}
#else
/* The same in C. */
ES_INLINE void es_gemm_4x2_any_s8(const es_gemm_block *block, int32_t wide)
{
    const uint32_t *w = block->weights;
    const int32_t *bias = block->bias;
    for (int32_t c = block->channel; c < 0; c += 2, bias += wide ? 3 : 2) {
        const uint32_t centre2 = wide ? (uint32_t)bias[2] : 0u;
        const int32_t *multiplier = block->multiplier + (c & block->scale_mask);
        const uint8_t *shift = block->shift + (c & block->scale_mask);
        for (int32_t p = 3; p >= 0; p--) {
            uint32_t acc0 = (uint32_t)bias[0], both = (uint32_t)bias[1];
            const uint32_t *x = block->columns + p;
            for (int32_t j = 0; j < block->tap_pairs; j++) {
                acc0 = es_smlad(x[4 * j], es_sxtb16(w[j]), acc0);
                both = es_smlad(x[4 * j], w[j], both);
            }
            int8_t *y = block->end[p] + c;
            y[0] = (int8_t)es_scale_double((int32_t)(acc0 * 2u), multiplier[0], shift[0], block->rounding);
            const int32_t odd2 = (int32_t)((uint32_t)((int32_t)(both - acc0) >> 7) + centre2);
            if (c + 1 < 0)
                y[1] = (int8_t)es_scale_double(odd2, multiplier[1], shift[1], block->rounding);
        }
        w += block->tap_pairs;
    }
}

static ES_NOINLINE ES_UNUSED void es_gemm_4x2_s8(const es_gemm_block *block) { es_gemm_4x2_any_s8(block, 0); }
static ES_NOINLINE ES_UNUSED void es_gemm_4x2_wide_s8(const es_gemm_block *block) { es_gemm_4x2_any_s8(block, 1); }
#endif

#endif
