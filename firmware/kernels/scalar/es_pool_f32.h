/* float32 pooling and mean; order of access as in int8. */
#ifndef ES_POOL_F32_H
#define ES_POOL_F32_H

#include "es_window.h"

typedef struct {
    int32_t maximum;       /* 1: max pooling, 0: average */
    int32_t count_padding; /* average: padding counts as zeros */
    float min, max;        /* clamp */
} es_pool_options_f32;

ES_INLINE void es_pool_f32(const float *in, float *out, const es_window *g, const es_pool_options_f32 *options)
{
    float *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
            const int32_t real = (rows.to - rows.from) * (columns.to - columns.from);
            const int32_t count = options->count_padding ? g->k_h * g->k_w : es_max_s32(real, 1);
            const float share = 1.0f / (float)count;
            ES_UNROLL_NOT
            for (int32_t c = 0; c < g->in_c; c++) {
                float v = options->maximum ? -__builtin_inff() : 0.0f;
                for (int32_t ky = rows.from; ky < rows.to; ky++)
                    for (int32_t kx = columns.from; kx < columns.to; kx++) {
                        const float tap = in[((iy + ky) * g->in_w + ix + kx) * g->in_c + c];
                        if (options->maximum)
                            v = tap > v ? tap : v;
                        else
                            v += tap;
                    }
                y[c] = es_clamp_f32(options->maximum ? v : v * share, options->min, options->max);
            }
            y += g->in_c;
        }
    }
}

/* Mean over all pixels, channel after channel. */
ES_INLINE void es_mean_f32(const float *in, float *out, int32_t pixels, int32_t channels, float lo, float hi)
{
    const float share = 1.0f / (float)pixels;
    ES_UNROLL_NOT
    for (int32_t c = 0; c < channels; c++) {
        float sum = 0.0f;
        for (int32_t i = 0; i < pixels; i++)
            sum += in[i * channels + c];
        out[c] = es_clamp_f32(sum * share, lo, hi);
    }
}

#endif
