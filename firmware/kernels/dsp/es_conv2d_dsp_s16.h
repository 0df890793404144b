/* int16 convolution and fully connected layers with int8 weights for the DSP extension: two products an instruction.
 *
 * Weights [O, taps]: of four taps the bytes 0, 2, 1, 3, so that SXTB16 unpacks neighbours; the last taps, fewer than
 * four, in order. A convolution gathers the taps of up to two pixels of a row, zeros for those outside the image, and
 * then writes their channels in pairs; a 1x1 one reads them where they are. The memory planner relies on no more than
 * the order of the scalar kernel. */
#ifndef ES_CONV2D_DSP_S16_H
#define ES_CONV2D_DSP_S16_H

#include "es_dsp.h"
#include "es_fully_connected_s16.h"

/* As es_dot_s16. */
ES_INLINE void es_dot_dsp_s16(const int16_t *x, int32_t x_step, const int8_t *w, int32_t w_step, int32_t count,
                              int32_t pixels, int32_t channels, int32_t wide, es_sums_s16 *s)
{
    ES_UNROLL_NOT
    while (count > 0) {
        const int32_t run = wide ? es_min_s32(count, ES_RUN_S16) : count;
        uint32_t a0 = (uint32_t)s->part[0], a1 = (uint32_t)s->part[1];
        uint32_t a2 = (uint32_t)s->part[2], a3 = (uint32_t)s->part[3];
        const int32_t whole = run & ~3;
        ES_UNROLL_NOT
        for (int32_t i = 0; i < whole; i += 4) {
            const uint32_t w0 = es_load_word(w + i), w0_low = es_sxtb16(w0), w0_high = es_sxtb16_odd(w0);
            const uint32_t w1 = channels == 2 ? es_load_word(w + w_step + i) : 0u;
            const uint32_t w1_low = channels == 2 ? es_sxtb16(w1) : 0u;
            const uint32_t w1_high = channels == 2 ? es_sxtb16_odd(w1) : 0u;
            const uint32_t x_low = es_load_halves(x + i), x_high = es_load_halves(x + i + 2);
            a0 = es_smlad(x_high, w0_high, es_smlad(x_low, w0_low, a0));
            if (channels == 2)
                a1 = es_smlad(x_high, w1_high, es_smlad(x_low, w1_low, a1));
            if (pixels == 2) {
                const uint32_t y_low = es_load_halves(x + x_step + i), y_high = es_load_halves(x + x_step + i + 2);
                a2 = es_smlad(y_high, w0_high, es_smlad(y_low, w0_low, a2));
                if (channels == 2)
                    a3 = es_smlad(y_high, w1_high, es_smlad(y_low, w1_low, a3));
            }
        }
        s->part[0] = (int32_t)a0;
        s->part[1] = (int32_t)a1;
        s->part[2] = (int32_t)a2;
        s->part[3] = (int32_t)a3;
        ES_UNROLL_NOT
        for (int32_t i = whole; i < run; i++)
            es_mac_s16(x + i, x_step, w + i, w_step, pixels, channels, s->part);
        if (wide)
            es_sums_flush_s16(s);
        x += run;
        w += run;
        count -= run;
    }
}

/* Taps (row, column, channel) of the window whose tap (0, 0) is at row iy, column ix. */
ES_INLINE void es_gather_s16(const int16_t *in, int32_t iy, int32_t ix, const es_window *g, int16_t *to)
{
    const int32_t width = g->k_w * g->in_c;
    const int32_t whole = g->dilation_w == 1 && ix >= 0 && ix + g->k_w <= g->in_w;
    ES_UNROLL_NOT
    for (int32_t ky = 0; ky < g->k_h; ky++, to += width) {
        const int32_t y = iy + ky * g->dilation_h;
        if (y < 0 || y >= g->in_h) {
            __builtin_memset(to, 0, (size_t)width * 2u);
        } else if (whole) {
            __builtin_memcpy(to, in + (y * g->in_w + ix) * g->in_c, (size_t)width * 2u);
        } else {
            ES_UNROLL_NOT
            for (int32_t kx = 0; kx < g->k_w; kx++) {
                const int32_t x = ix + kx * g->dilation_w;
                int16_t *tap = to + kx * g->in_c;
                if (x < 0 || x >= g->in_w)
                    __builtin_memset(tap, 0, (size_t)g->in_c * 2u);
                else
                    __builtin_memcpy(tap, in + (y * g->in_w + x) * g->in_c, (size_t)g->in_c * 2u);
            }
        }
    }
}

