/* int16 convolutions with int8 weights: any stride, padding, dilation and groups; weights [O, KH, KW, I/groups], and
 * [KH, KW, C * multiplier] of the depthwise one. Zero-points are 0, so taps outside the image are left out.
 *
 * Output is written pixel after pixel in raster order, in blocks of up to ES_TILE_PIXELS pixels of a row that see no
 * padding; a block's input is read again for every pair of its channels. The depthwise convolution goes through a block
 * channel by channel. The memory planner relies on this order. */
#ifndef ES_CONV2D_S16_H
#define ES_CONV2D_S16_H

#include "es_dot_s16.h"
#include "es_requant_s16.h"
#include "es_window.h"

/* One of the two biases is NULL: `wide_bias` where sums may leave 32 bits, else `bias`. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias;
    const int64_t *wide_bias;
} es_weights_s16;

ES_INLINE int64_t es_bias_s16(const es_weights_s16 *k, int32_t wide, int32_t channel)
{
    return wide ? k->wide_bias[channel] : (int64_t)k->bias[channel];
}

/* One or two channels of one or two neighbouring pixels; tap (0, 0) of the first is at row iy, column ix. */
ES_INLINE void es_conv2d_tile_s16(const int16_t *in, int32_t iy, int32_t ix, const es_window *g,
                                  const es_weights_s16 *k, es_taps rows, es_taps columns, int32_t pixels,
                                  int32_t channels, int32_t c, const es_reduced *q, int16_t *y)
{
    const int32_t depth = g->in_c / g->groups;
    const int32_t w_step = g->k_h * g->k_w * depth;
    /* Without dilation and groups the taps of a row lie side by side. */
    const int32_t joined = g->dilation_w == 1 && g->groups == 1;
    const int32_t count = joined ? (columns.to - columns.from) * depth : depth;
    const int32_t last = joined ? es_min_s32(columns.from + 1, columns.to) : columns.to;
    es_sums_s16 s;
    es_sums_start_s16(&s, es_bias_s16(k, q->wide, c), channels == 2 ? es_bias_s16(k, q->wide, c + 1) : 0,
                      q->wide);
    ES_UNROLL_NOT
    for (int32_t ky = rows.from; ky < rows.to; ky++) {
        const int32_t row = (iy + ky * g->dilation_h) * g->in_w + ix;
        const int8_t *w = k->weights + c * w_step + ky * g->k_w * depth;
        ES_UNROLL_NOT
        for (int32_t kx = columns.from; kx < last; kx++)
            es_dot_s16(in + (row + kx * g->dilation_w) * g->in_c, g->stride_w * g->in_c, w + kx * depth, w_step, count,
                       pixels, channels, q->wide, &s);
    }
    y[c] = es_reduced_s16(es_sum_s16(&s, 0, q->wide), c, q);
    if (channels == 2)
        y[c + 1] = es_reduced_s16(es_sum_s16(&s, 1, q->wide), c + 1, q);
    if (pixels == 2) {
        y[g->out_c + c] = es_reduced_s16(es_sum_s16(&s, 2, q->wide), c, q);
        if (channels == 2)
            y[g->out_c + c + 1] = es_reduced_s16(es_sum_s16(&s, 3, q->wide), c + 1, q);
    }
}

/* All channels of one or two neighbouring pixels. */
ES_INLINE void es_conv2d_pixels_s16(const int16_t *in, int32_t iy, int32_t ix, const es_window *g,
                                    const es_weights_s16 *k, es_taps rows, es_taps columns, int32_t pixels,
                                    const es_reduced *q, int16_t *y)
{
    const int32_t width = g->out_c / g->groups;
    ES_UNROLL_NOT
    for (int32_t group = 0; group < g->groups; group++) {
        const int16_t *x = in + group * (g->in_c / g->groups);
        int32_t c = group * width;
        ES_UNROLL_NOT
        for (; c + 2 <= (group + 1) * width; c += 2)
            es_conv2d_tile_s16(x, iy, ix, g, k, rows, columns, pixels, 2, c, q, y);
        if (width % 2 != 0)
            es_conv2d_tile_s16(x, iy, ix, g, k, rows, columns, pixels, 1, c, q, y);
    }
}

ES_INLINE void es_conv2d_s16(const int16_t *in, int16_t *out, const es_window *g, const es_weights_s16 *k,
                             const es_reduced *q)
{
    int16_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = es_first_row(g, oy);
        const es_taps rows = es_real_taps(iy, g->k_h, g->dilation_h, g->in_h);
        int32_t ox = 0;
        ES_UNROLL_NOT
        while (ox < g->out_w) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const es_taps all = {0, g->k_w};
            if (ES_TILE_PIXELS == 2 && es_row_is_full(g, oy) && es_column_is_full(g, ox) &&
                es_column_is_full(g, ox + 1)) {
                es_conv2d_pixels_s16(in, iy, ix, g, k, rows, all, 2, q, y);
                ox += 2;
                y += 2 * g->out_c;
            } else {
                const es_taps columns = es_real_taps(ix, g->k_w, g->dilation_w, g->in_w);
                es_conv2d_pixels_s16(in, iy, ix, g, k, rows, columns, 1, q, y);
                ox += 1;
                y += g->out_c;
            }
        }
    }
}

