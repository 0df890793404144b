/* float32 convolution, depthwise convolution and fully connected; layouts and order of access as in int8. */
#ifndef ES_CONV2D_F32_H
#define ES_CONV2D_F32_H

#include "es_window.h"

typedef struct {
    const float *weights;
    const float *bias;
    float min, max; /* clamp */
} es_weights_f32;

/* acc[o] += x . w_o along a run; one or two channels. */
ES_INLINE void es_dot_f32(const float *x, const float *w, int32_t w_step, int32_t count, int32_t channels,
                          float acc[2])
{
    for (int32_t i = 0; i < count; i++) {
        acc[0] += x[i] * w[i];
        if (channels == 2)
            acc[1] += x[i] * w[w_step + i];
    }
}

/* One or two channels of one pixel over its real taps; `first` is the offset of tap (0, 0). */
ES_INLINE void es_conv2d_tile_f32(const float *in, int32_t first, const es_window *g, const es_weights_f32 *k,
                                  int32_t channels, int32_t c, es_taps rows, es_taps columns, float *y)
{
    const int32_t depth = g->in_c / g->groups;
    const int32_t w_step = g->k_h * g->k_w * depth;
    const int32_t joined = g->dilation_w == 1 && g->groups == 1;
    float acc[2] = {k->bias[c], channels == 2 ? k->bias[c + 1] : 0.0f};
    ES_UNROLL_NOT
    for (int32_t ky = rows.from; ky < rows.to; ky++) {
        const int32_t row = first + ky * g->dilation_h * g->in_w * g->in_c;
        const float *w = k->weights + c * w_step + ky * g->k_w * depth;
        if (joined) {
            if (columns.from < columns.to)
                es_dot_f32(in + (row + columns.from * g->in_c), w + columns.from * depth, w_step,
                           (columns.to - columns.from) * depth, channels, acc);
        } else {
            ES_UNROLL_NOT
            for (int32_t kx = columns.from; kx < columns.to; kx++)
                es_dot_f32(in + (row + kx * g->dilation_w * g->in_c), w + kx * depth, w_step, depth, channels, acc);
        }
    }
    y[c] = es_clamp_f32(acc[0], k->min, k->max);
    if (channels == 2)
        y[c + 1] = es_clamp_f32(acc[1], k->min, k->max);
}

ES_INLINE void es_conv2d_pixel_f32(const float *in, int32_t first, const es_window *g, const es_weights_f32 *k,
                                   es_taps rows, es_taps columns, float *y)
{
    const int32_t width = g->out_c / g->groups;
    ES_UNROLL_NOT
    for (int32_t group = 0; group < g->groups; group++) {
        const int32_t start = first + group * (g->in_c / g->groups);
        int32_t c = group * width;
        ES_UNROLL_NOT
        for (; c + 2 <= (group + 1) * width; c += 2)
            es_conv2d_tile_f32(in, start, g, k, 2, c, rows, columns, y);
        if (width % 2 != 0)
            es_conv2d_tile_f32(in, start, g, k, 1, c, rows, columns, y);
    }
}

ES_INLINE void es_conv2d_f32(const float *in, float *out, const es_window *g, const es_weights_f32 *k)
{
    const es_taps all_rows = {0, g->k_h}, all_columns = {0, g->k_w};
    float *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const int32_t first = (iy * g->in_w + ix) * g->in_c;
            if (es_row_is_full(g, oy) && es_column_is_full(g, ox))
                es_conv2d_pixel_f32(in, first, g, k, all_rows, all_columns, y);
            else
                es_conv2d_pixel_f32(in, first, g, k, es_real_taps(iy, g->k_h, g->dilation_h, g->in_h),
                                    es_real_taps(ix, g->k_w, g->dilation_w, g->in_w), y);
            y += g->out_c;
        }
    }
}

/* Weights [KH, KW, C * multiplier]. */
ES_INLINE void es_depthwise_pixel_f32(const float *in, int32_t first, const es_window *g, const es_weights_f32 *k,
                                      es_taps rows, es_taps columns, float *y)
{
    const int32_t multiplier = g->out_c / g->in_c;
    ES_UNROLL_NOT
    for (int32_t ic = 0; ic < g->in_c; ic++) {
        ES_UNROLL_NOT
        for (int32_t m = 0; m < multiplier; m++) {
            const int32_t c = ic * multiplier + m;
            float acc = k->bias[c];
            for (int32_t ky = rows.from; ky < rows.to; ky++)
                for (int32_t kx = columns.from; kx < columns.to; kx++)
                    acc += in[first + ic + (ky * g->dilation_h * g->in_w + kx * g->dilation_w) * g->in_c] *
                           k->weights[(ky * g->k_w + kx) * g->out_c + c];
            y[c] = es_clamp_f32(acc, k->min, k->max);
        }
    }
}

ES_INLINE void es_depthwise_f32(const float *in, float *out, const es_window *g, const es_weights_f32 *k)
{
    const es_taps all_rows = {0, g->k_h}, all_columns = {0, g->k_w};
    float *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const int32_t first = (iy * g->in_w + ix) * g->in_c;
            if (es_row_is_full(g, oy) && es_column_is_full(g, ox))
                es_depthwise_pixel_f32(in, first, g, k, all_rows, all_columns, y);
            else
                es_depthwise_pixel_f32(in, first, g, k, es_real_taps(iy, g->k_h, g->dilation_h, g->in_h),
                                       es_real_taps(ix, g->k_w, g->dilation_w, g->in_w), y);
            y += g->out_c;
        }
    }
}

/* [rows, I] x weights [O, I] -> [rows, O]. */
ES_INLINE void es_fully_connected_f32(const float *in, float *out, int32_t rows, int32_t in_c, int32_t out_c,
                                      const es_weights_f32 *k)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        float *y = out + r * out_c;
        int32_t c = 0;
        ES_UNROLL_NOT
        for (; c + 2 <= out_c; c += 2) {
            float acc[2] = {k->bias[c], k->bias[c + 1]};
            es_dot_f32(in + r * in_c, k->weights + c * in_c, in_c, in_c, 2, acc);
            y[c] = es_clamp_f32(acc[0], k->min, k->max);
            y[c + 1] = es_clamp_f32(acc[1], k->min, k->max);
        }
        if (out_c % 2 != 0) {
            float acc[2] = {k->bias[c], 0.0f};
            es_dot_f32(in + r * in_c, k->weights + c * in_c, in_c, in_c, 1, acc);
            y[c] = es_clamp_f32(acc[0], k->min, k->max);
        }
    }
}

#endif
