/* int16 pooling and mean. Pools write pixel after pixel in raster order, channel by channel; padding never counts as a
 * value of max pooling. The memory planner relies on the order. Zero-points are 0. */
#ifndef ES_POOL_S16_H
#define ES_POOL_S16_H

#include "es_requant_s16.h"
#include "es_window.h"

/* sum / count rounded half away from zero; |sum| <= 2^15 * count, count < 2^16. */
ES_INLINE int32_t es_rounded_quotient_s16(int32_t sum, int32_t count)
{
#if defined(ES_NO_DIVIDE)
    uint32_t rest = (uint32_t)(sum < 0 ? -sum : sum) + ((uint32_t)count >> 1);
    uint32_t quotient = 0;
    ES_UNROLL_NOT
    for (int32_t bit = 15; bit >= 0; bit--) {
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

/* maximum: else the mean, over all taps where count_padding, else over the real ones. rescaled: the mean goes through
 * q; without it q gives only the clamp. */
typedef struct {
    int32_t maximum, count_padding, rescaled;
} es_pool_options_s16;

/* The largest, or the sum, of the window's real taps; `first` is the offset of tap (0, 0), which may lie outside. */
ES_INLINE int32_t es_window_s16(const int16_t *in, int32_t first, const es_window *g, es_taps rows, es_taps columns,
                                int32_t maximum)
{
    int32_t v = maximum ? INT16_MIN : 0;
    ES_UNROLL_NOT
    for (int32_t ky = rows.from; ky < rows.to; ky++) {
        ES_UNROLL_NOT
        for (int32_t kx = columns.from; kx < columns.to; kx++) {
            const int32_t tap = in[first + (ky * g->in_w + kx) * g->in_c];
            v = maximum ? es_max_s32(v, tap) : v + tap;
        }
    }
    return v;
}

ES_INLINE void es_pool_s16(const int16_t *in, int16_t *out, const es_window *g, const es_pool_options_s16 *p,
                           const es_requant *q)
{
    int16_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
            const int32_t real = (rows.to - rows.from) * (columns.to - columns.from);
            const int32_t count = p->count_padding ? g->k_h * g->k_w : es_max_s32(real, 1);
            ES_UNROLL_NOT
            for (int32_t c = 0; c < g->in_c; c++) {
                int32_t v = es_window_s16(in, (iy * g->in_w + ix) * g->in_c + c, g, rows, columns, p->maximum);
                if (!p->maximum)
                    v = es_rounded_quotient_s16(v, count);
                y[c] = (int16_t)(p->rescaled ? es_requant_stored(v, c, q) : es_clamp_s32(v, q->min, q->max));
            }
            y += g->in_c;
        }
    }
}

/* Mean over all pixels, fewer than 2^16, with 1 / pixels folded into q. Channel after channel: output c is written when
 * channel c has been read. */
ES_INLINE void es_mean_s16(const int16_t *in, int16_t *out, int32_t pixels, int32_t channels, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t c = 0; c < channels; c++) {
        int32_t sum = 0;
        ES_UNROLL_NOT
        for (int32_t i = 0; i < pixels; i++)
            sum += in[i * channels + c];
        out[c] = (int16_t)es_requant_stored(sum, c, q);
    }
}

#endif
