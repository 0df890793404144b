/* int8 convolution of one group most of whose blocks of four taps are zero: those that are not, gathered four at a time.
 *
 * Pixels go in pairs, as in es_conv2d_mve_s8.h; their taps are always copied to scratch, since words are gathered from
 * where they are aligned. weights: int8 [blocks of all channels, 4], each channel's filled up to a multiple of four blocks
 * with zeros. places: which block of the pixel's taps each is, a byte. counts: fours of each channel, whose number is
 * filled up to an even one. scale: as es_gemm_mve_s8.h has it for two channels.
 *
 * Raster order, a pair of pixels copied before its first output is written. The memory planner relies on this order,
 * which asks for no more than that of es_conv2d_s8.h. */
#ifndef ES_SPARSE_MVE_S8_H
#define ES_SPARSE_MVE_S8_H

#include "es_conv2d_mve_s8.h"

typedef struct {
    const int8_t *weights;
    const uint8_t *places;
    const uint8_t *counts;
    const int32_t *scale;
    int32_t taps;
    int32_t channels;
    es_mve_output output;
} es_mve_sparse;

/* A channel's products with both pixels. */
typedef struct {
    int32_t first, second;
} es_mve_products;

#if ES_MVE
ES_INLINE es_mve_products es_mve_sparse_channel(const int8_t *x, int32_t column, const int8_t **w, const uint8_t **places,
                                                int32_t fours)
{
    const uint32_t *const x0 = (const uint32_t *)(const void *)x, *const x1 = (const uint32_t *)(const void *)(x + column);
    const int8_t *v = *w;
    const uint8_t *p = *places;
    es_mve_products sums = {0, 0};
    ES_UNROLL_NOT
    for (; fours > 0; fours--) {
        const uint32x4_t at = vldrbq_u32(p);
        const int8x16_t taps = vldrbq_s8(v);
        p += 4;
        v += 16;
        sums.first = vmladavaq_s8(sums.first, vreinterpretq_s8_u32(vldrwq_gather_shifted_offset_u32(x0, at)), taps);
        sums.second = vmladavaq_s8(sums.second, vreinterpretq_s8_u32(vldrwq_gather_shifted_offset_u32(x1, at)), taps);
    }
    *w = v;
    *places = p;
    return sums;
}
#else
ES_INLINE es_mve_products es_mve_sparse_channel(const int8_t *x, int32_t column, const int8_t **w, const uint8_t **places,
                                                int32_t fours)
{
    uint32_t first = 0, second = 0;
    ES_UNROLL_NOT
    for (int32_t i = 0; i < 16 * fours; i++) {
        const int32_t at = 4 * (*places)[i / 4] + i % 4;
        first += (uint32_t)(x[at] * (*w)[i]);
        second += (uint32_t)(x[column + at] * (*w)[i]);
    }
    *w += 16 * fours;
    *places += 4 * fours;
    const es_mve_products sums = {(int32_t)first, (int32_t)second};
    return sums;
}
#endif

/* Two pixels whose taps are `column` bytes apart; their outputs are `step` bytes apart. */
ES_INLINE void es_mve_sparse_pair_s8(const int8_t *x, int32_t column, int8_t *y, int32_t step, const es_mve_sparse *k)
{
    const int8_t *w = k->weights;
    const uint8_t *places = k->places;
    const int32_t *scale = k->scale;
#if ES_MVE
    const uint32x4_t to = {0u, 1u, (uint32_t)step, (uint32_t)step + 1u};
    const uint32x4_t bias = {0u, 4u, 0u, 4u}, multiplier = {8u, 12u, 8u, 12u};
#endif
    ES_UNROLL_NOT
    for (int32_t c = 0; c < k->channels; c += 2) {
        const es_mve_products even = es_mve_sparse_channel(x, column, &w, &places, k->counts[c]);
        const es_mve_products odd = es_mve_sparse_channel(x, column, &w, &places, k->counts[c + 1]);
        const int32_t both = k->channels % 2 == 0 || c + 1 < k->channels;
#if ES_MVE
        const int32x4_t v = es_mve_scaled_pair(es_mve_quad(even.first, odd.first, even.second, odd.second), scale, bias,
                                               multiplier, &k->output);
        if (both) {
            vstrbq_scatter_offset_s32(y, to, v);
        } else {
            y[0] = (int8_t)vgetq_lane_s32(v, 0);
            y[step] = (int8_t)vgetq_lane_s32(v, 2);
        }
#else
        const int8_t *left = (const int8_t *)(const void *)(scale + 4);
        const int32_t sums[4] = {even.first, odd.first, even.second, odd.second};
        ES_UNROLL_NOT
        for (int32_t i = 0; i < 4; i++) {
            if (i % 2 == 0 || both) {
                const int32_t acc = (int32_t)((uint32_t)sums[i] + (uint32_t)scale[i % 2]);
                y[(i / 2) * step + i % 2] = es_mve_requant_one(acc, scale[2 + i % 2], left[i], &k->output);
            }
        }
#endif
        scale += 5;
        y += 2;
    }
}

/* scratch: two columns, taps rounded up to a multiple of 16 bytes; aligned to four. */
ES_INLINE void es_conv2d_sparse_mve_s8(const int8_t *in, int8_t *out, int8_t *scratch, const es_window *g,
                                       const es_mve_sparse *k, int32_t in_zero_point)
{
    const int32_t column = (k->taps + 15) / 16 * 16;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox += 2) {
            const int32_t pair = g->out_w % 2 == 0 || ox + 1 < g->out_w;
            (void)es_mve_pixel_taps(in, scratch, oy, ox, g, 0, in_zero_point);
            if (pair)
                (void)es_mve_pixel_taps(in, scratch + column, oy, ox + 1, g, 0, in_zero_point);
            es_mve_sparse_pair_s8(scratch, pair ? column : 0, out, pair ? g->out_c : 0, k);
            out += pair ? 2 * g->out_c : g->out_c;
        }
    }
}

#endif
