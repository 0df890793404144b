/* int8 convolution of any window, stride, padding, dilation and groups; and the fully connected layer.
 *
 * Raster order, one pixel or, of one group, two neighbours of a row at a time. Taps are read where they lie (1x1 windows), for every
 * four channels of a pixel or two of a pair again, or copied to scratch before the first output is written. The memory
 * planner relies on this order, which asks for no more than that of es_conv2d_s8.h. */
#ifndef ES_CONV2D_MVE_S8_H
#define ES_CONV2D_MVE_S8_H

#include "es_gemm_mve_s8.h"
#include "es_window.h"

/* Rows of up to this many bytes are copied by words, as constants know them. */
#define ES_MVE_SHORT_ROW 15
#define ES_MVE_SHORT_ROWS 16

/* `count` taps at tap `to`, for windows of few bytes a row. */
ES_INLINE void es_mve_copy_row(int8_t *to, const int8_t *from, int32_t count)
{
    if (count <= ES_MVE_SHORT_ROW) {
        __builtin_memcpy(to, from, (size_t)count);
        return;
    }
#if ES_MVE
    ES_UNROLL_FULL
    for (int32_t i = 0; i < count / 16; i++)
        vstrbq_s8(to + 16 * i, vldrbq_s8(from + 16 * i));
    if (count % 16 != 0) {
        const mve_pred16_t real = vctp8q((uint32_t)(count % 16));
        es_mve_store_some_s8(to + count / 16 * 16, vldrbq_z_s8(from + count / 16 * 16, real), real);
    }
#else
    es_copy_up(to, from, count);
#endif
}

/* All taps of a pixel whose window lies inside; `from` is the first. */
ES_INLINE void es_mve_gather_whole(int8_t *to, const int8_t *from, const es_window *g)
{
    const int32_t run = g->k_w * g->in_c, pitch = g->dilation_h * g->in_w * g->in_c;
    if (run <= 8 * 16 && g->k_h <= ES_MVE_SHORT_ROWS) {
        ES_UNROLL_FULL
        for (int32_t ky = 0; ky < g->k_h; ky++)
            es_mve_copy_row(to + ky * run, from + ky * pitch, run);
        return;
    }
    ES_UNROLL_NOT
    for (int32_t ky = 0; ky < g->k_h; ky++)
        es_mve_copy(to + ky * run, from + ky * pitch, run);
}

/* All taps of any pixel. */
ES_INLINE void es_mve_gather(int8_t *to, const int8_t *in, int32_t iy, int32_t ix, const es_window *g,
                             int32_t zero_point)
{
    const int32_t depth = g->in_c, joined = g->dilation_w == 1;
    const es_taps real = es_real_taps(ix, joined ? g->k_w : 0, 1, g->in_w);
    es_mve_fill(to, zero_point, g->k_h * g->k_w * depth);
    ES_UNROLL_NOT
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        const int32_t y = iy + ky * g->dilation_h;
        int8_t *const row = to + ky * g->k_w * depth;
        if (y < 0 || y >= g->in_h)
            continue;
        if (joined) {
            if (real.to > real.from)
                es_mve_copy(row + real.from * depth, in + (y * g->in_w + ix + real.from) * depth,
                            (real.to - real.from) * depth);
            continue;
        }
        ES_UNROLL_NOT
        for (int32_t kx = 0; kx < g->k_w; kx++) {
            const int32_t x = ix + kx * g->dilation_w;
            if (x >= 0 && x < g->in_w)
                es_mve_copy(row + kx * depth, in + (y * g->in_w + x) * depth, depth);
        }
    }
}

