/* int8 convolution: any stride, padding, dilation and groups; weights [O, KH, KW, I/groups], of 4 bits filled
 * up to an even number a channel.
 *
 * Output is written pixel after pixel in raster order, in blocks of up to ES_TILE_PIXELS pixels of a row; a block's
 * input is read again for every pair of its channels. The memory planner relies on this order. */
#ifndef ES_CONV2D_S8_H
#define ES_CONV2D_S8_H

#include "es_dot_s8.h"
#include "es_requant.h"
#include "es_window.h"

/* bias: with the input's zero-point folded in over all taps. padding: zero-points, read in place of pixels outside the
 * image (so that they add nothing), as long as a row of taps of two pixels; NULL where no pixel sees padding. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias;
    const int8_t *padding;
    int32_t in_zero_point;
    int32_t bits; /* of a weight, 8 or 4 (es_dot_s8.h) */
} es_conv2d_weights_s8;

ES_INLINE es_weights_at es_conv2d_weights_at(const es_conv2d_weights_s8 *k, int32_t index)
{
    const es_weights_at start = {k->weights, 0};
    return es_weights_on(start, index, k->bits);
}

/* Weights from one output channel to the next. */
ES_INLINE int32_t es_conv2d_step_s8(const es_window *g, const es_conv2d_weights_s8 *k)
{
    const int32_t taps = g->k_h * g->k_w * (g->in_c / g->groups);
    return k->bits == 4 ? taps + (taps & 1) : taps;
}

ES_INLINE void es_store_tile_s8(const uint32_t acc[4], int32_t pixels, int32_t channels, int32_t c, int32_t out_c,
                                const es_requant *q, int8_t *y)
{
    y[c] = es_requant_s8((int32_t)acc[0], c, q);
    if (channels == 2)
        y[c + 1] = es_requant_s8((int32_t)acc[1], c + 1, q);
    if (pixels == 2) {
        y[out_c + c] = es_requant_s8((int32_t)acc[2], c, q);
        if (channels == 2)
            y[out_c + c + 1] = es_requant_s8((int32_t)acc[3], c + 1, q);
    }
}

/* Taps of window row `y` (may lie outside), from column x on (must lie inside): pixels, or padding. */
ES_INLINE const int8_t *es_conv2d_row_s8(const int8_t *in, int32_t y, int32_t x, const es_window *g,
                                         const es_conv2d_weights_s8 *k)
{
    if (es_rows_see_padding(g) && (y < 0 || y >= g->in_h))
        return k->padding;
    return in + (y * g->in_w + x) * g->in_c;
}

/* Windows of up to this many rows keep a pointer to each; short ones are unrolled. */
#define ES_CONV2D_ROWS 8
#define ES_CONV2D_UNROLL 32

/* The taps of one window row, for one or two channels of one or two neighbouring pixels. */
ES_INLINE void es_conv2d_row_taps_s8(const int8_t *row, es_weights_at w, int32_t bits, const es_window *g,
                                     int32_t w_step, int32_t pixels, int32_t channels, uint32_t acc[4])
{
    const int32_t depth = g->in_c / g->groups;
    /* Without dilation and groups the taps of a row lie side by side. */
    const int32_t joined = g->dilation_w == 1 && g->groups == 1;
    const int32_t columns = joined ? 1 : g->k_w;
    const int32_t run = joined ? g->k_w * depth : depth;
    ES_UNROLL_NOT
    for (int32_t kx = 0; kx < columns; kx++)
        es_dot_bits_s8(row + kx * g->dilation_w * g->in_c, g->stride_w * g->in_c, es_weights_on(w, kx * run, bits), bits,
                       w_step, run, pixels, channels, acc);
}

/* One or two channels of one or two neighbouring pixels whose columns lie inside; tap (0, 0) is at row iy, column ix.
 * `in` is the image's first byte, or the group's; rows[ky] the first tap of row ky, for up to ES_CONV2D_ROWS rows. */
ES_INLINE void es_conv2d_tile_s8(const int8_t *in, const int8_t *const *rows, int32_t iy, int32_t ix,
                                 const es_window *g, const es_conv2d_weights_s8 *k, int32_t pixels, int32_t channels,
                                 int32_t c, const es_requant *q, int8_t *y)
{
    const int32_t row_weights = g->k_w * (g->in_c / g->groups);
    const int32_t w_step = es_conv2d_step_s8(g, k);
    const es_weights_at w = es_conv2d_weights_at(k, c * w_step);
    const uint32_t b0 = (uint32_t)k->bias[c], b1 = channels == 2 ? (uint32_t)k->bias[c + 1] : 0u;
    uint32_t acc[4] = {b0, b1, b0, b1};
    if (g->k_h * row_weights <= ES_CONV2D_UNROLL && g->k_h <= ES_CONV2D_ROWS) {
        ES_UNROLL_FULL
        for (int32_t ky = 0; ky < g->k_h; ky++)
            es_conv2d_row_taps_s8(rows[ky], es_weights_on(w, ky * row_weights, k->bits), k->bits, g, w_step, pixels,
                                  channels, acc);
    } else {
        ES_UNROLL_NOT
        for (int32_t ky = 0; ky < g->k_h; ky++) {
            const int8_t *row = g->k_h <= ES_CONV2D_ROWS
                                    ? rows[ky]
                                    : es_conv2d_row_s8(in, iy + ky * g->dilation_h, ix, g, k);
            es_conv2d_row_taps_s8(row, es_weights_on(w, ky * row_weights, k->bits), k->bits, g, w_step, pixels,
                                  channels, acc);
        }
    }
    es_store_tile_s8(acc, pixels, channels, c, g->out_c, q, y);
}

