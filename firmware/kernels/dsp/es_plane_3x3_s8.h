/* int8 depthwise convolution with 3x3 windows that move by one or two places, without dilation: one output channel over
 * a copy of its plane (es_depthwise_plane_s8.h). */
#ifndef ES_PLANE_3X3_S8_H
#define ES_PLANE_3X3_S8_H

#include "es_scale_s8.h"

/* One output channel of a 3x3 window; the assembly knows the order of the fields. */
typedef struct {
    int32_t bias2;      /* twice the bias */
    int32_t multiplier; /* next to offset */
    int32_t offset;
    int32_t shift;
    int32_t place_step; /* bytes of output from a place to the next */
    int32_t pairs;      /* bytes of output that all pairs of places of a line take; may be 0 */
    int32_t line_skip;  /* bytes of output from a line's end (of the pairs) to the next line's start */
    int32_t plane_skip; /* bytes of the plane from the end of a line's pairs to the next line's start */
    int32_t odd;        /* whether a line has a last place beyond the pairs */
    int32_t lines;
    int8_t *out;
    const int16_t *plane; /* aligned to four bytes */
    int32_t pitch; /* bytes of a line of the plane */
    const int8_t *weights; /* nine, readable to twelve bytes */
} es_plane_channel;

#if ES_DSP
ES_STATIC_ASSERT(plane_channel_layout, sizeof(es_plane_channel) == 56 && offsetof(es_plane_channel, plane) == 44);

/* Two outputs from one line: places x0, x1 and x2, x3; weights (w0, w1) and (w1, w2), all doubled. */
#define ES_PLANE_LINE(line, w01, w12)                                                                                  \
    "ldrd r11, r12, [" line "], #4\n"                                                                                  \
    "smlad r9, r11, " w01 ", r9\n"                                                                                     \
    "smlatb r10, r11, " w01 ", r10\n"                                                                                  \
    "smlabt r9, r12, " w12 ", r9\n"                                                                                    \
    "smlad r10, r12, " w12 ", r10\n"

#define ES_PLANE_LINE_END(line, w01, w12)                                                                              \
    "ldrd r11, r12, [" line "]\n"                                                                                      \
    "smlad r9, r11, " w01 ", r9\n"                                                                                     \
    "smlabt r9, r12, " w12 ", r9\n"

/* One output of a window that moves by two places. */
#define ES_PLANE_LINE_BY_2(line, w01, w12)                                                                             \
    "ldrd r11, r12, [" line "], #4\n"                                                                                  \
    "smlad r9, r11, " w01 ", r9\n"                                                                                     \
    "smlabt r9, r12, " w12 ", r9\n"

/* Three bytes w0, w1, w2 at r11 as (w0, w1) and (w1, w2), doubled. */
#define ES_PLANE_WEIGHTS(w01, w12)                                                                                     \
    "ldr r12, [r11], #3\n"                                                                                             \
    "sxtb16 " w01 ", r12\n"                                                                                            \
    "sxtb16 " w12 ", r12, ror #8\n"                                                                                    \
    "pkhbt r12, " w01 ", " w12 ", lsl #16\n"                                                                           \
    "pkhbt " w12 ", " w12 ", " w01 "\n"                                                                                \
    "sadd16 " w01 ", r12, r12\n"                                                                                       \
    "sadd16 " w12 ", " w12 ", " w12 "\n"

/* r0-r2 lines, r3-r8 weights, r9, r10 accumulators (doubled), lr output. The fields of es_plane_channel lie from sp
 * on: +0 bias2 +4 multiplier +8 offset +12 shift +16 place_step +20 pairs +24 line_skip +28 plane_skip +32 odd
 * +36 lines; +40 the end of a line's pairs. */
static ES_NAKED void es_plane_3x3_s8(const es_plane_channel *channel ES_UNUSED)
{
    __asm__ volatile(
        ".syntax unified\n"
        "push {r4-r11, lr}\n"
        "sub sp, #44\n"
        "ldm r0!, {r1-r10}\n"
        "stm sp, {r1-r10}\n"
        "ldm r0, {r9, r10, r11, r12}\n"
        "mov lr, r9\n"
        "mov r0, r10\n"
        "add r1, r0, r11\n"
        "add r2, r1, r11\n"
        "mov r11, r12\n" ES_PLANE_WEIGHTS("r3", "r4") ES_PLANE_WEIGHTS("r5", "r6") ES_PLANE_WEIGHTS("r7", "r8")
        "1:\n"
        "ldr r11, [sp, #20]\n"
        "cmp r11, #0\n"
        "beq 3f\n"
        "add r11, r11, lr\n"
        "str r11, [sp, #40]\n"
        ".balign 4\n"
        "2:\n"
        "ldr r9, [sp, #0]\n"
        "mov r10, r9\n" ES_PLANE_LINE("r0", "r3", "r4") ES_PLANE_LINE("r1", "r5", "r6") ES_PLANE_LINE("r2", "r7", "r8")
        "ldrd r11, r12, [sp, #4]\n"
        "add r12, r12, r9, asr #31\n"
        "smmlar r9, r9, r11, r12\n"
        "ldr r12, [sp, #8]\n"
        "add r12, r12, r10, asr #31\n"
        "smmlar r10, r10, r11, r12\n"
        "ldrd r11, r12, [sp, #12]\n"
        "asr r9, r9, r11\n"
        "asr r10, r10, r11\n"
        "ldr r11, [sp, #40]\n"
        "ssat r9, #8, r9, asr #1\n"
        "ssat r10, #8, r10, asr #1\n"
        "strb r9, [lr]\n"
        "strb r10, [lr, r12]\n"
        "add lr, lr, r12, lsl #1\n"
        "cmp lr, r11\n"
        "bne 2b\n"
        "3:\n"
        "ldr r11, [sp, #32]\n"
        "cmp r11, #0\n"
        "beq 4f\n"
        "ldr r9, [sp, #0]\n"
        ES_PLANE_LINE_END("r0", "r3", "r4") ES_PLANE_LINE_END("r1", "r5", "r6") ES_PLANE_LINE_END("r2", "r7", "r8")
        "ldrd r11, r12, [sp, #4]\n"
        "add r12, r12, r9, asr #31\n"
        "smmlar r9, r9, r11, r12\n"
        "ldr r11, [sp, #12]\n"
        "asr r9, r9, r11\n"
        "ssat r9, #8, r9, asr #1\n"
        "strb r9, [lr]\n"
        "4:\n"
        "ldrd r11, r12, [sp, #24]\n"
        "add lr, lr, r11\n"
        "add r0, r0, r12\n"
        "add r1, r1, r12\n"
        "add r2, r2, r12\n"
        "ldr r11, [sp, #36]\n"
        "subs r11, r11, #1\n"
        "str r11, [sp, #36]\n"
        "bne 1b\n"
        "add sp, #44\n"
        "pop {r4-r11, pc}\n" ::: "memory");
}

