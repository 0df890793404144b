/* Dot products of int8 runs, one or two pixels by one or two output channels at a time.
 *
 * Accumulators are unsigned so that an overflow wraps, as the reference's 32-bit accumulators do. */
#ifndef ES_DOT_S8_H
#define ES_DOT_S8_H

#include "es_base.h"

/* acc[p * 2 + o] += x[p * x_step] * w[o * w_step]; pixels and channels are 1 or 2. */
ES_INLINE void es_mac_s8(const int8_t *x, int32_t x_step, const int8_t *w, int32_t w_step, int32_t pixels,
                         int32_t channels, uint32_t acc[4])
{
    const int32_t x0 = x[0], w0 = w[0];
    acc[0] += (uint32_t)(x0 * w0);
    if (channels == 2) {
        const int32_t w1 = w[w_step];
        acc[1] += (uint32_t)(x0 * w1);
        if (pixels == 2) {
            const int32_t x1 = x[x_step];
            acc[2] += (uint32_t)(x1 * w0);
            acc[3] += (uint32_t)(x1 * w1);
        }
    } else if (pixels == 2) {
        const int32_t x1 = x[x_step];
        acc[2] += (uint32_t)(x1 * w0);
    }
}

/* One pixel by two channels for cores with eight registers: three pointers to the ends of the runs, one index that rises
 * to zero, two accumulators; 4.5 instructions a product on Armv6-M. The empty statements keep the compiler from merging
 * the pointers and from interleaving the steps, either of which spills. */
ES_INLINE void es_dot_pair_s8(const int8_t *x, const int8_t *w, int32_t w_step, int32_t count, uint32_t acc[4])
{
    const int8_t *x_end = x + count, *w0_end = w + count, *w1_end = w + w_step + count;
    uint32_t a0 = acc[0], a1 = acc[1];
    __asm__("" : "+r"(x_end), "+r"(w0_end), "+r"(w1_end));
    ES_UNROLL_NOT
    for (int32_t i = -count; i != 0; i++) {
        const int32_t v = x_end[i];
        a0 += (uint32_t)(v * w0_end[i]);
        __asm__("" : "+r"(a0));
        a1 += (uint32_t)(v * w1_end[i]);
        __asm__("" : "+r"(a1));
    }
    acc[0] = a0;
    acc[1] = a1;
}

/* `count` products along a run; unrolled by four where there are registers. */
ES_INLINE void es_dot_s8(const int8_t *x, int32_t x_step, const int8_t *w, int32_t w_step, int32_t count,
                         int32_t pixels, int32_t channels, uint32_t acc[4])
{
    int32_t i = 0;
    if (ES_TILE_PIXELS == 1 && channels == 2) {
        es_dot_pair_s8(x, w, w_step, count, acc);
        return;
    }
    ES_UNROLL_NOT
    for (; i + 4 <= count; i += 4) {
        es_mac_s8(x + i, x_step, w + i, w_step, pixels, channels, acc);
        es_mac_s8(x + i + 1, x_step, w + i + 1, w_step, pixels, channels, acc);
        es_mac_s8(x + i + 2, x_step, w + i + 2, w_step, pixels, channels, acc);
        es_mac_s8(x + i + 3, x_step, w + i + 3, w_step, pixels, channels, acc);
    }
    for (; i < count; i++)
        es_mac_s8(x + i, x_step, w + i, w_step, pixels, channels, acc);
}

#endif
