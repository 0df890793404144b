/* Outputs as products of pixels' taps with rows of weights, 16 taps at a time: four channels of one pixel, or two
 * channels of two pixels, which loads less where taps do not stay in registers.
 *
 * weights: int8 [channels / n, taps / 16, n, 16], n = 4 or 2, both quotients rounded up, filled with zeros. scale: int32
 * [channels / n, 2 n + 1]: n times the bias with the input's zero-point folded in, n multipliers, then a byte each of
 * minus the shifts to the right (for n = 2 those of both channels twice).
 *
 * Weights of 4 bits share bytes, 16 * w1 + w0 + 8 of two channels: a product with whole bytes less one with their lower
 * halves is 16 times that of w1, and the latter that of w0 and 8 * the sum of the taps. int8 [channels / n, taps / 16,
 * n / 2, 16].
 *
 * Taps are read, for every n channels again, before those channels are written. */
#ifndef ES_GEMM_MVE_S8_H
#define ES_GEMM_MVE_S8_H

#include "es_mve.h"

typedef struct {
    const int8_t *weights;
    const int32_t *scale;
    int32_t taps;
    int32_t channels;
    int32_t bits; /* of a weight, 8 or 4 */
    es_mve_output output;
} es_mve_gemm;

/* Pixels of up to this many vectors of taps stay in registers. */
#define ES_MVE_HELD 4

#if ES_MVE

/* Loops of up to this many vectors of taps are unrolled, longer ones by three. */
#define ES_MVE_UNROLLED 9
#if defined(__clang__)
#define ES_MVE_UNROLL _Pragma("clang loop unroll_count(3)")
#else
#define ES_MVE_UNROLL _Pragma("GCC unroll 3")
#endif

/* Accumulators of four channels, or two of two pixels, without bias. Of weights of 4 bits: products with the lower halves
 * in a and c, with whole bytes in b and d. */
typedef struct {
    int32_t a, b, c, d;
} es_mve_sums;

ES_INLINE es_mve_sums es_mve_add_taps(es_mve_sums s, int8x16_t x, const int8_t *w, int32_t bits)
{
    if (bits == 4) {
        const int8x16_t w0 = vldrbq_s8(w), w1 = vldrbq_s8(w + 16), low = vdupq_n_s8(15);
        s.a = vmladavaq_s8(s.a, x, vandq_s8(w0, low));
        s.b = vmladavaq_s8(s.b, x, w0);
        s.c = vmladavaq_s8(s.c, x, vandq_s8(w1, low));
        s.d = vmladavaq_s8(s.d, x, w1);
        return s;
    }
#if ES_MVE_BY_HAND
    int8x16_t w0, w1;
    __asm__("vldrb.8 %q[w0], [%[w]]\n\t"
            "vldrb.8 %q[w1], [%[w], #16]\n\t"
            "vmladava.s8 %[a], %q[x], %q[w0]\n\t"
            "vldrb.8 %q[w0], [%[w], #32]\n\t"
            "vmladava.s8 %[b], %q[x], %q[w1]\n\t"
            "vldrb.8 %q[w1], [%[w], #48]\n\t"
            "vmladava.s8 %[c], %q[x], %q[w0]\n\t"
            "vmladava.s8 %[d], %q[x], %q[w1]"
            : [a] "+Te"(s.a), [b] "+Te"(s.b), [c] "+Te"(s.c), [d] "+Te"(s.d), [w0] "=&w"(w0), [w1] "=&w"(w1)
            : [w] "r"(w), [x] "w"(x), "m"(*(const int8_t(*)[64])w));
#else
    s.a = vmladavaq_s8(s.a, x, vldrbq_s8(w));
    s.b = vmladavaq_s8(s.b, x, vldrbq_s8(w + 16));
    s.c = vmladavaq_s8(s.c, x, vldrbq_s8(w + 32));
    s.d = vmladavaq_s8(s.d, x, vldrbq_s8(w + 48));
#endif
    return s;
}