/* The taps of output pixel (oy, ox): where they lie, or copied to `to`. */
ES_INLINE const int8_t *es_mve_pixel_taps(const int8_t *in, int8_t *to, int32_t oy, int32_t ox, const es_window *g,
                                          int32_t direct, int32_t zero_point)
{
    const int32_t iy = oy * g->stride_h - g->pad_top, ix = ox * g->stride_w - g->pad_left;
    if (direct)
        return in + (iy * g->in_w + ix) * g->in_c;
    if (g->dilation_w == 1 && es_row_is_full(g, oy) && es_column_is_full(g, ox))
        es_mve_gather_whole(to, in + (iy * g->in_w + ix) * g->in_c, g);
    else
        es_mve_gather(to, in, iy, ix, g, zero_point);
    return to;
}

/* scratch: a column, taps rounded up to a multiple of 16 bytes, or two where pixels go in pairs; none for 1x1 windows
 * that see no padding. */
ES_INLINE void es_conv2d_mve_s8(const int8_t *in, int8_t *out, int8_t *scratch, const es_window *g,
                                const es_mve_gemm *k, int32_t in_zero_point)
{
    const int32_t direct = g->k_h * g->k_w == 1 && !es_rows_see_padding(g) && !es_columns_see_padding(g);
    const int32_t column = (k->taps + 15) / 16 * 16, pairs = column > 16 * ES_MVE_HELD;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox += 1 + pairs) {
            const int8_t *x = es_mve_pixel_taps(in, scratch, oy, ox, g, direct, in_zero_point);
            if (!pairs) {
                es_mve_pixel_s8(x, out, k, !direct);
                out += g->out_c;
            } else if (g->out_w % 2 == 0 || ox + 1 < g->out_w) {
                const int8_t *next =
                    es_mve_pixel_taps(in, direct ? NULL : scratch + column, oy, ox + 1, g, direct, in_zero_point);
                es_mve_pair_s8(x, next, out, g->out_c, k, !direct);
                out += 2 * g->out_c;
            } else {
                es_mve_pair_s8(x, x, out, 0, k, !direct);
                out += g->out_c;
            }
        }
    }
}

/* Several groups; k: of one, with the tables of all, each filled up to four channels. scratch: a column, taps rounded up
 * to a multiple of 16 bytes, for each; all are copied before the pixel is written. */
ES_INLINE void es_conv2d_groups_mve_s8(const int8_t *in, int8_t *out, int8_t *scratch, const es_window *g,
                                       const es_mve_gemm *k, int32_t in_zero_point)
{
    const int32_t column = (k->taps + 15) / 16 * 16, depth = g->in_c / g->groups, quads = (k->channels + 3) / 4;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            int8_t *to = scratch;
            es_mve_gemm one = *k;
            ES_UNROLL_NOT
            for (int32_t ky = 0; ky < g->k_h; ky++) {
                const int32_t y = iy + ky * g->dilation_h;
                ES_UNROLL_NOT
                for (int32_t kx = 0; kx < g->k_w; kx++, to += depth) {
                    const int32_t x = ix + kx * g->dilation_w;
                    const int32_t real = y >= 0 && y < g->in_h && x >= 0 && x < g->in_w;
                    const int8_t *from = in + (y * g->in_w + x) * g->in_c;
                    ES_UNROLL_NOT
                    for (int32_t group = 0; group < g->groups; group++) {
                        if (real)
                            es_mve_copy(to + group * column, from + group * depth, depth);
                        else
                            es_mve_fill(to + group * column, in_zero_point, depth);
                    }
                }
            }
            ES_UNROLL_NOT
            for (int32_t group = 0; group < g->groups; group++) {
                es_mve_pixel_s8(scratch + group * column, out, &one, 1);
                out += k->channels;
                one.weights += quads * 4 * column * k->bits / 8;
                one.scale += quads * 9;
            }
        }
    }
}

/* [rows, taps] x weights -> [rows, channels], row after row, a row's input read for every four of its outputs. */
ES_INLINE void es_fully_connected_mve_s8(const int8_t *in, int8_t *out, int32_t rows, const es_mve_gemm *k)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++)
        es_mve_pixel_s8(in + r * k->taps, out + r * k->channels, k, 0);
}

#endif