/* Depthwise windows of up to this many taps and rows are unrolled where their columns lie inside the image. */
#define ES_DEPTHWISE_TAPS_S16 25
#define ES_DEPTHWISE_ROWS_S16 8

/* All channels of one or two neighbouring pixels whose columns lie inside; sums fit 32 bits. */
ES_INLINE void es_depthwise_pixels_s16(const int16_t *in, int32_t iy, int32_t ix, const es_window *g,
                                       const es_weights_s16 *k, int32_t pixels, const es_reduced *q, int16_t *y)
{
    const int32_t multiplier = g->out_c / g->in_c, next = g->stride_w * g->in_c;
    int32_t start[ES_DEPTHWISE_ROWS_S16];
    ES_UNROLL_FULL
    for (int32_t ky = 0; ky < g->k_h; ky++)
        start[ky] = ((iy + ky * g->dilation_h) * g->in_w + ix) * g->in_c;
    ES_UNROLL_NOT
    for (int32_t ic = 0; ic < g->in_c; ic++) {
        ES_UNROLL_NOT
        for (int32_t m = 0; m < multiplier; m++) {
            const int32_t c = ic * multiplier + m;
            int32_t s0 = k->bias[c], s1 = s0;
            ES_UNROLL_FULL
            for (int32_t ky = 0; ky < g->k_h; ky++) {
                /* The row itself is compared, not the range of taps: compilers then see that no read leaves the image. */
                if (es_rows_see_padding(g) && (uint32_t)(iy + ky * g->dilation_h) >= (uint32_t)g->in_h)
                    continue;
                const int16_t *x = in + start[ky] + ic;
                const int8_t *w = k->weights + ky * g->k_w * g->out_c + c;
                ES_UNROLL_FULL
                for (int32_t kx = 0; kx < g->k_w; kx++) {
                    const int32_t weight = w[kx * g->out_c], at = kx * g->dilation_w * g->in_c;
                    s0 += x[at] * weight;
                    if (pixels == 2)
                        s1 += x[at + next] * weight;
                }
            }
            y[c] = es_reduced_s16(s0, c, q);
            if (pixels == 2)
                y[g->out_c + c] = es_reduced_s16(s1, c, q);
        }
    }
}

/* All channels of any pixel, tap by tap. */
ES_INLINE void es_depthwise_any_pixel_s16(const int16_t *in, int32_t iy, int32_t ix, const es_window *g,
                                          const es_weights_s16 *k, es_taps rows, const es_reduced *q, int16_t *y)
{
    const es_taps columns = es_real_taps(ix, g->k_w, g->dilation_w, g->in_w);
    const int32_t multiplier = g->out_c / g->in_c;
    ES_UNROLL_NOT
    for (int32_t ic = 0; ic < g->in_c; ic++) {
        ES_UNROLL_NOT
        for (int32_t m = 0; m < multiplier; m++) {
            const int32_t c = ic * multiplier + m;
            es_sums_s16 s;
            es_sums_start_s16(&s, es_bias_s16(k, q->wide, c), 0, q->wide);
            ES_UNROLL_NOT
            for (int32_t ky = rows.from; ky < rows.to; ky++) {
                const int32_t first = ((iy + ky * g->dilation_h) * g->in_w + ix) * g->in_c + ic;
                const int8_t *w = k->weights + ky * g->k_w * g->out_c + c;
                ES_UNROLL_NOT
                for (int32_t kx = columns.from; kx < columns.to; kx++) {
                    s.part[0] += in[first + kx * g->dilation_w * g->in_c] * w[kx * g->out_c];
                    /* A row may be longer than what 32 bits hold. */
                    if (q->wide)
                        es_sums_flush_s16(&s);
                }
            }
            y[c] = es_reduced_s16(es_sum_s16(&s, 0, q->wide), c, q);
        }
    }
}

ES_INLINE void es_depthwise_s16(const int16_t *in, int16_t *out, const es_window *g, const es_weights_s16 *k,
                                const es_reduced *q)
{
    const int32_t unrolled =
        !q->wide && g->k_h * g->k_w <= ES_DEPTHWISE_TAPS_S16 && g->k_h <= ES_DEPTHWISE_ROWS_S16;
    int16_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = es_first_row(g, oy);
        const es_taps rows = es_real_taps(iy, g->k_h, g->dilation_h, g->in_h);
        int32_t ox = 0;
        ES_UNROLL_NOT
        while (ox < g->out_w) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            int32_t done = 1;
            if (!unrolled || !es_column_is_full(g, ox)) {
                es_depthwise_any_pixel_s16(in, iy, ix, g, k, rows, q, y);
            } else if (ES_TILE_PIXELS == 2 && es_row_is_full(g, oy) && es_column_is_full(g, ox + 1)) {
                es_depthwise_pixels_s16(in, iy, ix, g, k, 2, q, y);
                done = 2;
            } else {
                es_depthwise_pixels_s16(in, iy, ix, g, k, 1, q, y);
            }
            ox += done;
            y += done * g->out_c;
        }
    }
}

#endif
