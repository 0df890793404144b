/* From 32-bit accumulators to 8-bit outputs, bit for bit as LiteRT's reference kernels do it.
 *
 * real factor = multiplier * 2^(shift - 31), multiplier in [0, 2^31), shift in [-31, 30].
 * Double rounding: high half of 2*acc*multiplier rounded, then a rounding shift (half away from zero).
 * Single rounding: one round-half-up of the 64-bit product.
 * The code generator picks the form; the cheap ones need what it has proved of the layer. */
#ifndef ES_REQUANT_H
#define ES_REQUANT_H

#include "es_base.h"

enum {
    ES_DOUBLE = 0,         /* any accumulator, any shift */
    ES_DOUBLE_BOUNDED = 1, /* |acc| < 2^30 and every shift <= -1 */
    ES_DOUBLE_UNIT = 2,    /* |acc| < 2^30 and every shift == 0 */
    ES_SINGLE = 3,         /* any accumulator, any shift */
    ES_SINGLE_SMALL = 4    /* every shift <= -2 */
};

/* Tables of one layer. `per_channel` is 1 where the tables hold an entry for each output channel, else 0. */
typedef struct {
    const int32_t *multiplier;
    const int8_t *shift;
    int32_t per_channel;
    int32_t form;
    int32_t zero_point; /* of the output */
    int32_t min;        /* clamp, in output units, within [-128, 127] */
    int32_t max;
} es_requant;

/* The signed 64-bit product in two words. */
ES_INLINE void es_smull(int32_t a, int32_t b, int32_t *high, uint32_t *low)
{
#if defined(ES_NO_SMULL)
    const uint32_t ua = (uint32_t)a, ub = (uint32_t)b;
    const uint32_t al = ua & 0xFFFFu, ah = ua >> 16, bl = ub & 0xFFFFu, bh = ub >> 16;
    const uint32_t ll = al * bl, lh = al * bh, hl = ah * bl;
    uint32_t mid = (ll >> 16) + (lh & 0xFFFFu) + (hl & 0xFFFFu);
    /* Hides the pattern: compilers that recognise it would call the 64-bit multiply of their library. */
    __asm__("" : "+r"(mid));
    uint32_t top = ah * bh + (lh >> 16) + (hl >> 16) + (mid >> 16);
    top -= (a < 0 ? ub : 0u) + (b < 0 ? ua : 0u);
    *high = (int32_t)top;
    *low = (ll & 0xFFFFu) | (mid << 16);
#else
    const int64_t product = (int64_t)a * b;
    *high = (int32_t)(product >> 32);
    *low = (uint32_t)product;
#endif
}

/* round(a * b / 2^31), half up. Not for a == b == INT32_MIN (LiteRT saturates there; no multiplier is negative). */
ES_INLINE int32_t es_sqrdmulh(int32_t a, int32_t b)
{
#if defined(ES_NO_SMULL)
    int32_t high;
    uint32_t low;
    es_smull(a, b, &high, &low);
    const uint32_t rounded = low + 0x40000000u;
    const uint32_t top = (uint32_t)high + (rounded < low ? 1u : 0u);
    return (int32_t)((top << 1) | (rounded >> 31));
#else
    return (int32_t)(((int64_t)a * b + (INT64_C(1) << 30)) >> 31);
#endif
}

/* x / 2^exponent rounded to nearest, half away from zero; exponent in [0, 31]. */
ES_INLINE int32_t es_rounding_shift(int32_t x, int32_t exponent)
{
    const uint32_t mask = (UINT32_C(1) << exponent) - 1u;
    const uint32_t remainder = (uint32_t)x & mask;
    const uint32_t threshold = (mask >> 1) + (x < 0 ? 1u : 0u);
    return (x >> exponent) + (remainder > threshold ? 1 : 0);
}

/* Single rounding, saturated to 32 bits. */
ES_INLINE int32_t es_requant_single(int32_t acc, int32_t multiplier, int32_t shift)
{
    const int32_t total = 31 - shift; /* 1 .. 62 */
#if defined(ES_NO_SMULL)
    int32_t high;
    uint32_t low;
    es_smull(acc, multiplier, &high, &low);
    if (total > 32)
        return (high + (INT32_C(1) << (total - 33))) >> (total - 32);
    const uint32_t rounded = low + (UINT32_C(1) << (total - 1));
    high += rounded < low ? 1 : 0;
    if (total == 32)
        return high;
    const int32_t sign = high >> (total - 1);
    if (sign != 0 && sign != -1)
        return high < 0 ? INT32_MIN : INT32_MAX;
    return (int32_t)(((uint32_t)high << (32 - total)) | (rounded >> total));
#else
    const int64_t v = ((int64_t)acc * multiplier + (INT64_C(1) << (total - 1))) >> total;
    return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : (int32_t)v;
#endif
}

/* Double rounding. A left shift leaves one rounding only, and is done in 64 bits: nothing wraps before the clamp. */
ES_INLINE int32_t es_requant_double(int32_t acc, int32_t multiplier, int32_t shift)
{
    if (shift >= 0)
        return es_requant_single(acc, multiplier, shift);
    return es_rounding_shift(es_sqrdmulh(acc, multiplier), -shift);
}

/* Double rounding for |acc| < 2^30: the doubled accumulator gives the rounded high word directly. */
ES_INLINE int32_t es_requant_high(int32_t acc, int32_t multiplier)
{
#if defined(ES_NO_SMULL)
    return es_sqrdmulh(acc, multiplier);
#else
    return (int32_t)(((int64_t)(acc * 2) * multiplier + (INT64_C(1) << 31)) >> 32);
#endif
}

/* Double rounding for |acc| < 2^30 and shift <= -1. */
ES_INLINE int32_t es_requant_bounded(int32_t acc, int32_t multiplier, int32_t shift)
{
    const int32_t v = es_requant_high(acc, multiplier);
    const int32_t right = -shift;
    return (v + (v >> 31) + (INT32_C(1) << (right - 1))) >> right;
}

/* Single rounding for shift <= -2: the rounding constant touches the high word only. */
ES_INLINE int32_t es_requant_single_small(int32_t acc, int32_t multiplier, int32_t shift)
{
    int32_t high;
    uint32_t low;
    es_smull(acc, multiplier, &high, &low);
    return (high + (INT32_C(1) << (-2 - shift))) >> (-1 - shift);
}

/* The accumulator in the units of the output, before zero-point and clamp. */
ES_INLINE int32_t es_requant_apply(int32_t acc, int32_t multiplier, int32_t shift, int32_t form)
{
    if (form == ES_DOUBLE_BOUNDED)
        return es_requant_bounded(acc, multiplier, shift);
    if (form == ES_DOUBLE_UNIT)
        return es_requant_high(acc, multiplier);
    if (form == ES_SINGLE)
        return es_requant_single(acc, multiplier, shift);
    if (form == ES_SINGLE_SMALL)
        return es_requant_single_small(acc, multiplier, shift);
    return es_requant_double(acc, multiplier, shift);
}

/* The stored output of channel `channel`. Clamping before the zero-point is added cannot overflow. */
ES_INLINE int8_t es_requant_s8(int32_t acc, int32_t channel, const es_requant *q)
{
    const int32_t i = q->per_channel ? channel : 0;
    const int32_t v = es_requant_apply(acc, q->multiplier[i], q->shift[i], q->form);
    return (int8_t)(es_clamp_s32(v, q->min - q->zero_point, q->max - q->zero_point) + q->zero_point);
}

#endif
