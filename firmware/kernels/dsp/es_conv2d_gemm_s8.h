/* int8 convolution of one group as a product of columns: any window, stride, padding and dilation.
 *
 * Output goes in blocks of four pixels in raster order, across rows. A block's input is copied before its first output
 * is written, and not read after. The memory planner relies on this order. */
#ifndef ES_CONV2D_GEMM_S8_H
#define ES_CONV2D_GEMM_S8_H

#include "es_columns_s8.h"
#include "es_gemm_s8.h"

typedef struct {
    void (*gemm)(const es_gemm_block *); /* a pointer, so that kernels no layer uses are not linked */
    const uint32_t *weights;             /* as es_gemm_block has them */
    const int32_t *bias;
    es_scales scales;
    int32_t rounding;
    int32_t tap_pairs; /* taps are filled up to a multiple of four with weights of zero */
    int32_t in_c, out_c;
} es_conv2d_gemm;

/* What a convolution of any window knows besides. */
typedef struct {
    es_conv2d_gemm gemm;
    es_window window;
    int32_t in_zero_point;
} es_conv2d_columns;

/* The block of `k` whose columns are at `columns`. */
ES_INLINE es_gemm_block es_conv2d_gemm_block(const es_conv2d_gemm *k, const uint32_t *columns)
{
    es_gemm_block block;
    const int32_t mask = -k->scales.per_channel;
    block.weights = k->weights;
    block.bias = k->bias;
    block.columns = columns;
    block.columns_end = columns + 4 * k->tap_pairs;
    block.rounding = k->rounding;
    block.tap_pairs = k->tap_pairs;
    block.scale_mask = mask;
    block.multiplier = k->scales.multiplier + (k->out_c & mask);
    block.shift = k->scales.shift + (k->out_c & mask);
    block.channel = -k->out_c;
    return block;
}

/* A pixel's taps are gathered row by row as constants know them, where rows and windows are short. */
#define ES_CONV2D_GEMM_ROW 32
#define ES_CONV2D_GEMM_TAPS 128

ES_INLINE int32_t es_window_is_short(const es_window *g)
{
    return g->k_w * g->in_c <= ES_CONV2D_GEMM_ROW && g->k_h * g->k_w * g->in_c <= ES_CONV2D_GEMM_TAPS &&
           g->dilation_w == 1;
}

/* One pixel's column; `quads`: in_c is a multiple of four. form: as es_columns_s8.h has it. */
ES_INLINE void es_conv2d_gemm_column_s8(const int8_t *in, int32_t oy, int32_t ox, const es_conv2d_columns *k,
                                        int32_t quads, int8_t *gathered, uint32_t *to, int32_t form)
{
    const es_window *g = &k->window;
    if (quads) {
        es_column_s8(in, oy, ox, g, k->in_zero_point, to, form);
        return;
    }
    if (es_window_is_short(g) && es_row_is_full(g, oy) && es_column_is_full(g, ox)) {
        const int32_t iy = oy * g->stride_h - g->pad_top, ix = ox * g->stride_w - g->pad_left;
        es_gather_whole_s8(in + (iy * g->in_w + ix) * g->in_c, g, gathered);
    } else {
        es_gather_s8(in, oy, ox, g, k->in_zero_point, gathered);
    }
    (void)es_expand_any_s8(gathered, k->gemm.tap_pairs >> 1, to, form);
}

/* scratch: 16 * tap_pairs bytes of columns, or 48 * tap_pairs where all pairs are needed; then, where in_c is no multiple
 * of four, 2 * tap_pairs bytes for a pixel's taps; aligned to four. */