/* Two channels of two pixels. */
ES_INLINE es_mve_sums es_mve_add_pair(es_mve_sums s, int8x16_t x0, int8x16_t x1, const int8_t *w, int32_t bits)
{
    const int8x16_t first = vldrbq_s8(w);
    const int8x16_t w0 = bits == 4 ? vandq_s8(first, vdupq_n_s8(15)) : first, w1 = bits == 4 ? first : vldrbq_s8(w + 16);
    s.a = vmladavaq_s8(s.a, x0, w0);
    s.b = vmladavaq_s8(s.b, x0, w1);
    s.c = vmladavaq_s8(s.c, x1, w0);
    s.d = vmladavaq_s8(s.d, x1, w1);
    return s;
}

#if ES_MVE_BY_HAND
/* `blocks` blocks of 16 taps of two pixels with two channels. */
ES_INLINE es_mve_sums es_mve_pair_blocks(es_mve_sums s, const int8_t **x0, const int8_t **x1, const int8_t **w,
                                         int32_t blocks)
{
    const int8_t *a = *x0, *b = *x1, *v = *w;
    ES_UNROLL_NOT
    for (int32_t i = 0; i < blocks; i++) {
        int8x16_t t0, t1, w0, w1;
        __asm__ volatile("vldrb.8 %q[t0], [%[x0]], #16\n\t"
                         "vldrb.8 %q[w0], [%[v]], #16\n\t"
                         "vldrb.8 %q[w1], [%[v]], #16\n\t"
                         "vmladava.s8 %[a], %q[t0], %q[w0]\n\t"
                         "vldrb.8 %q[t1], [%[x1]], #16\n\t"
                         "vmladava.s8 %[b], %q[t0], %q[w1]\n\t"
                         "vmladava.s8 %[c], %q[t1], %q[w0]\n\t"
                         "vmladava.s8 %[d], %q[t1], %q[w1]"
                         : [a] "+Te"(s.a), [b] "+Te"(s.b), [c] "+Te"(s.c), [d] "+Te"(s.d), [t0] "=&w"(t0),
                           [t1] "=&w"(t1), [w0] "=&w"(w0), [w1] "=&w"(w1), [x0] "+r"(a), [x1] "+r"(b), [v] "+r"(v)
                         :
                         : "memory");
    }
    *x0 = a;
    *x1 = b;
    *w = v;
    return s;
}
#endif

/* The accumulators as lanes; of weights of 4 bits: `corrections` takes 8 * the sum of the taps off the first of two. */
ES_INLINE int32x4_t es_mve_lanes(es_mve_sums s, int32_t bits, int32x4_t corrections)
{
    if (bits == 4) {
        const int32x4_t down = {0, -4, 0, -4};
        return vaddq_s32(vshlq_s32(es_mve_quad(s.a, s.b - s.a, s.c, s.d - s.c), down), corrections);
    }
    return es_mve_quad(s.a, s.b, s.c, s.d);
}

/* Four bytes, a lane each. */
ES_INLINE int32x4_t es_mve_shifts(const int32_t *word)
{
    return vldrbq_s32((const int8_t *)(const void *)word);
}

ES_INLINE int32x4_t es_mve_scaled(int32x4_t v, const int32_t *scale, const es_mve_output *o)
{
    return es_mve_requant(vaddq_s32(v, vldrwq_s32(scale)), vldrwq_s32(scale + 4), es_mve_shifts(scale + 8), o);
}

/* bias, multiplier: bytes from `scale` on. */
ES_INLINE int32x4_t es_mve_scaled_pair(int32x4_t v, const int32_t *scale, uint32x4_t bias, uint32x4_t multiplier,
                                       const es_mve_output *o)
{
    return es_mve_requant(vaddq_s32(v, vldrwq_gather_offset_s32(scale, bias)),
                          vldrwq_gather_offset_s32(scale, multiplier), es_mve_shifts(scale + 4), o);
}

