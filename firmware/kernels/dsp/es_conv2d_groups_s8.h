/* int8 convolution of several groups as products of columns: any window, stride, padding and dilation.
 *
 * As es_conv2d_gemm_s8.h: blocks of four pixels in raster order, a block's input copied, for all groups, before its
 * first output is written. The memory planner relies on this order. */
#ifndef ES_CONV2D_GROUPS_S8_H
#define ES_CONV2D_GROUPS_S8_H

#include "es_conv2d_gemm_s8.h"

typedef struct {
    es_conv2d_gemm gemm; /* tables of all groups, one after another, each filled up to an even number of channels; in_c and
                          * out_c of one group */
    es_window window;
    int32_t in_zero_point;
    int32_t weights_step, bias_step; /* words from one group to the next */
} es_conv2d_groups;

/* One group's taps of one pixel; `depth` channels at `in` + (pixel) * in_c. gathered: tap_pairs * 2 bytes, used where
 * depth is no multiple of four. */
ES_INLINE void es_conv2d_groups_column_s8(const int8_t *in, int32_t oy, int32_t ox, const es_conv2d_groups *k,
                                          int8_t *gathered, uint32_t *to)
{
    const es_window *g = &k->window;
    const int32_t iy = oy * g->stride_h - g->pad_top, ix = ox * g->stride_w - g->pad_left;
    const int32_t depth = k->gemm.in_c, quads = depth % 4 == 0;
    int8_t *next = gathered;
    ES_UNROLL_NOT
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        const int32_t y = iy + ky * g->dilation_h;
        ES_UNROLL_NOT
        for (int32_t kx = 0; kx < g->k_w; kx++) {
            const int32_t x = ix + kx * g->dilation_w;
            const int8_t *const from = in + (y * g->in_w + x) * g->in_c;
            const int32_t real = y >= 0 && y < g->in_h && x >= 0 && x < g->in_w;
            if (quads)
                to = real ? es_expand_s8(from, depth >> 2, to)
                          : es_expand_fill_s8(k->in_zero_point, depth, to, ES_COLUMN_QUADS);
            else
                next = real ? es_append_s8(from, depth, next) : es_append_fill_s8(k->in_zero_point, depth, next);
        }
    }
    if (!quads)
        (void)es_expand_s8(gathered, k->gemm.tap_pairs >> 1, to);
}

/* scratch: 16 * tap_pairs bytes of columns a group, then 2 * tap_pairs bytes for a pixel's taps where the channels of a
 * group are no multiple of four; aligned to four. One copy serves all layers. */
static ES_NOINLINE ES_UNUSED void es_conv2d_groups_s8(const int8_t *in, int8_t *out, uint32_t *scratch,
                                                      const es_conv2d_groups *k)
{
    const es_window *g = &k->window;
    const int32_t pixels = g->out_h * g->out_w, width = k->gemm.out_c, even = width + (width & 1);
    const int32_t column = 4 * k->gemm.tap_pairs, step = even & -k->gemm.scales.per_channel;
    int8_t *const gathered = (int8_t *)(void *)(scratch + g->groups * column);
    int32_t oy = 0, ox = 0;
    ES_UNROLL_NOT
    for (int32_t first = 0; first < pixels; first += 4) {
        const int32_t real = es_min_s32(pixels - first, 4);
        ES_UNROLL_NOT
        for (int32_t p = 0; p < real; p++) {
            ES_UNROLL_NOT
            for (int32_t group = 0; group < g->groups; group++)
                es_conv2d_groups_column_s8(in + group * k->gemm.in_c, oy, ox, k, gathered, scratch + group * column + p);
            if (++ox == g->out_w) {
                ox = 0;
                oy++;
            }
        }
        es_gemm_block block = es_conv2d_gemm_block(&k->gemm, scratch);
        block.end[0] = out + width;
        block.end[1] = block.end[0] + (real > 1 ? g->out_c : 0);
        block.end[2] = block.end[1] + (real > 2 ? g->out_c : 0);
        block.end[3] = block.end[2] + (real > 3 ? g->out_c : 0);
        ES_UNROLL_NOT
        for (int32_t group = 0; group < g->groups; group++) {
            k->gemm.gemm(&block);
            block.weights += k->weights_step;
            block.bias += k->bias_step;
            block.columns += column;
            block.columns_end += column;
            block.multiplier += step;
            block.shift += step;
            ES_UNROLL_FULL
            for (int32_t p = 0; p < 4; p++)
                block.end[p] += width;
        }
        out += real * g->out_c;
    }
}

#endif
