/* int8 depthwise convolution, eight channels at a time.
 *
 * Eight channels are copied to planes of zero-points in scratch, one a channel. Then, line by line, the rows that a
 * line of outputs sees are interleaved to a strip: place after place, the bytes of all rows. Each window is now a run
 * of bytes, and 16 of its taps are one vector product. Windows dilated along the line have taps of weight zero.
 *
 * Lines are rows or columns of the image, whichever make longer lines. All eight channels are read before the first of
 * them is written, and only they are written, where they or the same channels of other pixels were: the memory planner
 * relies on it where the output takes the input's place. */
#ifndef ES_DEPTHWISE_MVE_S8_H
#define ES_DEPTHWISE_MVE_S8_H

#include "es_mve.h"

/* Vectors of taps a window may have. */
#define ES_MVE_WINDOW 4

/* Steps are in bytes between neighbouring lines, and neighbouring places of a line. */
typedef struct {
    int32_t in_lines, in_places, in_line_step, in_place_step;
    int32_t out_lines, out_places, out_line_step, out_place_step;
    int32_t lines, pitch; /* of a plane, zero-points around the image included */
    int32_t pad_line, pad_place;
    int32_t k_lines; /* rows of a window */
    int32_t stride_line, stride_place, dilation_line;
    int32_t taps;       /* of a window, those between dilated places included; 1 .. 16 * ES_MVE_WINDOW */
    int32_t channels;   /* of the input */
    int32_t multiplier; /* outputs of a channel */
} es_mve_planes;

/* weights: int8 [channels * multiplier, taps], place after place. scale: int32 [channels * multiplier, 2]: bias with the
 * input's zero-point folded in, multiplier. left: minus the shift to the right. Weights of 4 bits: two channels a byte,
 * the first in the lower half; [(channels * multiplier + 1) / 2, taps]. */
typedef struct {
    const int8_t *weights;
    const int32_t *scale;
    const int8_t *left;
    int32_t bits; /* of a weight, 8 or 4 */
    int32_t in_zero_point;
    es_mve_output output;
} es_mve_depthwise;

/* `real` (at most eight) channels of the image to the planes. */
ES_INLINE void es_mve_fill_planes(int8_t *planes, const int8_t *in, const es_mve_planes *g, int32_t real)
{
    const int32_t area = g->lines * g->pitch;
#if ES_MVE
    const uint16x8_t offsets = vmulq_n_u16(vidupq_n_u16(0, 1), (uint16_t)area);
    const mve_pred16_t some = vctp16q((uint32_t)real);
#endif
    ES_UNROLL_NOT
    for (int32_t line = 0; line < g->in_lines; line++) {
        const int8_t *x = in + line * g->in_line_step;
        int8_t *to = planes + (line + g->pad_line) * g->pitch + g->pad_place;
        ES_UNROLL_NOT
        for (int32_t place = 0; place < g->in_places; place++) {
#if ES_MVE
            if (g->channels % 8 == 0)
                vstrbq_scatter_offset_s16(to, offsets, vldrbq_s16(x));
            else
                vstrbq_scatter_offset_p_s16(to, offsets, vldrbq_z_s16(x, some), some);
#else
            ES_UNROLL_NOT
            for (int32_t c = 0; c < real; c++)
                to[c * area] = x[c];
#endif
            to++;
            x += g->in_place_step;
        }
    }
}

/* The k_lines rows from `from` on, interleaved. Up to 15 places beyond the pitch are copied too. */
ES_INLINE void es_mve_fill_strip(int8_t *strip, const int8_t *from, const es_mve_planes *g)
{
    ES_UNROLL_FULL
    for (int32_t row = 0; row < g->k_lines; row++) {
        const int8_t *x = from + row * g->dilation_line * g->pitch;
        int8_t *to = strip + row;
#if ES_MVE
        const uint8x16_t offsets = vmulq_n_u8(vidupq_n_u8(0, 1), (uint8_t)g->k_lines);
        ES_UNROLL_NOT
        for (int32_t place = 0; place < g->pitch; place += 16) {
            vstrbq_scatter_offset_s8(to, offsets, vldrbq_s8(x));
            to += 16 * g->k_lines;
            x += 16;
        }
#else
        ES_UNROLL_NOT
        for (int32_t place = 0; place < g->pitch; place++)
            to[place * g->k_lines] = x[place];
#endif
    }
}

#if ES_MVE
ES_INLINE int32_t es_mve_window_sum(const int8_t *x, const int8x16_t *w, int32_t vectors)
{
    int32_t sum = vmladavq_s8(vldrbq_s8(x), w[0]);
    ES_UNROLL_FULL
    for (int32_t i = 1; i < vectors; i++)
        sum = vmladavaq_s8(sum, vldrbq_s8(x + 16 * i), w[i]);
    return sum;
}
#endif