/* Taps 16 * block and on; those beyond the last are not touched unless `padded`. */
ES_INLINE int8x16_t es_mve_taps(const int8_t *x, int32_t block, int32_t taps, int32_t padded)
{
    const int32_t left = taps - 16 * block;
    if (padded || left >= 16)
        return vldrbq_s8(x + 16 * block);
    return vldrbq_z_s8(x + 16 * block, vctp8q((uint32_t)left));
}

/* -8 * the sum of a pixel's taps. */
ES_INLINE int32_t es_mve_correction(const int8_t *x, int32_t taps, int32_t padded)
{
    const int32_t blocks = (taps + 15) / 16, whole = padded ? blocks : taps / 16;
    int32_t sum = 0;
    ES_UNROLL_NOT
    for (int32_t i = 0; i < whole; i++)
        sum = vaddvaq_s8(sum, vldrbq_s8(x + 16 * i));
    if (whole < blocks)
        sum = vaddvaq_s8(sum, es_mve_taps(x, whole, taps, 0));
    return -8 * sum;
}

/* k: constants. padded: whether 16 taps more than there are may be read at the end. */
ES_INLINE void es_mve_pixel_s8(const int8_t *x, int8_t *y, const es_mve_gemm *k, int32_t padded)
{
    const int32_t blocks = (k->taps + 15) / 16, whole = padded ? blocks : k->taps / 16;
    const int8_t *w = k->weights;
    const int32_t *scale = k->scale;
    int8x16_t held[ES_MVE_HELD];
    if (blocks <= ES_MVE_HELD) {
        ES_UNROLL_FULL
        for (int32_t i = 0; i < blocks; i++)
            held[i] = es_mve_taps(x, i, k->taps, padded);
    }
    const int32_t block_bytes = k->bits == 4 ? 32 : 64;
    int32x4_t corrections = vdupq_n_s32(0);
    if (k->bits == 4) {
        const int32_t correction = es_mve_correction(x, k->taps, padded);
        corrections = vsetq_lane_s32(correction, vsetq_lane_s32(correction, corrections, 0), 2);
    }
    ES_UNROLL_NOT
    for (int32_t left = k->channels; left > 0; left -= 4) {
        es_mve_sums s = {0, 0, 0, 0};
        if (blocks <= ES_MVE_HELD) {
            ES_UNROLL_FULL
            for (int32_t i = 0; i < blocks; i++)
                s = es_mve_add_taps(s, held[i], w + block_bytes * i, k->bits);
            w += block_bytes * blocks;
        } else {
            const int8_t *tap = x;
            ES_UNROLL_NOT
            for (int32_t i = 0; i < whole; i++) {
                s = es_mve_add_taps(s, vldrbq_s8(tap), w, k->bits);
                tap += 16;
                w += block_bytes;
            }
            if (whole < blocks) {
                s = es_mve_add_taps(s, es_mve_taps(x, whole, k->taps, 0), w, k->bits);
                w += block_bytes;
            }
        }
        const int32x4_t v = es_mve_scaled(es_mve_lanes(s, k->bits, corrections), scale, &k->output);
        scale += 9;
        if (k->channels % 4 == 0)
            vstrbq_s32(y, v);
        else
            es_mve_store_some_s32(y, v, vctp32q((uint32_t)left));
        y += 4;
    }
}

