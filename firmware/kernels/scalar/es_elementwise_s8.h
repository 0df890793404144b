/* int8 element-wise layers: add, mul, lut, rescale. Each reads element i before it writes element i, upwards. */
#ifndef ES_ELEMENTWISE_S8_H
#define ES_ELEMENTWISE_S8_H

#include "es_requant.h"

/* Two operands seen as [rows, channels]; the second may hold one value a channel, or a single one. */
enum { ES_OPERAND_FULL = 0, ES_OPERAND_CHANNEL = 1, ES_OPERAND_SCALAR = 2 };

typedef struct {
    int32_t rows, channels;
    int32_t broadcast; /* ES_OPERAND_... of the second operand */
    int32_t a_zero_point, b_zero_point;
} es_binary_s8;

ES_INLINE int32_t es_second_s8(const int8_t *b, const es_binary_s8 *p, int32_t row, int32_t channel)
{
    const int32_t i = p->broadcast == ES_OPERAND_SCALAR    ? 0
                      : p->broadcast == ES_OPERAND_CHANNEL ? channel
                                                           : row * p->channels + channel;
    return b[i] - p->b_zero_point;
}

/* LiteRT's Add and Sub: operands shifted left, each rescaled, summed (`sign` 1 or -1), rescaled by q. */
ES_INLINE void es_add_s8(const int8_t *a, const int8_t *b, int8_t *out, const es_binary_s8 *p, int32_t left_shift,
                         int32_t sign, const es_requant *qa, const es_requant *qb, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < p->rows; r++) {
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t i = r * p->channels + c;
            const int32_t va = (a[i] - p->a_zero_point) * (INT32_C(1) << left_shift);
            const int32_t vb = es_second_s8(b, p, r, c) * (INT32_C(1) << left_shift);
            const int32_t sa = es_requant_apply(va, qa->multiplier[0], qa->shift[0], qa->form);
            const int32_t sb = es_requant_apply(vb, qb->multiplier[0], qb->shift[0], qb->form);
            out[i] = es_requant_s8(sa + sign * sb, c, q);
        }
    }
}

ES_INLINE void es_mul_s8(const int8_t *a, const int8_t *b, int8_t *out, const es_binary_s8 *p, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < p->rows; r++) {
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t i = r * p->channels + c;
            out[i] = es_requant_s8((a[i] - p->a_zero_point) * es_second_s8(b, p, r, c), c, q);
        }
    }
}

/* table: 256 entries in the order of the input's bit pattern, 0 .. 127 then -128 .. -1. */
ES_INLINE void es_lut_s8(const int8_t *in, int8_t *out, int32_t count, const int8_t *table)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        out[i] = table[(uint8_t)in[i]];
}

ES_INLINE void es_rescale_s8(const int8_t *in, int8_t *out, int32_t rows, int32_t channels, int32_t zero_point,
                             const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        ES_UNROLL_NOT
        for (int32_t c = 0; c < channels; c++) {
            const int32_t i = r * channels + c;
            out[i] = es_requant_s8(in[i] - zero_point, c, q);
        }
    }
}

#endif
