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
#include "es_plane_3x3_s8.h"

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
