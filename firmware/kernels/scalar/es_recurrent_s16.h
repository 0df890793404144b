/* Fixed point of recurrent layers: logistic and tanh of int16, bit for bit as gemmlowp's, and sums that saturate.
 * Qm.n has m integer and n = 15 - m fraction bits. No product here needs more than 32 bits. */
#ifndef ES_RECURRENT_S16_H
#define ES_RECURRENT_S16_H

#include "es_requant.h"
#include "es_rows_s8.h"

ES_INLINE int32_t es_saturate_s16(int32_t v) { return es_clamp_s32(v, -32768, 32767); }

/* round(a * b / 2^15), half up, for int16 a and b that are not both -32768. */
ES_INLINE int32_t es_mul_q15(int32_t a, int32_t b) { return (a * b + (1 << 14)) >> 15; }

/* exp(a) for a <= 0 in Q(integer_bits), integer_bits 1 to 7, as Q0.15. integer_bits is a constant where it is called:
 * the loop unrolls into a test and a product a bit. */
ES_INLINE int32_t es_exp_negative_s16(int32_t a, int32_t integer_bits)
{
    /* exp(-2^k), k = -2 .. 4; the last is below half a unit. */
    static const int32_t factor[7] = {25520, 19875, 12055, 4435, 600, 11, 0};
    const int32_t fraction_bits = 15 - integer_bits, quarter = INT32_C(1) << (fraction_bits - 2);
    const int32_t modulo = (a & (quarter - 1)) - quarter;
    const int32_t remainder = modulo - a;
    /* Taylor series around -1/8 of what lies in [-1/4, 0), Q0.15. Both shifts round numbers that are not negative. */
    const int32_t x = modulo * (INT32_C(1) << integer_bits) + (1 << 12);
    const int32_t x2 = es_mul_q15(x, x), x3 = es_mul_q15(x2, x), x4 = es_mul_q15(x2, x2);
    const int32_t inner = es_mul_q15(((x4 + 2) >> 2) + x3, 10923) + x2;
    int32_t v = 28918 + es_mul_q15(28918, x + ((inner + 1) >> 1));
    ES_UNROLL_FULL
    for (int32_t k = 0; k < 7; k++)
        if (k < integer_bits + 2 && ((remainder >> (fraction_bits - 2 + k)) & 1) != 0)
            v = es_mul_q15(v, factor[k]);
    if (integer_bits > 5 && a < -(INT32_C(32) << fraction_bits))
        v = 0;
    return a == 0 ? 32767 : v;
}

/* 1 / (1 + a) for a in [0, 1), Q0.15 to Q2.13: three Newton steps, whose corrections are far from saturating. */
ES_INLINE int32_t es_reciprocal_one_plus_s16(int32_t a)
{
    const int32_t half = (a + 32768) >> 1;
    int32_t x = 23130 + es_mul_q15(half, -15420); /* 48/17 - 32/17 * half */
    ES_UNROLL_FULL
    for (int32_t step = 0; step < 3; step++)
        x += es_mul_q15(x, (1 << 13) - es_mul_q15(half, x)) * 4;
    return x;
}

/* 1 / (1 + exp(-a)), Q3.12 to Q0.15. */
static ES_UNUSED ES_NOINLINE int32_t es_gate_logistic(int32_t a)
{
    const int32_t v = es_min_s32(es_reciprocal_one_plus_s16(es_exp_negative_s16(a > 0 ? -a : a, 3)) * 2, 32767);
    return a > 0 ? v : a < 0 ? 32767 - v : 1 << 14;
}

/* tanh(a), Q(integer_bits) to Q0.15; integer_bits 0 to 6, a constant where it is called. */
ES_INLINE int32_t es_gate_tanh_inline(int32_t a, int32_t integer_bits)
{
    /* The same bits with one integer bit more are twice the number. */
    const int32_t e = es_exp_negative_s16(a > 0 ? -a : a, integer_bits + 1);
    const int32_t v = es_min_s32((es_reciprocal_one_plus_s16(e) - (1 << 13)) * 4, 32767);
    return a > 0 ? v : a < 0 ? -v : 0;
}

/* tanh(a), Q3.12 to Q0.15. */
static ES_UNUSED ES_NOINLINE int32_t es_gate_tanh(int32_t a) { return es_gate_tanh_inline(a, 3); }

/* A form beside those of es_requant.h: double rounding for |acc| < 2^30 where no shift is to the left, as gates have it:
 * some shifts 0, some to the right. */
enum { ES_GATE_BOUNDED = 16 };

ES_INLINE int32_t es_gate_requant(int32_t acc, int32_t multiplier, int32_t shift, int32_t form)
{
    if (form == ES_GATE_BOUNDED)
        return es_rounding_shift(es_requant_high(acc, multiplier), -shift);
    return es_requant_apply(acc, multiplier, shift, form);
}

/* Accumulators of one product, from int32 to Q3.12. Entries: one a row (`per_row`), else one a gate. */
typedef struct {
    const int32_t *multiplier;
    const int8_t *shift;
    int32_t per_row, form;
} es_gate_scale;

/* Weights of one product: rows of `columns` bytes, those of a unit's gates side by side; bias with the zero-point of
 * what they multiply folded in, an entry a row. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias;
    int32_t columns;
    es_gate_scale scale;
} es_product_s8;

/* The products of `rows` (1 to 4) rows of p from `row` on with v, Q3.12 without saturation, into out. `gate`: of the
 * first row, for scales. */
ES_INLINE void es_product_rows_s8(const es_product_s8 *p, const int8_t *v, int32_t row, int32_t gate, int32_t rows,
                                  int32_t out[4])
{
    uint32_t acc[4];
    ES_UNROLL_FULL
    for (int32_t r = 0; r < rows; r++)
        acc[r] = (uint32_t)p->bias[row + r];
    es_rows_s8(v, p->weights + row * p->columns, p->columns, rows, acc);
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        const int32_t i = p->scale.per_row ? row + r : gate + r;
        out[r] = es_gate_requant((int32_t)acc[r], p->scale.multiplier[i], p->scale.shift[i], p->scale.form);
    }
}

/* Gates before their activation: the sum of both products, each step saturated; h NULL: zeros, whose product is 0. */
ES_INLINE void es_gates_s8(const es_product_s8 *ahead, const es_product_s8 *back, const int8_t *x, const int8_t *h,
                           int32_t row, int32_t gate, int32_t rows, int32_t out[4])
{
    es_product_rows_s8(ahead, x, row, gate, rows, out);
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++)
        out[r] = es_saturate_s16(out[r]);
    if (h != NULL) {
        int32_t other[4];
        es_product_rows_s8(back, h, row, gate, rows, other);
        ES_UNROLL_NOT
        for (int32_t r = 0; r < rows; r++)
            out[r] = es_saturate_s16(out[r] + other[r]);
    }
}

#endif
