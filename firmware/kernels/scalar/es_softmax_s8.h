/* int8 softmax over rows in fixed point, bit for bit as LiteRT's reference kernel (gemmlowp arithmetic).
 *
 * Formats: Qm.n has m integer and n fraction bits. A row is read wholly before its first output is written, and
 * element c again before output c. */
#ifndef ES_SOFTMAX_S8_H
#define ES_SOFTMAX_S8_H

#include "es_requant.h"

/* A left shift that saturates. */
ES_INLINE int32_t es_saturating_shift_left(int32_t v, int32_t bits)
{
    const int32_t limit = INT32_MAX >> bits;
    if (v > limit)
        return INT32_MAX;
    if (v < -limit - 1)
        return INT32_MIN;
    return (int32_t)((uint32_t)v << bits);
}

/* exp(a) for a in [-1/4, 0), Q0.31 to Q0.31: Taylor series around -1/8. */
ES_INLINE int32_t es_exp_quarter(int32_t a)
{
    const int32_t exp_minus_eighth = 1895147668, third = 715827883;
    const int32_t x = a + (INT32_C(1) << 28);
    const int32_t x2 = es_sqrdmulh(x, x);
    const int32_t x3 = es_sqrdmulh(x2, x);
    const int32_t x4 = es_sqrdmulh(x2, x2);
    const int32_t inner = es_sqrdmulh(es_rounding_shift(x4, 2) + x3, third) + x2;
    return exp_minus_eighth + es_sqrdmulh(exp_minus_eighth, x + es_rounding_shift(inner, 1));
}

/* exp(a) for a <= 0 in Q5.26, as Q0.31. */
ES_INLINE int32_t es_exp_negative(int32_t a)
{
    /* exp(-2^k), k = -2 .. 4 */
    static const int32_t factor[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter = INT32_C(1) << 24;
    const int32_t modulo = (int32_t)((uint32_t)a & (uint32_t)(quarter - 1)) - quarter;
    const int32_t remainder = modulo - a;
    int32_t v = es_exp_quarter(modulo * 32);
    ES_UNROLL_NOT
    for (int32_t k = 0; k < 7; k++)
        if ((remainder >> (24 + k)) & 1)
            v = es_sqrdmulh(v, factor[k]);
    return a == 0 ? INT32_MAX : v;
}

/* 1 / (1 + a) for a in [0, 1), Q0.31: three Newton steps. */
ES_INLINE int32_t es_reciprocal_one_plus(int32_t a)
{
    const int32_t half = (int32_t)(((uint32_t)a + (uint32_t)INT32_MAX + 1u) >> 1);
    int32_t x = 1515870810 + es_sqrdmulh(half, -1010580540); /* 48/17 - 32/17 * half, Q2.29 */
    ES_UNROLL_NOT
    for (int32_t step = 0; step < 3; step++) {
        const int32_t correction = (INT32_C(1) << 29) - es_sqrdmulh(half, x);
        x += es_saturating_shift_left(es_sqrdmulh(x, correction), 2);
    }
    return es_saturating_shift_left(x, 1);
}

/* channels <= 4095, so that the sum stays within 32 bits. */
typedef struct {
    int32_t rows, channels;
    int32_t multiplier, left_shift; /* differences to the maximum become Q5.26 */
    int32_t diff_min;               /* smaller differences count as exp = 0 */
} es_softmax;

ES_INLINE void es_softmax_s8(const int8_t *in, int8_t *out, const es_softmax *p)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < p->rows; r++) {
        const int8_t *x = in + r * p->channels;
        int8_t *y = out + r * p->channels;
        int32_t largest = -128;
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++)
            largest = es_max_s32(largest, x[c]);
        uint32_t sum = 0; /* Q12.19 */
        int32_t reciprocal = 0, bits = 0;
        /* The first pass sums, the second writes: one copy of the exponential serves both. */
        ES_UNROLL_NOT
        for (int32_t pass = 0; pass < 2; pass++) {
            ES_UNROLL_NOT
            for (int32_t c = 0; c < p->channels; c++) {
                const int32_t difference = x[c] - largest;
                int32_t e = 0;
                if (difference >= p->diff_min)
                    e = es_exp_negative(
                        es_sqrdmulh((int32_t)((uint32_t)difference << p->left_shift), p->multiplier));
                if (pass == 0)
                    sum += difference >= p->diff_min ? (uint32_t)es_rounding_shift(e, 12) : 0u;
                else if (difference >= p->diff_min && bits <= 31)
                    y[c] = (int8_t)es_min_s32(es_rounding_shift(es_sqrdmulh(reciprocal, e), bits) - 128, 127);
                else
                    y[c] = -128; /* with bits > 31 every quotient is below one half */
            }
            if (pass == 0) {
                int32_t headroom = 0;
                while (((sum << headroom) & UINT32_C(0x80000000)) == 0u)
                    headroom++;
                reciprocal = es_reciprocal_one_plus((int32_t)((sum << headroom) - UINT32_C(0x80000000)));
                bits = 12 - headroom + 31 - 8;
            }
        }
    }
}

#endif