/* All channels of one or two pixels whose taps lie at x. */
ES_INLINE void es_gemm_dsp_s16(const int16_t *x, int32_t x_step, const es_window *g, const es_weights_s16 *k,
                               int32_t pixels, const es_reduced *q, int16_t *y)
{
    const int32_t taps = g->k_h * g->k_w * g->in_c;
    ES_UNROLL_NOT
    for (int32_t c = 0; c < g->out_c; c += 2) {
        const int32_t channels = es_min_s32(g->out_c - c, 2);
        es_sums_s16 s;
        es_sums_start_s16(&s, es_bias_s16(k, q->wide, c), channels == 2 ? es_bias_s16(k, q->wide, c + 1) : 0,
                          q->wide);
        if (channels == 2)
            es_dot_dsp_s16(x, x_step, k->weights + c * taps, taps, taps, pixels, 2, q->wide, &s);
        else
            es_dot_dsp_s16(x, x_step, k->weights + c * taps, taps, taps, pixels, 1, q->wide, &s);
        y[c] = es_reduced_s16(es_sum_s16(&s, 0, q->wide), c, q);
        if (channels == 2)
            y[c + 1] = es_reduced_s16(es_sum_s16(&s, 1, q->wide), c + 1, q);
        if (pixels == 2) {
            y[g->out_c + c] = es_reduced_s16(es_sum_s16(&s, 2, q->wide), c, q);
            if (channels == 2)
                y[g->out_c + c + 1] = es_reduced_s16(es_sum_s16(&s, 3, q->wide), c + 1, q);
        }
    }
}

/* scratch: taps rounded up to an even number, for two pixels; unused by a 1x1 window that sees no padding. */
ES_INLINE void es_conv2d_dsp_s16(const int16_t *in, int16_t *out, int16_t *scratch, const es_window *g,
                                 const es_weights_s16 *k, const es_reduced *q)
{
    const int32_t taps = g->k_h * g->k_w * g->in_c;
    const int32_t column = taps + (taps & 1);
    const int32_t direct = g->k_h * g->k_w == 1 && !es_rows_see_padding(g) && !es_columns_see_padding(g);
    int16_t *y = out;
    ES_UNROLL_NOT
    for (int32_t oy = 0; oy < g->out_h; oy++) {
        const int32_t iy = oy * g->stride_h - g->pad_top;
        ES_UNROLL_NOT
        for (int32_t ox = 0; ox < g->out_w; ox += 2) {
            const int32_t ix = ox * g->stride_w - g->pad_left;
            const int32_t pixels = es_min_s32(g->out_w - ox, 2);
            const int16_t *x = direct ? in + (iy * g->in_w + ix) * g->in_c : scratch;
            const int32_t x_step = direct ? g->stride_w * g->in_c : column;
            if (!direct) {
                ES_UNROLL_NOT
                for (int32_t p = 0; p < pixels; p++)
                    es_gather_s16(in, iy, ix + p * g->stride_w, g, scratch + p * column);
            }
            if (pixels == 2)
                es_gemm_dsp_s16(x, x_step, g, k, 2, q, y);
            else
                es_gemm_dsp_s16(x, x_step, g, k, 1, q, y);
            y += pixels * g->out_c;
        }
    }
}

ES_INLINE void es_fully_connected_dsp_s16(const int16_t *in, int16_t *out, int32_t rows, int32_t in_c, int32_t out_c,
                                          const es_weights_s16 *k, const es_real_scale *q)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        const int16_t *x = in + r * in_c;
        int16_t *y = out + r * out_c;
        ES_UNROLL_NOT
        for (int32_t c = 0; c < out_c; c += 2) {
            const int32_t channels = es_min_s32(out_c - c, 2);
            es_sums_s16 s;
            es_sums_start_s16(&s, es_bias_s16(k, q->wide, c), channels == 2 ? es_bias_s16(k, q->wide, c + 1) : 0,
                              q->wide);
            if (channels == 2)
                es_dot_dsp_s16(x, 0, k->weights + c * in_c, in_c, in_c, 1, 2, q->wide, &s);
            else
                es_dot_dsp_s16(x, 0, k->weights + c * in_c, 0, in_c, 1, 1, q->wide, &s);
            /* One copy of the rescaling serves both. */
            ES_UNROLL_NOT
            for (int32_t i = 0; i < channels; i++)
                y[c + i] = es_real_s16(es_sum_s16(&s, i, q->wide), c + i, q);
        }
    }
}

#endif
