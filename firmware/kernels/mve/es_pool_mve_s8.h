/* int8 average pooling and mean, eight channels at a time: their sums of up to 256 pixels fit 16 bits. Max pooling, 16.
 *
 * Order of access is that of es_pool_s8.h, but that all these channels are read before the first of them is written. */
#ifndef ES_POOL_MVE_S8_H
#define ES_POOL_MVE_S8_H

#include "es_mve.h"
#include "es_pool_s8.h"

/* Adds up to 256 pixels, `step` bytes apart, of `real` (at most eight) channels to sums. */
ES_INLINE void es_mve_add_pixels(int32_t sums[8], const int8_t *x, int32_t step, int32_t count, int32_t real)
{
#if ES_MVE
    const mve_pred16_t some = vctp16q((uint32_t)real);
    int16x8_t sum = vdupq_n_s16(0);
    int16_t found[8];
    ES_UNROLL_NOT
    for (; count > 0; count--) {
        sum = vaddq_s16(sum, vldrbq_z_s16(x, some));
        x += step;
    }
    vstrhq_s16(found, sum);
    ES_UNROLL_NOT
    for (int32_t c = 0; c < 8; c++)
        sums[c] += found[c];
#else
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++) {
        ES_UNROLL_NOT
        for (int32_t c = 0; c < real; c++)
            sums[c] += x[i * step + c];
    }
#endif
}

/* Windows of at most 256 pixels a row. */
ES_INLINE void es_avg_pool_mve_s8(const int8_t *in, int8_t *out, const es_window *g, const es_avg_pool_options *options,
                                  const es_requant *q)
{
    const int32_t all = g->k_h * g->k_w;
    /* Windows as wide as the image are one run of pixels. */
    const int32_t joined = g->out_w == 1 && g->k_w == g->in_w && g->pad_left == 0 && all <= 256;
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
            const int32_t wide = columns.to - columns.from, real = (rows.to - rows.from) * wide;
            const int32_t count = options->count_padding ? all : es_max_s32(real, 1);
            const int32_t start = options->count_padding ? (all - real) * options->in_zero_point : 0;
            ES_UNROLL_NOT
            for (int32_t c = 0; c < g->in_c; c += 8) {
                const int32_t some = es_min_s32(g->in_c - c, 8);
                int32_t sums[8] = {start, start, start, start, start, start, start, start};
                if (real > 0) {
                    const int8_t *x = in + ((iy + rows.from) * g->in_w + ix + columns.from) * g->in_c + c;
                    const int32_t runs = joined ? 1 : rows.to - rows.from;
                    ES_UNROLL_NOT
                    for (int32_t ky = 0; ky < runs; ky++)
                        es_mve_add_pixels(sums, x + ky * g->in_w * g->in_c, g->in_c, joined ? real : wide, some);
                }
                ES_UNROLL_NOT
                for (int32_t i = 0; i < some; i++)
                    y[c + i] = es_avg_pool_value_s8(sums[i], count, options, q);
            }
            y += g->in_c;
        }
    }
}

ES_INLINE void es_max_pool_mve_s8(const int8_t *in, int8_t *out, const es_window *g, int32_t low, int32_t high)
{
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
            const int32_t first = (iy * g->in_w + ix) * g->in_c;
#if ES_MVE
            ES_UNROLL_NOT
            for (int32_t c = 0; c < g->in_c; c += 16) {
                const mve_pred16_t some = vctp8q((uint32_t)(g->in_c - c));
                int8x16_t v = vdupq_n_s8((int8_t)low);
                ES_UNROLL_NOT
                for (int32_t ky = rows.from; ky < rows.to; ky++) {
                    ES_UNROLL_NOT
                    for (int32_t kx = columns.from; kx < columns.to; kx++)
                        v = vmaxq_s8(v, vldrbq_z_s8(in + (first + c + (ky * g->in_w + kx) * g->in_c), some));
                }
                if (high < 127)
                    v = vminq_s8(v, vdupq_n_s8((int8_t)high));
                es_mve_store_some_s8(y + c, v, some);
            }
#else
            ES_UNROLL_NOT
            for (int32_t c = 0; c < g->in_c; c++)
                y[c] = (int8_t)es_clamp_s32(es_window_max_s8(in, first + c, g, rows, columns), low, high);
#endif
            y += g->in_c;
        }
    }
}

/* Mean over all pixels, in runs of 256. */
ES_INLINE void es_mean_mve_s8(const int8_t *in, int8_t *out, int32_t pixels, int32_t channels, int32_t zero_point,
                              const es_requant *q)
{
    const int32_t start = -pixels * zero_point;
    ES_UNROLL_NOT
    for (int32_t c = 0; c < channels; c += 8) {
        const int32_t some = es_min_s32(channels - c, 8);
        int32_t sums[8] = {start, start, start, start, start, start, start, start};
        ES_UNROLL_NOT
        for (int32_t i = 0; i < pixels; i += 256)
            es_mve_add_pixels(sums, in + (i * channels + c), channels, es_min_s32(pixels - i, 256), some);
        ES_UNROLL_NOT
        for (int32_t i = 0; i < some; i++)
            out[c + i] = es_requant_s8(sums[i], c + i, q);
    }
}

#endif
