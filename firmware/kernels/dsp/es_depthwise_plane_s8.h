/* int8 depthwise convolution, one channel at a time over a copy of its plane.
 *
 * A channel is copied to scratch as 16-bit values with its padding around it, so that two neighbouring pixels are one
 * word and no window needs a test. Nothing of a channel is read after its first output is written, and other channels
 * are not touched: the output may take the input's place exactly. The memory planner relies on this.
 *
 * The plane may be stored transposed, columns as rows, where that makes its rows longer. */
#ifndef ES_DEPTHWISE_PLANE_S8_H
#define ES_DEPTHWISE_PLANE_S8_H

#include "es_dot_s8.h"
#include "es_scale_s8.h"

/* Lines are rows of the plane as stored, places the pixels in them; of inputs and outputs likewise. Bytes, halves and
 * elements are named where they matter. */
typedef struct {
    int32_t in_line_step, in_place_step;   /* elements of the input tensor from one to the next */
    int32_t out_line_step, out_place_step; /* elements of the output tensor */
    int16_t in_lines, in_places;           /* pixels of the input */
    int16_t out_lines, out_places;         /* pixels of the output */
    int16_t lines, pitch;                  /* of the plane: lines, halves from one to the next (even) */
    int16_t pad_line, pad_place;           /* padding before */
    int16_t k_lines, k_places;
    int16_t stride_line, stride_place;
    int16_t dilation_line, dilation_place;
    int16_t channels, multiplier; /* of the input; output channels for each */
} es_plane;

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

typedef struct {
    /* 3x3 windows without dilation that move by one or two places: bytes [channels][9], and three more.
     * Others: words of two taps each, [channels][k_lines][(k_places + 1) / 2], or of one where places are dilated.
     * Weights of 4 bits: those bytes (but nine a channel), or the taps in those words, two a byte (es_dot_s8.h). */
    const void *weights;
    void (*kernel)(const es_plane_channel *); /* for 3x3 windows; NULL for others */
    const int32_t *bias; /* input zero-point folded in */
    es_scales scales;
    int32_t in_zero_point;
    int32_t rounding;
} es_depthwise_weights;

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

/* A line of a channel: `count` elements to consecutive halves. */
ES_INLINE void es_plane_copy_line_s8(const int8_t *from, int32_t step, int32_t count, int16_t *to)
{
    const int32_t two = 2 * step;
    ES_UNROLL_NOT
    for (; count >= 4; count -= 4) {
        const int8_t a = from[0], b = from[step];
        from += two;
        const int8_t c = from[0], d = from[step];
        from += two;
        to[0] = a;
        to[1] = b;
        to[2] = c;
        to[3] = d;
        to += 4;
        __asm__("" : "+r"(from), "+r"(to));
    }
    ES_UNROLL_NOT
    for (; count > 0; count--) {
        *to++ = *from;
        from += step;
    }
}

/* One output channel of any window. Two taps of a line are one word, at any address. */
ES_INLINE void es_plane_channel_s8(const int16_t *plane, int8_t *out, const uint32_t *w, int32_t bias, int32_t multiplier,
                                   int32_t shift, int32_t rounding, const es_plane *g)
{
    const int32_t words = g->dilation_place == 1 ? (g->k_places + 1) / 2 : g->k_places;
    ES_UNROLL_NOT
    for (int32_t l = 0; l < g->out_lines; l++) {
        const int16_t *x = plane + l * g->stride_line * g->pitch;
        int8_t *y = out + l * g->out_line_step;
        ES_UNROLL_NOT
        for (int32_t place = 0; place < g->out_places; place++) {
            uint32_t acc = (uint32_t)bias;
            const uint32_t *word = w;
            ES_UNROLL_NOT
            for (int32_t k = 0; k < g->k_lines; k++) {
                const int16_t *tap = x + k * g->dilation_line * g->pitch;
                ES_UNROLL_FULL
                for (int32_t i = 0; i < words; i++) {
                    if (g->dilation_place == 1)
                        acc = es_smlad(es_load_halves(tap + 2 * i), word[i], acc);
                    else
                        acc += (uint32_t)(tap[i * g->dilation_place] * (int32_t)word[i]);
                }
                word += words;
            }
            *y = (int8_t)es_scale_double((int32_t)(acc * 2u), multiplier, shift, rounding);
            y += g->out_place_step;
            x += g->stride_place;
        }
    }
}

/* Weights `index` and on of 4 bits as the words of es_plane_channel_s8. */
ES_INLINE void es_plane_words_s4(const int8_t *nibbles, int32_t index, uint32_t *to, int32_t words, const es_plane *g)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < words; i++) {
        const int32_t first = es_weight_s4(nibbles, index++);
        if (g->dilation_place == 1)
            to[i] = es_pair(first, es_weight_s4(nibbles, index++));
        else
            to[i] = (uint32_t)first;
    }
}

/* scratch: lines * pitch halves and two more, aligned to four bytes; for weights of 4 bits of windows that are not 3x3,
 * then the words of a channel. bits: of a weight. */
