/* From accumulators to int16 outputs (zero-point 0), bit for bit as LiteRT's reference kernels do it.
 *
 * Layers of int16 activations and int8 weights sum up to 2^47. Convolutions rescale such a sum by a 15-bit multiplier
 * and round once, halves up; fully connected layers by a 53-bit one in double precision, halves away from zero. All of
 * it is done in 32-bit words: no core needs its compiler's run-time library for it. */
#ifndef ES_REQUANT_S16_H
#define ES_REQUANT_S16_H

#include "es_requant.h"

/* The unsigned 64-bit product in two words. */
ES_INLINE void es_umull(uint32_t a, uint32_t b, uint32_t *high, uint32_t *low)
{
#if defined(ES_NO_SMULL)
    const uint32_t al = a & 0xFFFFu, ah = a >> 16, bl = b & 0xFFFFu, bh = b >> 16;
    const uint32_t ll = al * bl, lh = al * bh, hl = ah * bl;
    uint32_t mid = (ll >> 16) + (lh & 0xFFFFu) + (hl & 0xFFFFu);
    /* Hides the pattern, as in es_smull. */
    __asm__("" : "+r"(mid));
    *high = ah * bh + (lh >> 16) + (hl >> 16) + (mid >> 16);
    *low = (ll & 0xFFFFu) | (mid << 16);
#else
    const uint64_t product = (uint64_t)a * b;
    *high = (uint32_t)(product >> 32);
    *low = (uint32_t)product;
#endif
}

/* The same for b < 2^15. */
ES_INLINE void es_umull_15(uint32_t a, uint32_t b, uint32_t *high, uint32_t *low)
{
#if defined(ES_NO_SMULL)
    const uint32_t l = (a & 0xFFFFu) * b, h = (a >> 16) * b;
    *low = l + (h << 16);
    *high = (h >> 16) + (*low < l ? 1u : 0u);
#else
    es_umull(a, b, high, low);
#endif
}

/* A 32-bit accumulator through the forms of es_requant, clamped, with the output's zero-point. */
ES_INLINE int32_t es_requant_stored(int32_t acc, int32_t channel, const es_requant *q)
{
    const int32_t i = q->per_channel ? channel : 0;
    const int32_t v = es_requant_apply(acc, q->multiplier[i], q->shift[i], q->form);
    return es_clamp_s32(v, q->min - q->zero_point, q->max - q->zero_point) + q->zero_point;
}

/* Scales of a convolution: multiplier in [0, 2^15), right shift in [8, 46]. `wide`: sums may leave 32 bits; else they
 * are kept in 32. */
typedef struct {
    const int16_t *multiplier;
    const int8_t *shift;
    int32_t per_channel;
    int32_t wide;
    int32_t min;
    int32_t max;
} es_reduced;

/* |acc| < 2^47, and the result is known to fit 32 bits. */
ES_INLINE int16_t es_reduced_s16(int64_t acc, int32_t channel, const es_reduced *q)
{
    const int32_t i = q->per_channel ? channel : 0;
    const int32_t multiplier = q->multiplier[i], shift = q->shift[i];
    uint32_t top, low;
    int32_t v;
    es_umull_15((uint32_t)acc, (uint32_t)multiplier, &top, &low);
    int32_t high = (int32_t)(acc >> 32) * multiplier + (int32_t)top;
    if (shift > 32) {
        v = (high + (INT32_C(1) << (shift - 33))) >> (shift - 32);
    } else {
        const uint32_t rounded = low + (UINT32_C(1) << (shift - 1));
        high += rounded < low ? 1 : 0;
        v = shift == 32 ? high : (int32_t)(((uint32_t)high << (32 - shift)) | (rounded >> shift));
    }
    return (int16_t)es_clamp_s32(v, q->min, q->max);
}

/* Scales of a fully connected layer: factor = multiplier / 2^shift, the multiplier below 2^53 in two words, the low one
 * first; shift in [32, 100]. */
typedef struct {
    const uint32_t *multiplier;
    const int8_t *shift;
    int32_t per_channel;
    int32_t wide;
    int32_t min;
    int32_t max;
} es_real_scale;

/* Words from the lowest on; adds 2^bit. The sum has room. */
ES_INLINE void es_add_bit(uint32_t words[5], int32_t bit)
{
    int32_t i = bit >> 5;
    uint32_t part = UINT32_C(1) << (bit & 31);
    ES_UNROLL_NOT
    for (; i < 4; i++) {
        words[i] += part;
        if (words[i] >= part)
            return;
        part = 1;
    }
}

ES_INLINE int32_t es_bit_length(uint32_t v)
{
    int32_t n = 0;
    ES_UNROLL_NOT
    for (int32_t step = 16; step != 0; step >>= 1)
        if ((v >> step) != 0u) {
            v >>= step;
            n += step;
        }
    return n + (int32_t)v;
}

/* |acc| < 2^47, and the result is known to fit 32 bits. */
ES_INLINE int16_t es_real_s16(int64_t acc, int32_t channel, const es_real_scale *q)
{
    const int32_t i = q->per_channel ? channel : 0;
    const uint32_t m0 = q->multiplier[2 * i], m1 = q->multiplier[2 * i + 1];
    const int32_t shift = q->shift[i];
    const uint64_t magnitude = acc < 0 ? (uint64_t)0 - (uint64_t)acc : (uint64_t)acc;
    const uint32_t a0 = (uint32_t)magnitude, a1 = (uint32_t)(magnitude >> 32);
    uint32_t h00, l00, h01, l01, h10, l10, h11, l11;
    es_umull(a0, m0, &h00, &l00);
    es_umull(a0, m1, &h01, &l01);
    es_umull(a1, m0, &h10, &l10);
    es_umull(a1, m1, &h11, &l11);
    uint32_t words[5] = {l00, h00 + l01, 0u, 0u, 0u};
    uint32_t carry = words[1] < l01 ? 1u : 0u;
    words[1] += l10;
    carry += words[1] < l10 ? 1u : 0u;
    /* h01 < 2^21, h10 < 2^15, and the product < 2^100: only the last sum may carry. */
    words[2] = h01 + h10 + carry;
    words[2] += l11;
    words[3] = h11 + (words[2] < l11 ? 1u : 0u);
    /* A double keeps 53 bits of the product. That moves it across a half only from just below, by up to half a unit. */
    int32_t top = 3;
    while (top > 0 && words[top] == 0u)
        top--;
    const int32_t length = 32 * top + es_bit_length(words[top]);
    if (length > 53)
        es_add_bit(words, length - 54);
    es_add_bit(words, shift - 1);
    const int32_t at = shift >> 5, bits = shift & 31;
    uint32_t whole = words[at] >> bits;
    if (bits != 0)
        whole |= words[at + 1] << (32 - bits);
    const int32_t v = acc < 0 ? -(int32_t)whole : (int32_t)whole;
    return (int16_t)es_clamp_s32(v, q->min, q->max);
}

#endif