/* One or two channels of one pixel some of whose columns, all but [columns.from, columns.to), lie outside. */
ES_INLINE void es_conv2d_edge_tile_s8(const int8_t *in, int32_t iy, int32_t ix, const es_window *g,
                                      const es_conv2d_weights_s8 *k, es_taps columns, int32_t channels, int32_t c,
                                      const es_requant *q, int8_t *y)
{
    const int32_t depth = g->in_c / g->groups;
    const int32_t w_step = es_conv2d_step_s8(g, k);
    const int32_t joined = g->dilation_w == 1 && g->groups == 1;
    /* Segments of a row: joined, the padding to the left, the real taps, the padding to the right; else single taps. */
    const int32_t segments = joined ? 3 : g->k_w;
    es_weights_at w = es_conv2d_weights_at(k, c * w_step);
    uint32_t acc[4] = {(uint32_t)k->bias[c], channels == 2 ? (uint32_t)k->bias[c + 1] : 0u, 0u, 0u};
    ES_UNROLL_NOT
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        ES_UNROLL_NOT
        for (int32_t s = 0; s < segments; s++) {
            const int32_t real = joined ? s == 1 && columns.from < columns.to : s >= columns.from && s < columns.to;
            const int32_t first = joined ? columns.from : s;
            const int32_t taps = !joined  ? 1
                                 : s == 0 ? columns.from
                                 : s == 1 ? columns.to - columns.from
                                          : g->k_w - columns.to;
            const int8_t *x = k->padding;
            if (real)
                x = es_conv2d_row_s8(in, iy + ky * g->dilation_h, ix + first * g->dilation_w, g, k);
            es_dot_bits_s8(x, 0, w, k->bits, w_step, taps * depth, 1, channels, acc);
            w = es_weights_on(w, taps * depth, k->bits);
        }
    }
    es_store_tile_s8(acc, 1, channels, c, g->out_c, q, y);
}

/* All channels of one or two neighbouring pixels; `columns` matters only where `edge` is 1, for one pixel. */
ES_INLINE void es_conv2d_pixels_s8(const int8_t *in, int32_t iy, int32_t ix, const es_window *g,
                                   const es_conv2d_weights_s8 *k, int32_t pixels, int32_t edge, es_taps columns,
                                   const es_requant *q, int8_t *y)
{
    const int32_t width = g->out_c / g->groups;
    ES_UNROLL_NOT
    for (int32_t group = 0; group < g->groups; group++) {
        const int8_t *x = in + group * (g->in_c / g->groups);
        const int8_t *rows[ES_CONV2D_ROWS];
        int32_t c = group * width;
        if (!edge && g->k_h <= ES_CONV2D_ROWS) {
            ES_UNROLL_FULL
            for (int32_t ky = 0; ky < g->k_h; ky++)
                rows[ky] = es_conv2d_row_s8(x, iy + ky * g->dilation_h, ix, g, k);
        }
        ES_UNROLL_NOT
        for (; c + 2 <= (group + 1) * width; c += 2) {
            if (edge)
                es_conv2d_edge_tile_s8(x, iy, ix, g, k, columns, 2, c, q, y);
            else
                es_conv2d_tile_s8(x, rows, iy, ix, g, k, pixels, 2, c, q, y);
        }
        if (width % 2 != 0) {
            if (edge)
                es_conv2d_edge_tile_s8(x, iy, ix, g, k, columns, 1, c, q, y);
            else
                es_conv2d_tile_s8(x, rows, iy, ix, g, k, pixels, 1, c, q, y);
        }
    }
}

ES_INLINE void es_conv2d_s8(const int8_t *in, int8_t *out, const es_window *g, const es_conv2d_weights_s8 *k,
                            const es_requant *q)
{
    const es_taps all = {0, g->k_w};
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        int32_t ox = 0;
        ES_UNROLL_NOT
        while (ox < g->out_w) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            int32_t done = 1;
            if (!es_column_is_full(g, ox)) {
                const es_taps columns = es_real_taps(ix, g->k_w, g->dilation_w, g->in_w);
                es_conv2d_pixels_s8(in, iy, ix, g, k, 1, 1, columns, q, y);
            } else if (ES_TILE_PIXELS == 2 && es_column_is_full(g, ox + 1)) {
                es_conv2d_pixels_s8(in, iy, ix, g, k, 2, 0, all, q, y);
                done = 2;
            } else {
                es_conv2d_pixels_s8(in, iy, ix, g, k, 1, 0, all, q, y);
            }
            ox += done;
            y += done * g->out_c;
        }
    }
}

#endif