ES_INLINE void es_depthwise_any_s8(const int8_t *in, int8_t *out, int16_t *scratch, const es_plane *g,
                                   const es_depthwise_weights *k, int32_t is_3x3, int32_t bits)
{
    const uint32_t zeros = es_pair(k->in_zero_point, k->in_zero_point);
    const int32_t words = (g->lines * g->pitch + 2) / 2, channels = g->channels * g->multiplier;
    const int32_t in_lines = g->in_lines, in_places = g->in_places, pitch = g->pitch;
    const int32_t line_step = g->in_line_step, place_step = g->in_place_step;
    const int32_t channel_words = g->k_lines * (g->dilation_place == 1 ? (g->k_places + 1) / 2 : g->k_places);
    const int32_t rounding = k->rounding;
    uint32_t *fill = (uint32_t *)(void *)scratch;
    int16_t *const first = scratch + g->pad_line * pitch + g->pad_place;
    const uint32_t *w = (const uint32_t *)k->weights;
    /* What all channels of a 3x3 window share. */
    const int32_t places = g->stride_place == 1 ? g->out_places / 2 * 2 : g->out_places;
    es_plane_channel channel;
    channel.place_step = g->out_place_step;
    channel.pairs = places * g->out_place_step;
    channel.line_skip = g->out_line_step - channel.pairs;
    channel.plane_skip = 2 * (g->stride_line * pitch - g->stride_place * places);
    channel.odd = g->out_places % 2;
    channel.lines = g->out_lines;
    channel.plane = scratch;
    channel.pitch = 2 * pitch;
    int8_t unpacked[12];
    uint32_t *const unpacked_words = (uint32_t *)(void *)scratch + words;
    int32_t nibble = 0;
    channel.weights = bits == 4 ? unpacked : (const int8_t *)k->weights;
    ES_UNROLL_NOT
    for (int32_t i = 0; i < words; i++) {
        *fill++ = zeros;
        __asm__ volatile("" ::: "memory"); /* not a call of memset */
    }
    int32_t copies = 0; /* output channels that the plane in scratch still serves */
    ES_UNROLL_NOT
    for (int32_t c = 0; c < channels; c++) {
        const int32_t at = c & -k->scales.per_channel;
        const int32_t multiplier = k->scales.multiplier[at], shift = k->scales.shift[at];
        if (copies == 0) {
            const int8_t *from = in++;
            int16_t *to = first;
            ES_UNROLL_NOT
            for (int32_t l = 0; l < in_lines; l++) {
                es_plane_copy_line_s8(from, place_step, in_places, to);
                from += line_step;
                to += pitch;
            }
            copies = g->multiplier;
        }
        copies--;
        if (is_3x3) {
            channel.bias2 = (int32_t)((uint32_t)k->bias[c] * 2u);
            channel.multiplier = multiplier;
            channel.offset = (int32_t)((uint32_t)rounding << shift);
            channel.shift = shift;
            channel.out = out + c;
            if (bits == 4) {
                ES_UNROLL_NOT
                for (int32_t i = 0; i < 9; i++)
                    unpacked[i] = (int8_t)es_weight_s4((const int8_t *)k->weights, nibble++);
            }
            k->kernel(&channel);
            if (bits != 4)
                channel.weights += 9;
        } else {
            if (bits == 4) {
                es_plane_words_s4((const int8_t *)k->weights, nibble, unpacked_words, channel_words, g);
                nibble += channel_words * (g->dilation_place == 1 ? 2 : 1);
                w = unpacked_words;
            }
            es_plane_channel_s8(scratch, out + c, w, k->bias[c], multiplier, shift, rounding, g);
            if (bits != 4)
                w += channel_words;
        }
    }
}

/* For 3x3 windows without dilation whose places move by one or two: one copy serves all layers. */
static ES_NOINLINE ES_UNUSED void es_depthwise_3x3_s8(const int8_t *in, int8_t *out, int16_t *scratch,
                                                      const es_plane *g, const es_depthwise_weights *k)
{
    es_depthwise_any_s8(in, out, scratch, g, k, 1, 8);
}

static ES_NOINLINE ES_UNUSED void es_depthwise_3x3_s4(const int8_t *in, int8_t *out, int16_t *scratch,
                                                      const es_plane *g, const es_depthwise_weights *k)
{
    es_depthwise_any_s8(in, out, scratch, g, k, 1, 4);
}

/* For all others: a copy for each, which knows its window. */
ES_INLINE void es_depthwise_plane_s8(const int8_t *in, int8_t *out, int16_t *scratch, const es_plane *g,
                                     const es_depthwise_weights *k)
{
    es_depthwise_any_s8(in, out, scratch, g, k, 0, 8);
}

ES_INLINE void es_depthwise_plane_s4(const int8_t *in, int8_t *out, int16_t *scratch, const es_plane *g,
                                     const es_depthwise_weights *k)
{
    es_depthwise_any_s8(in, out, scratch, g, k, 0, 4);
}

#endif