ES_INLINE void es_conv2d_gemm_blocks_s8(const int8_t *in, int8_t *out, uint32_t *scratch, const es_conv2d_columns *k,
                                        int32_t quads, int32_t form)
{
    const es_window *g = &k->window;
    const int32_t pixels = g->out_h * g->out_w;
    int8_t *const gathered = (int8_t *)(void *)(scratch + 2 * form * k->gemm.tap_pairs);
    es_gemm_block block = es_conv2d_gemm_block(&k->gemm, scratch);
    int32_t oy = 0, ox = 0;
    ES_UNROLL_NOT
    for (int32_t first = 0; first < pixels; first += 4) {
        const int32_t real = es_min_s32(pixels - first, 4);
        ES_UNROLL_NOT
        for (int32_t p = 0; p < 4; p++) {
            block.end[p] = out + es_min_s32(p + 1, real) * g->out_c;
            if (p >= real)
                continue;
            es_conv2d_gemm_column_s8(in, oy, ox, k, quads, gathered, scratch + p, form);
            if (++ox == g->out_w) {
                ox = 0;
                oy++;
            }
        }
        k->gemm.gemm(&block);
        out += 4 * g->out_c;
    }
}

/* For any layer whose in_c is a multiple of four: one copy serves all. */
static ES_NOINLINE ES_UNUSED void es_conv2d_gemm_s8(const int8_t *in, int8_t *out, uint32_t *scratch,
                                                    const es_conv2d_columns *k)
{
    es_conv2d_gemm_blocks_s8(in, out, scratch, k, 1, ES_COLUMN_QUADS);
}

/* For other layers, mostly a net's first: a copy for each, which knows its window. */
ES_INLINE void es_conv2d_gemm_any_s8(const int8_t *in, int8_t *out, uint32_t *scratch, const es_conv2d_columns *k)
{
    es_conv2d_gemm_blocks_s8(in, out, scratch, k, 0, ES_COLUMN_QUADS);
}

/* Both for the kernel of pairs. */
static ES_NOINLINE ES_UNUSED void es_conv2d_pairs_s8(const int8_t *in, int8_t *out, uint32_t *scratch,
                                                     const es_conv2d_columns *k)
{
    es_conv2d_gemm_blocks_s8(in, out, scratch, k, 1, ES_COLUMN_PAIRS);
}

ES_INLINE void es_conv2d_pairs_any_s8(const int8_t *in, int8_t *out, uint32_t *scratch, const es_conv2d_columns *k)
{
    es_conv2d_gemm_blocks_s8(in, out, scratch, k, 0, ES_COLUMN_PAIRS);
}

/* For 1x1 windows that neither move by more than a pixel nor see padding, in_c a multiple of four: the same, pixel
 * after pixel of the input. */
ES_INLINE void es_conv2d_gemm_pixels_s8(const int8_t *in, int8_t *out, uint32_t *scratch, const es_conv2d_gemm *k,
                                        int32_t pixels, int32_t form)
{
    es_gemm_block block = es_conv2d_gemm_block(k, scratch);
    ES_UNROLL_NOT
    for (; pixels > 0; pixels -= 4) {
        const int32_t real = es_min_s32(pixels, 4);
        int32_t p = 0;
        ES_UNROLL_NOT
        do {
            if (p < real) {
                (void)es_expand_any_s8(in, k->in_c >> 2, scratch + p, form);
                in += k->in_c;
                out += k->out_c;
            }
            block.end[p] = out;
        } while (++p < 4);
        k->gemm(&block);
    }
}

static ES_NOINLINE ES_UNUSED void es_conv2d_gemm_1x1_s8(const int8_t *in, int8_t *out, uint32_t *scratch,
                                                        const es_conv2d_gemm *k, int32_t pixels)
{
    es_conv2d_gemm_pixels_s8(in, out, scratch, k, pixels, ES_COLUMN_QUADS);
}

static ES_NOINLINE ES_UNUSED void es_conv2d_pairs_1x1_s8(const int8_t *in, int8_t *out, uint32_t *scratch,
                                                         const es_conv2d_gemm *k, int32_t pixels)
{
    es_conv2d_gemm_pixels_s8(in, out, scratch, k, pixels, ES_COLUMN_PAIRS);
}

#endif