/* Two pixels; their outputs are `step` bytes apart. */
ES_INLINE void es_mve_pair_s8(const int8_t *x0, const int8_t *x1, int8_t *y, int32_t step, const es_mve_gemm *k,
                              int32_t padded)
{
    const int32_t blocks = (k->taps + 15) / 16, whole = padded ? blocks : k->taps / 16;
    const int32_t left = k->taps % 16, block_bytes = k->bits == 4 ? 16 : 32;
    const int8_t *w = k->weights;
    const int32_t *scale = k->scale;
    const uint32x4_t places = {0u, 1u, (uint32_t)step, (uint32_t)step + 1u};
    const uint32x4_t bias = {0u, 4u, 0u, 4u}, multiplier = {8u, 12u, 8u, 12u};
    int32x4_t corrections = vdupq_n_s32(0);
    if (k->bits == 4) {
        corrections = vsetq_lane_s32(es_mve_correction(x0, k->taps, padded), corrections, 0);
        corrections = vsetq_lane_s32(es_mve_correction(x1, k->taps, padded), corrections, 2);
    }
    ES_UNROLL_NOT
    for (int32_t c = 0; c < k->channels; c += 2) {
        const int8_t *a = x0, *b = x1;
        es_mve_sums s = {0, 0, 0, 0};
#if ES_MVE_BY_HAND
        if (k->bits == 8) {
            s = es_mve_pair_blocks(s, &a, &b, &w, whole);
        } else
#endif
        if (whole <= ES_MVE_UNROLLED) {
            ES_UNROLL_FULL
            for (int32_t i = 0; i < whole; i++)
                s = es_mve_add_pair(s, vldrbq_s8(a + 16 * i), vldrbq_s8(b + 16 * i), w + block_bytes * i,
                                    k->bits);
            a += 16 * whole;
            b += 16 * whole;
            w += block_bytes * whole;
        } else {
            ES_MVE_UNROLL
            for (int32_t i = 0; i < whole; i++) {
                s = es_mve_add_pair(s, vldrbq_s8(a), vldrbq_s8(b), w, k->bits);
                a += 16;
                b += 16;
                w += block_bytes;
            }
        }
        if (whole < blocks) {
            const mve_pred16_t real = vctp8q((uint32_t)left);
            s = es_mve_add_pair(s, vldrbq_z_s8(a, real), vldrbq_z_s8(b, real), w, k->bits);
            w += block_bytes;
        }
        const int32x4_t v = es_mve_scaled_pair(es_mve_lanes(s, k->bits, corrections), scale, bias, multiplier,
                                                &k->output);
        scale += 5;
        if (k->channels % 2 == 0 || c + 1 < k->channels) {
            vstrbq_scatter_offset_s32(y, places, v);
        } else {
            /* No predicate: GCC 12 loses a constant one. */
            y[0] = (int8_t)vgetq_lane_s32(v, 0);
            y[step] = (int8_t)vgetq_lane_s32(v, 2);
        }
        y += 2;
    }
}

#else

/* Channel c of n that share their blocks of weights. */
ES_INLINE int8_t es_mve_channel_s8(const int8_t *x, const es_mve_gemm *k, int32_t c, int32_t n)
{
    const int32_t share = 8 / k->bits, rows = n / share; /* channels of a byte, rows of bytes of a block */
    const int8_t *w = k->weights + (c / n * ((k->taps + 15) / 16) * rows + c % n / share) * 16;
    const int32_t *scale = k->scale + c / n * (2 * n + 1);
    const int8_t *left = (const int8_t *)(const void *)(scale + 2 * n);
    uint32_t acc = (uint32_t)scale[c % n];
    ES_UNROLL_NOT
    for (int32_t i = 0; i < k->taps; i++) {
        const int32_t byte = w[i / 16 * 16 * rows + i % 16];
        acc += (uint32_t)(x[i] * (k->bits == 8 ? byte : c % 2 == 0 ? (byte & 15) - 8 : byte >> 4));
    }
    return es_mve_requant_one((int32_t)acc, scale[n + c % n], left[c % n], &k->output);
}

ES_INLINE void es_mve_pixel_s8(const int8_t *x, int8_t *y, const es_mve_gemm *k, int32_t padded)
{
    (void)padded;
    ES_UNROLL_NOT
    for (int32_t c = 0; c < k->channels; c++)
        y[c] = es_mve_channel_s8(x, k, c, 4);
}

ES_INLINE void es_mve_pair_s8(const int8_t *x0, const int8_t *x1, int8_t *y, int32_t step, const es_mve_gemm *k,
                              int32_t padded)
{
    (void)padded;
    ES_UNROLL_NOT
    for (int32_t c = 0; c < k->channels; c++) {
        const int8_t v = es_mve_channel_s8(x0, k, c, 2);
        y[step + c] = es_mve_channel_s8(x1, k, c, 2);
        y[c] = v;
    }
}

#endif

#endif
