/* int8 pooling and mean, four channels at a time: their sums of up to 256 pixels fit 16 bits.
 *
 * Order of access is that of es_pool_s8.h, but that four channels are read before the first of them is written. */
#ifndef ES_POOL_DSP_S8_H
#define ES_POOL_DSP_S8_H

#include "es_dsp.h"
#include "es_pool_s8.h"

/* Sums of four channels in 16-bit halves. */
typedef struct {
    uint32_t even, odd; /* channels 0 and 2, 1 and 3 */
} es_even_odd;

/* `count` pixels, `step` bytes apart. */
ES_INLINE es_even_odd es_add_pixels_s8(es_even_odd sums, const int8_t *x, int32_t step, int32_t count)
{
    ES_UNROLL_NOT
    for (; count >= 4; count -= 4) {
        ES_UNROLL_FULL
        for (int32_t i = 0; i < 4; i++) {
            const uint32_t v = es_load_word(x + i * step);
            sums.even = es_sxtab16(sums.even, v);
            sums.odd = es_sxtab16_odd(sums.odd, v);
        }
        x += 4 * step;
    }
    ES_UNROLL_NOT
    for (; count > 0; count--) {
        const uint32_t v = es_load_word(x);
        sums.even = es_sxtab16(sums.even, v);
        sums.odd = es_sxtab16_odd(sums.odd, v);
        x += step;
    }
    return sums;
}

/* Windows of at most 256 pixels. */
ES_INLINE void es_avg_pool_dsp_s8(const int8_t *in, int8_t *out, const es_window *g, const es_avg_pool_options *options,
                                  const es_requant *q)
{
    const int32_t all = g->k_h * g->k_w;
    const int32_t joined = g->out_h == 1 && g->out_w == 1 && g->k_w == g->in_w && g->pad_left == 0;
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
            const int32_t real = (rows.to - rows.from) * (columns.to - columns.from);
            const int32_t count = options->count_padding ? all : es_max_s32(real, 1);
            const int32_t start = options->count_padding ? (all - real) * options->in_zero_point : 0;
            const int32_t first = ((iy + rows.from) * g->in_w + ix + columns.from) * g->in_c;
            int32_t c = 0;
            ES_UNROLL_NOT
            for (; c + 4 <= g->in_c; c += 4) {
                es_even_odd sums = {0u, 0u};
                if (joined) {
                    sums = es_add_pixels_s8(sums, in + (first + c), g->in_c, real);
                } else if (real > 0) {
                    const int8_t *x = in + (first + c);
                    ES_UNROLL_NOT
                    for (int32_t ky = rows.from; ky < rows.to; ky++) {
                        sums = es_add_pixels_s8(sums, x, g->in_c, columns.to - columns.from);
                        if (ky + 1 < rows.to)
                            x += g->in_w * g->in_c;
                    }
                }
                y[c] = es_avg_pool_value_s8(start + es_low_half(sums.even), count, options, q);
                y[c + 1] = es_avg_pool_value_s8(start + es_low_half(sums.odd), count, options, q);
                y[c + 2] = es_avg_pool_value_s8(start + es_high_half(sums.even), count, options, q);
                y[c + 3] = es_avg_pool_value_s8(start + es_high_half(sums.odd), count, options, q);
            }
            ES_UNROLL_NOT
            for (; c < g->in_c; c++)
                y[c] = es_avg_pool_value_s8(
                    start + es_window_sum_s8(in, (iy * g->in_w + ix) * g->in_c + c, g, rows, columns), count, options,
                    q);
            y += g->in_c;
        }
    }
}

/* The larger of two int8 values in each byte. */
ES_INLINE uint32_t es_max_word_s8(uint32_t a, uint32_t b)
{
#if ES_DSP
    uint32_t t;
    __asm__("ssub8 %1, %0, %2\n\tsel %0, %0, %2" : "+r"(a), "=&r"(t) : "r"(b) : "cc");
    return a;
#else
    uint32_t r = 0;
    for (int32_t shift = 0; shift < 32; shift += 8) {
        const int32_t x = (int8_t)(uint8_t)(a >> shift & 0xFFu), y = (int8_t)(uint8_t)(b >> shift & 0xFFu);
        r |= ((uint32_t)es_max_s32(x, y) & 0xFFu) << shift;
    }
    return r;
#endif
}

/* Clamp: es_clamp_s8. */
ES_INLINE void es_max_pool_dsp_s8(const int8_t *in, int8_t *out, const es_window *g)
{
    int8_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        const es_taps rows = es_real_taps(iy, g->k_h, 1, g->in_h);
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox++) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const int32_t full = g->k_h * g->k_w <= ES_POOL_UNROLL && es_row_is_full(g, oy) && es_column_is_full(g, ox);
            const es_taps columns = es_real_taps(ix, g->k_w, 1, g->in_w);
            const int32_t first = (iy * g->in_w + ix) * g->in_c;
            int32_t c = 0;
            ES_UNROLL_NOT
            for (; c + 4 <= g->in_c; c += 4) {
                uint32_t v = 0x80808080u;
                if (full) {
                    const int8_t *x = in + (first + c);
                    v = es_load_word(x);
                    ES_UNROLL_FULL
                    for (int32_t i = 1; i < g->k_h * g->k_w; i++)
                        v = es_max_word_s8(v, es_load_word(x + (i / g->k_w * g->in_w + i % g->k_w) * g->in_c));
                } else {
                    ES_UNROLL_NOT
                    for (int32_t ky = rows.from; ky < rows.to; ky++) {
                        ES_UNROLL_NOT
                        for (int32_t kx = columns.from; kx < columns.to; kx++)
                            v = es_max_word_s8(v, es_load_word(in + (first + c + (ky * g->in_w + kx) * g->in_c)));
                    }
                }
                es_store_word(y + c, v);
            }
            ES_UNROLL_NOT
            for (; c < g->in_c; c++)
                y[c] = (int8_t)es_window_max_s8(in, first + c, g, rows, columns);
            y += g->in_c;
        }
    }
}

/* Mean over all pixels, in runs of 256. */
ES_INLINE void es_mean_dsp_s8(const int8_t *in, int8_t *out, int32_t pixels, int32_t channels, int32_t zero_point,
                              const es_requant *q)
{
    int32_t c = 0;
    ES_UNROLL_NOT
    for (; c + 4 <= channels; c += 4) {
        int32_t total[4] = {-pixels * zero_point, -pixels * zero_point, -pixels * zero_point, -pixels * zero_point};
        ES_UNROLL_NOT
        for (int32_t i = 0; i < pixels; i += 256) {
            es_even_odd sums = {0u, 0u};
            sums = es_add_pixels_s8(sums, in + (i * channels + c), channels, es_min_s32(pixels - i, 256));
            total[0] += es_low_half(sums.even);
            total[1] += es_low_half(sums.odd);
            total[2] += es_high_half(sums.even);
            total[3] += es_high_half(sums.odd);
        }
        ES_UNROLL_FULL
        for (int32_t k = 0; k < 4; k++)
            out[c + k] = es_requant_s8(total[k], c + k, q);
    }
    ES_UNROLL_NOT
    for (; c < channels; c++) {
        int32_t sum = -pixels * zero_point;
        ES_UNROLL_NOT
        for (int32_t i = 0; i < pixels; i++)
            sum += in[i * channels + c];
        out[c] = es_requant_s8(sum, c, q);
    }
}

#endif
