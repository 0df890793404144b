/* Dot products of int16 runs with int8 weights, one or two pixels by one or two output channels at a time.
 *
 * 32 bits hold 511 products; layers whose sums may need more (`wide`) collect parts of up to ES_RUN_S16 in 64. */
#ifndef ES_DOT_S16_H
#define ES_DOT_S16_H

#include "es_base.h"

#define ES_RUN_S16 256

/* Sums of pixel p and channel o at p * 2 + o: total (unused where sums fit 32 bits) + part. */
typedef struct {
    int64_t total[4];
    int32_t part[4];
} es_sums_s16;

ES_INLINE void es_sums_start_s16(es_sums_s16 *s, int64_t bias0, int64_t bias1, int32_t wide)
{
    ES_UNROLL_FULL
    for (int32_t i = 0; i < 4; i++) {
        const int64_t bias = i % 2 == 0 ? bias0 : bias1;
        s->total[i] = wide ? bias : 0;
        s->part[i] = wide ? 0 : (int32_t)bias;
    }
}

ES_INLINE void es_sums_flush_s16(es_sums_s16 *s)
{
    ES_UNROLL_FULL
    for (int32_t i = 0; i < 4; i++) {
        s->total[i] += s->part[i];
        s->part[i] = 0;
    }
}

ES_INLINE int64_t es_sum_s16(const es_sums_s16 *s, int32_t i, int32_t wide)
{
    return wide ? s->total[i] + s->part[i] : (int64_t)s->part[i];
}

/* part[p * 2 + o] += x[p * x_step] * w[o * w_step]; pixels and channels are 1 or 2. */
ES_INLINE void es_mac_s16(const int16_t *x, int32_t x_step, const int8_t *w, int32_t w_step, int32_t pixels,
                          int32_t channels, int32_t part[4])
{
    const int32_t x0 = x[0], w0 = w[0];
    const int32_t w1 = channels == 2 ? w[w_step] : 0;
    part[0] += x0 * w0;
    if (channels == 2)
        part[1] += x0 * w1;
    if (pixels == 2) {
        const int32_t x1 = x[x_step];
        part[2] += x1 * w0;
        if (channels == 2)
            part[3] += x1 * w1;
    }
}

/* One pixel by two channels for cores with eight registers, as es_dot_pair_s8: pointers to the ends of the runs and one
 * index that rises to zero; 5 instructions a product on Armv6-M. */
ES_INLINE void es_dot_pair_s16(const int16_t *x, const int8_t *w, int32_t w_step, int32_t count, int32_t part[4])
{
    const int16_t *x_end = x + count;
    const int8_t *w0_end = w + count, *w1_end = w + w_step + count;
    int32_t a0 = part[0], a1 = part[1];
    __asm__("" : "+r"(x_end), "+r"(w0_end), "+r"(w1_end));
    ES_UNROLL_NOT
    for (int32_t i = -count; i != 0; i++) {
        const int32_t v = x_end[i];
        a0 += v * w0_end[i];
        __asm__("" : "+r"(a0));
        a1 += v * w1_end[i];
        __asm__("" : "+r"(a1));
    }
    part[0] = a0;
    part[1] = a1;
}

/* `count` products along a run. */
ES_INLINE void es_dot_s16(const int16_t *x, int32_t x_step, const int8_t *w, int32_t w_step, int32_t count,
                          int32_t pixels, int32_t channels, int32_t wide, es_sums_s16 *s)
{
    ES_UNROLL_NOT
    while (count > 0) {
        const int32_t run = wide ? es_min_s32(count, ES_RUN_S16) : count;
        const int32_t whole = run & ~3;
        if (ES_TILE_PIXELS == 1 && channels == 2) {
            es_dot_pair_s16(x, w, w_step, run, s->part);
        } else {
            ES_UNROLL_NOT
            for (int32_t i = 0; i < whole; i += 4) {
                es_mac_s16(x + i, x_step, w + i, w_step, pixels, channels, s->part);
                es_mac_s16(x + i + 1, x_step, w + i + 1, w_step, pixels, channels, s->part);
                es_mac_s16(x + i + 2, x_step, w + i + 2, w_step, pixels, channels, s->part);
                es_mac_s16(x + i + 3, x_step, w + i + 3, w_step, pixels, channels, s->part);
            }
            ES_UNROLL_NOT
            for (int32_t i = whole; i < run; i++)
                es_mac_s16(x + i, x_step, w + i, w_step, pixels, channels, s->part);
        }
        if (wide)
            es_sums_flush_s16(s);
        x += run;
        w += run;
        count -= run;
    }
}

#endif