/* The same for windows that move by two places: `pairs` are the bytes of output of all places, `odd` is not read. */
static ES_NAKED void es_plane_3x3_by_2_s8(const es_plane_channel *channel ES_UNUSED)
{
    __asm__ volatile(
        ".syntax unified\n"
        "push {r4-r11, lr}\n"
        "sub sp, #44\n"
        "ldm r0!, {r1-r10}\n"
        "stm sp, {r1-r10}\n"
        "ldm r0, {r9, r10, r11, r12}\n"
        "mov lr, r9\n"
        "mov r0, r10\n"
        "add r1, r0, r11\n"
        "add r2, r1, r11\n"
        "mov r11, r12\n" ES_PLANE_WEIGHTS("r3", "r4") ES_PLANE_WEIGHTS("r5", "r6") ES_PLANE_WEIGHTS("r7", "r8")
        "1:\n"
        "ldr r10, [sp, #20]\n"
        "add r10, r10, lr\n" /* the end of the line's output */
        ".balign 4\n"
        "2:\n"
        "ldr r9, [sp, #0]\n"
        ES_PLANE_LINE_BY_2("r0", "r3", "r4") ES_PLANE_LINE_BY_2("r1", "r5", "r6") ES_PLANE_LINE_BY_2("r2", "r7", "r8")
        "ldrd r11, r12, [sp, #4]\n"
        "add r12, r12, r9, asr #31\n"
        "smmlar r9, r9, r11, r12\n"
        "ldrd r11, r12, [sp, #12]\n"
        "asr r9, r9, r11\n"
        "ssat r9, #8, r9, asr #1\n"
        "strb r9, [lr]\n"
        "add lr, lr, r12\n"
        "cmp lr, r10\n"
        "bne 2b\n"
        "ldrd r11, r12, [sp, #24]\n"
        "add lr, lr, r11\n"
        "add r0, r0, r12\n"
        "add r1, r1, r12\n"
        "add r2, r2, r12\n"
        "ldr r11, [sp, #36]\n"
        "subs r11, r11, #1\n"
        "str r11, [sp, #36]\n"
        "bne 1b\n"
        "add sp, #44\n"
        "pop {r4-r11, pc}\n" ::: "memory");
}
#else
/* The same in C, for windows that move by `step` places. */
ES_INLINE void es_plane_any_3x3_s8(const es_plane_channel *channel, int32_t step)
{
    const int16_t *line = channel->plane;
    int8_t *y = channel->out;
    for (int32_t l = 0; l < channel->lines; l++) {
        const int32_t places = channel->pairs / channel->place_step;
        for (int32_t place = 0; place < places + (step == 1 ? channel->odd : 0); place++) {
            uint32_t acc = (uint32_t)channel->bias2;
            for (int32_t k = 0; k < 3; k++) {
                const int16_t *x = line + k * (channel->pitch / 2) + step * place;
                const int8_t *w = channel->weights + 3 * k;
                acc += 2u * (uint32_t)(x[0] * w[0] + x[1] * w[1] + x[2] * w[2]);
            }
            const int32_t acc2 = (int32_t)acc;
            const int32_t t = es_smmlar(acc2, channel->multiplier, channel->offset) + (acc2 >> 31);
            y[place * channel->place_step] = (int8_t)es_half_s8(t >> channel->shift);
        }
        line += step * places + channel->plane_skip / 2;
        y += channel->pairs + channel->line_skip;
    }
}

static ES_NOINLINE ES_UNUSED void es_plane_3x3_s8(const es_plane_channel *channel) { es_plane_any_3x3_s8(channel, 1); }
static ES_NOINLINE ES_UNUSED void es_plane_3x3_by_2_s8(const es_plane_channel *channel)
{
    es_plane_any_3x3_s8(channel, 2);
}
#endif

#endif
