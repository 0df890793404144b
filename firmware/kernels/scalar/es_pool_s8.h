/* int8 pooling and mean. Pools write pixel after pixel in raster order, channel by channel; padding never counts as a
 * value of max pooling. The memory planner relies on the order. */
#ifndef ES_POOL_S8_H
#define ES_POOL_S8_H

#include "es_requant.h"
#include "es_window.h"

/* Windows of up to this many pixels are unrolled where they lie inside the image. */
#define ES_POOL_UNROLL 9

/* The window's real taps; `first` is the offset of tap (0, 0) of one channel, which may lie outside the image. */
ES_INLINE int32_t es_window_max_s8(const int8_t *in, int32_t first, const es_window *g, es_taps rows, es_taps columns)
{
    int32_t v = -128;
    ES_UNROLL_NOT
    for (int32_t ky = rows.from; ky < rows.to; ky++) {
        ES_UNROLL_NOT
        for (int32_t kx = columns.from; kx < columns.to; kx++)
            v = es_max_s32(v, in[first + (ky * g->in_w + kx) * g->in_c]);
    }
    return v;
}

ES_INLINE int32_t es_window_sum_s8(const int8_t *in, int32_t first, const es_window *g, es_taps rows, es_taps columns)
{
    int32_t sum = 0;
    ES_UNROLL_NOT
    for (int32_t ky = rows.from; ky < rows.to; ky++) {
        ES_UNROLL_NOT
        for (int32_t kx = columns.from; kx < columns.to; kx++)
            sum += in[first + (ky * g->in_w + kx) * g->in_c];
    }
    return sum;
}

/* The same over a small window that lies inside: `maximum` picks the largest, else the sum. */
ES_INLINE int32_t es_full_window_s8(const int8_t *x, const es_window *g, int32_t maximum)
{
    int32_t v = maximum ? -128 : 0;
    ES_UNROLL_FULL
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        ES_UNROLL_FULL
        for (int32_t kx = 0; kx < g->k_w; kx++) {
            const int32_t tap = x[(ky * g->in_w + kx) * g->in_c];
            v = maximum ? es_max_s32(v, tap) : v + tap;
        }
    }
    return v;
}

ES_INLINE void es_max_pool_s8(const int8_t *in, int8_t *out, const es_window *g, int32_t lo, int32_t hi)
{
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const int32_t first = (iy * g->in_w + ix) * g->in_c;
            if (g->k_h * g->k_w <= ES_POOL_UNROLL && es_row_is_full(g, oy) && es_column_is_full(g, ox)) {
                ES_UNROLL_NOT
                for (int32_t c = 0; c < g->in_c; c++)
                    y[c] = (int8_t)es_clamp_s32(es_full_window_s8(in + (first + c), g, 1), lo, hi);
            } else {
                const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
                ES_UNROLL_NOT
                for (int32_t c = 0; c < g->in_c; c++)
                    y[c] = (int8_t)es_clamp_s32(es_window_max_s8(in, first + c, g, rows, columns), lo, hi);
            }
            y += g->in_c;
        }
    }
}

/* sum / count rounded half away from zero; |sum| <= 128 * count, count < 2^23. */
ES_INLINE int32_t es_rounded_quotient(int32_t sum, int32_t count)
{
#if defined(ES_NO_DIVIDE)
    uint32_t rest = (uint32_t)(sum < 0 ? -sum : sum) + ((uint32_t)count >> 1);
    uint32_t quotient = 0;
    ES_UNROLL_NOT
    for (int32_t bit = 7; bit >= 0; bit--) {
        const uint32_t part = (uint32_t)count << bit;
        if (rest >= part) {
            rest -= part;
            quotient |= UINT32_C(1) << bit;
        }
    }
    return sum < 0 ? -(int32_t)quotient : (int32_t)quotient;
#else
    return (sum > 0 ? sum + count / 2 : sum - count / 2) / count;
#endif
}

/* count_padding: padding counts as real zeros. rescaled: the mean goes through q as a Rescale layer does. Without it
 * input and output share their units, and q gives only the clamp. */
typedef struct {
    int32_t in_zero_point;
    int32_t count_padding;
    int32_t rescaled;
} es_avg_pool_options;

ES_INLINE int8_t es_avg_pool_value_s8(int32_t sum, int32_t count, const es_avg_pool_options *options,
                                      const es_requant *q)
{
    const int32_t mean = es_rounded_quotient(sum, count);
    if (options->rescaled)
        return es_requant_s8(mean - options->in_zero_point, 0, q);
    return (int8_t)es_clamp_s32(mean, q->min, q->max);
}

ES_INLINE void es_avg_pool_s8(const int8_t *in, int8_t *out, const es_window *g, const es_avg_pool_options *options,
                              const es_requant *q)
{
    const int32_t all = g->k_h * g->k_w;
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const int32_t first = (iy * g->in_w + ix) * g->in_c;
            if (all <= ES_POOL_UNROLL && es_row_is_full(g, oy) && es_column_is_full(g, ox)) {
                ES_UNROLL_NOT
                for (int32_t c = 0; c < g->in_c; c++)
                    y[c] = es_avg_pool_value_s8(es_full_window_s8(in + (first + c), g, 0), all, options, q);
            } else {
                const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
                const int32_t real = (rows.to - rows.from) * (columns.to - columns.from);
                const int32_t count = options->count_padding ? all : es_max_s32(real, 1);
                const int32_t start = options->count_padding ? (all - real) * options->in_zero_point : 0;
                ES_UNROLL_NOT
                for (int32_t c = 0; c < g->in_c; c++)
                    y[c] = es_avg_pool_value_s8(start + es_window_sum_s8(in, first + c, g, rows, columns), count,
                                                options, q);
            }
            y += g->in_c;
        }
    }
}

/* Mean over all pixels: the sum of (x - zero_point), at most 2^23 pixels, with 1 / pixels folded into q. Channel after
 * channel: output c is written when channel c has been read. */
ES_INLINE void es_mean_s8(const int8_t *in, int8_t *out, int32_t pixels, int32_t channels, int32_t zero_point,
                          const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t c = 0; c < channels; c++) {
        int32_t sum = -pixels * zero_point;
        ES_UNROLL_NOT
        for (int32_t i = 0; i < pixels; i++)
            sum += in[i * channels + c];
        out[c] = es_requant_s8(sum, c, q);
    }
}

#endif