#if ES_MVE
/* Four neighbouring outputs of one channel, or fewer. */
ES_INLINE void es_mve_four_windows(const int8_t *strip, int8_t *y, const int8x16_t *w, const int32_t *scale,
                                   const es_mve_planes *g, const es_mve_output *o, int32_t places)
{
    const int32_t vectors = (g->taps + 15) / 16;
    const int32_t step = g->stride_place * g->k_lines;
    const uint32x4_t offsets = vmulq_n_u32(vidupq_n_u32(0, 1), (uint32_t)g->out_place_step);
    const int32x4_t sums =
        es_mve_quad(es_mve_window_sum(strip, w, vectors), es_mve_window_sum(strip + step, w, vectors),
                    es_mve_window_sum(strip + 2 * step, w, vectors), es_mve_window_sum(strip + 3 * step, w, vectors));
    const int32x4_t v = es_mve_finish(es_mve_rescale_n(vaddq_n_s32(sums, scale[0]), scale[1], scale[2]), o);
    if (places >= 4)
        vstrbq_scatter_offset_s32(y, offsets, v);
    else
        vstrbq_scatter_offset_p_s32(y, offsets, v, vctp32q((uint32_t)places));
}
#endif

#if ES_MVE
/* One of the two channels that share bytes; `channel` % 2 says which. */
ES_INLINE int8x16_t es_mve_half_bytes(int8x16_t both, int32_t channel)
{
    return vshrq_n_s8(vshlq_r_s8(both, (channel & 1) != 0 ? 0 : 4), 4);
}
#endif

/* A line of outputs of one channel. Where the last four overlap those before them, both write the same. */
ES_INLINE void es_mve_strip_outputs(const int8_t *strip, int8_t *y, int32_t channel, const es_mve_planes *g,
                                    const es_mve_depthwise *k)
{
    const int8_t *const weights = k->weights + (k->bits == 4 ? channel >> 1 : channel) * g->taps;
    const int32_t *const scale = k->scale + 2 * channel;
    const int32_t left = k->left[channel];
    const es_mve_output *const o = &k->output;
    const int32_t step = g->stride_place * g->k_lines;
#if ES_MVE
    const int32_t scales[3] = {scale[0], scale[1], left};
    const int32_t groups = g->out_places / 4, rest = g->out_places % 4;
    int8x16_t w[ES_MVE_WINDOW];
    ES_UNROLL_FULL
    for (int32_t i = 0; i < g->taps / 16; i++)
        w[i] = vldrbq_s8(weights + 16 * i);
    if (g->taps % 16 != 0)
        w[g->taps / 16] = vldrbq_z_s8(weights + g->taps / 16 * 16, vctp8q((uint32_t)(g->taps % 16)));
    if (k->bits == 4) {
        ES_UNROLL_FULL
        for (int32_t i = 0; i < (g->taps + 15) / 16; i++)
            w[i] = es_mve_half_bytes(w[i], channel);
    }
    ES_UNROLL_NOT
    for (int32_t i = 0; i < groups; i++) {
        es_mve_four_windows(strip, y, w, scales, g, o, 4);
        strip += 4 * step;
        y += 4 * g->out_place_step;
    }
    if (rest != 0 && groups == 0)
        es_mve_four_windows(strip, y, w, scales, g, o, rest);
    else if (rest != 0)
        es_mve_four_windows(strip - (4 - rest) * step, y - (4 - rest) * g->out_place_step, w, scales, g, o, 4);
#else
    ES_UNROLL_NOT
    for (int32_t place = 0; place < g->out_places; place++) {
        uint32_t acc = (uint32_t)scale[0];
        ES_UNROLL_NOT
        for (int32_t i = 0; i < g->taps; i++) {
            const int32_t pair = weights[i];
            const int32_t low = (int8_t)(uint8_t)((uint32_t)pair << 4) >> 4;
            acc += (uint32_t)(strip[place * step + i] * (k->bits == 8 ? pair : channel % 2 == 0 ? low : pair >> 4));
        }
        y[place * g->out_place_step] = es_mve_requant_one((int32_t)acc, scale[1], left, o);
    }
#endif
}

/* scratch: eight planes and 16 bytes, then a strip: (pitch rounded up to 16) * k_lines, and what the windows of up to
 * three places beyond the last reach. */
ES_INLINE void es_depthwise_mve_s8(const int8_t *in, int8_t *out, int8_t *scratch, const es_mve_planes *g,
                                   const es_mve_depthwise *k)
{
    const int32_t area = g->lines * g->pitch;
    int8_t *const strip = scratch + 8 * area + 16;
    int32_t channel = 0; /* of the output */
    es_mve_fill(scratch, k->in_zero_point, 8 * area);
    ES_UNROLL_NOT
    for (int32_t first = 0; first < g->channels; first += 8) {
        const int32_t real = es_min_s32(g->channels - first, 8);
        es_mve_fill_planes(scratch, in + first, g, real);
        ES_UNROLL_NOT
        for (int32_t c = 0; c < real; c++) {
            const int8_t *row = scratch + c * area;
            int8_t *y = out + (first + c) * g->multiplier;
            ES_UNROLL_NOT
            for (int32_t line = 0; line < g->out_lines; line++) {
                es_mve_fill_strip(strip, row, g);
                ES_UNROLL_NOT
                for (int32_t m = 0; m < g->multiplier; m++)
                    es_mve_strip_outputs(strip, y + m, channel + m, g, k);
                row += g->stride_line * g->pitch;
                y += g->out_line_step;
            }
            channel += g->multiplier;
        }
    }
}

#endif
