/* int8 depthwise convolution; weights [KH, KW, C * multiplier], output channel c * multiplier + m reads channel c.
 *
 * Raster order, blocks of up to ES_TILE_PIXELS pixels of a row, channel by channel: once a channel of a block is
 * written, that channel of the block's window is not read again for this block. The memory planner relies on it. */
#ifndef ES_DEPTHWISE_S8_H
#define ES_DEPTHWISE_S8_H

#include "es_conv2d_s8.h"

/* Kernels of up to this many taps and rows are unrolled. */
#define ES_DEPTHWISE_TAPS 25
#define ES_DEPTHWISE_ROWS 8

/* One output channel of one or two neighbouring pixels. rows[ky] points at channel 0 of tap (ky, 0); taps outside
 * columns [from, to) lie outside the image and count as the zero-point. All loops unroll. */
ES_INLINE void es_depthwise_channel_s8(const int8_t *const *rows, const es_window *g, const es_conv2d_weights_s8 *k,
                                       int32_t pixels, int32_t from, int32_t to, int32_t ic, int32_t c,
                                       const es_requant *q, int8_t *y)
{
    const es_weights_at w = es_conv2d_weights_at(k, c);
    uint32_t acc0 = (uint32_t)k->bias[c], acc1 = acc0;
    ES_UNROLL_FULL
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        ES_UNROLL_FULL
        for (int32_t kx = 0; kx < g->k_w; kx++) {
            const int32_t weight = es_weight_s8(es_weights_on(w, (ky * g->k_w + kx) * g->out_c, k->bits), k->bits);
            const int32_t at = kx * g->dilation_w * g->in_c + ic;
            acc0 += (uint32_t)((kx >= from && kx < to ? rows[ky][at] : k->in_zero_point) * weight);
            if (pixels == 2)
                acc1 += (uint32_t)(rows[ky][at + g->stride_w * g->in_c] * weight);
        }
    }
    y[c] = es_requant_s8((int32_t)acc0, c, q);
    if (pixels == 2)
        y[g->out_c + c] = es_requant_s8((int32_t)acc1, c, q);
}

/* All channels of one or two neighbouring pixels; tap (0, 0) is at row iy, column ix. from, to: constants. */
ES_INLINE void es_depthwise_pixels_s8(const int8_t *in, int32_t iy, int32_t ix, const es_window *g,
                                      const es_conv2d_weights_s8 *k, int32_t pixels, int32_t from, int32_t to,
                                      const es_requant *q, int8_t *y)
{
    const int32_t multiplier = g->out_c / g->in_c;
    /* A column left of the image has no address: rows are anchored at the first real one. */
    const int32_t back = from * g->dilation_w;
    const int8_t *rows[ES_DEPTHWISE_ROWS];
    ES_UNROLL_FULL
    for (int32_t ky = 0; ky < g->k_h; ky++)
        rows[ky] = es_conv2d_row_s8(in, iy + ky * g->dilation_h, ix + back, g, k);
    ES_UNROLL_NOT
    for (int32_t ic = 0; ic < g->in_c; ic++) {
        ES_UNROLL_NOT
        for (int32_t m = 0; m < multiplier; m++)
            es_depthwise_channel_s8(rows, g, k, pixels, from, to, ic - back * g->in_c, ic * multiplier + m, q, y);
    }
}

/* All channels of any pixel, tap by tap. */
ES_INLINE void es_depthwise_any_pixel_s8(const int8_t *in, int32_t iy, int32_t ix, const es_window *g,
                                         const es_conv2d_weights_s8 *k, const es_requant *q, int8_t *y)
{
    const es_taps rows = es_real_taps(iy, g->k_h, g->dilation_h, g->in_h);
    const es_taps columns = es_real_taps(ix, g->k_w, g->dilation_w, g->in_w);
    const int32_t multiplier = g->out_c / g->in_c;
    ES_UNROLL_NOT
    for (int32_t ic = 0; ic < g->in_c; ic++) {
        ES_UNROLL_NOT
        for (int32_t m = 0; m < multiplier; m++) {
            const int32_t c = ic * multiplier + m;
            es_weights_at w = es_conv2d_weights_at(k, c);
            uint32_t acc = (uint32_t)k->bias[c];
            ES_UNROLL_NOT
            for (int32_t ky = 0; ky < g->k_h; ky++) {
                const int32_t row = ((iy + ky * g->dilation_h) * g->in_w + ix) * g->in_c + ic;
                const int32_t real = ky >= rows.from && ky < rows.to;
                ES_UNROLL_NOT
                for (int32_t kx = 0; kx < g->k_w; kx++, w = es_weights_on(w, g->out_c, k->bits)) {
                    int32_t x = k->in_zero_point;
                    if (real && kx >= columns.from && kx < columns.to)
                        x = in[row + kx * g->dilation_w * g->in_c];
                    acc += (uint32_t)(x * es_weight_s8(w, k->bits));
                }
            }
            y[c] = es_requant_s8((int32_t)acc, c, q);
        }
    }
}

ES_INLINE void es_depthwise_s8(const int8_t *in, int8_t *out, const es_window *g, const es_conv2d_weights_s8 *k,
                               const es_requant *q)
{
    const int32_t unrolled = g->k_h * g->k_w <= ES_DEPTHWISE_TAPS && g->k_h <= ES_DEPTHWISE_ROWS;
    /* A single column of pixels that reach out to the left, or right, has a specialised copy of its own: the number of
     * its real taps is a constant. These divisions are done by the compiler. */
    const int32_t left = unrolled && g->full_left == 1 && g->full_right > 1;
    const int32_t right = unrolled && g->full_right == g->out_w - 1 && g->full_left < g->full_right;
    const int32_t from = (g->pad_left + g->dilation_w - 1) / g->dilation_w;
    const int32_t reach = g->in_w - (g->out_w - 1) * g->stride_w + g->pad_left;
    const int32_t to = (reach + g->dilation_w - 1) / g->dilation_w;
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        int32_t ox = 0;
        ES_UNROLL_NOT
        while (ox < g->out_w) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            int32_t done = 1;
            if (unrolled && es_column_is_full(g, ox)) {
                if (ES_TILE_PIXELS == 2 && es_column_is_full(g, ox + 1)) {
                    es_depthwise_pixels_s8(in, iy, ix, g, k, 2, 0, g->k_w, q, y);
                    done = 2;
                } else {
                    es_depthwise_pixels_s8(in, iy, ix, g, k, 1, 0, g->k_w, q, y);
                }
            } else if (left && ox == 0) {
                es_depthwise_pixels_s8(in, iy, ix, g, k, 1, from, g->k_w, q, y);
            } else if (right && ox == g->out_w - 1) {
                es_depthwise_pixels_s8(in, iy, ix, g, k, 1, 0, to, q, y);
            } else {
                es_depthwise_any_pixel_s8(in, iy, ix, g, k, q, y);
            }
            ox += done;
            y += done * g->out_c;
        }
    }
}

#endif
