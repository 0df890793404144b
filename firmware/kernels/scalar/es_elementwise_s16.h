/* int16 element-wise layers: add, mul, rescale (also from and to int8, and within a concatenation), sigmoid and tanh.
 * Each reads element i before it writes element i, upwards. Zero-points of int16 are 0. */
#ifndef ES_ELEMENTWISE_S16_H
#define ES_ELEMENTWISE_S16_H

#include "es_elementwise_s8.h"
#include "es_move.h"
#include "es_requant_s16.h"

/* Two operands seen as [rows, channels]; the second may hold one value a channel, or a single one. */
typedef struct {
    int32_t rows, channels;
    int32_t broadcast; /* ES_OPERAND_... of the second operand */
} es_binary_s16;

ES_INLINE int32_t es_second_s16(const int16_t *b, const es_binary_s16 *p, int32_t row, int32_t channel)
{
    return b[p->broadcast == ES_OPERAND_SCALAR    ? 0
             : p->broadcast == ES_OPERAND_CHANNEL ? channel
                                                  : row * p->channels + channel];
}

/* LiteRT's Add and Sub, as es_add_s8. */
ES_INLINE void es_add_s16(const int16_t *a, const int16_t *b, int16_t *out, const es_binary_s16 *p, int32_t left_shift,
                          int32_t sign, const es_requant *qa, const es_requant *qb, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < p->rows; r++) {
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t i = r * p->channels + c;
            const int32_t va = a[i] * (INT32_C(1) << left_shift);
            const int32_t vb = es_second_s16(b, p, r, c) * (INT32_C(1) << left_shift);
            const int32_t sa = es_requant_apply(va, qa->multiplier[0], qa->shift[0], qa->form);
            const int32_t sb = es_requant_apply(vb, qb->multiplier[0], qb->shift[0], qb->form);
            out[i] = (int16_t)es_requant_stored(sa + sign * sb, c, q);
        }
    }
}

ES_INLINE void es_mul_s16(const int16_t *a, const int16_t *b, int16_t *out, const es_binary_s16 *p, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < p->rows; r++) {
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t i = r * p->channels + c;
            out[i] = (int16_t)es_requant_stored(a[i] * es_second_s16(b, p, r, c), c, q);
        }
    }
}

ES_INLINE void es_rescale_s16(const int16_t *in, int16_t *out, int32_t count, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        out[i] = (int16_t)es_requant_stored(in[i], 0, q);
}

ES_INLINE void es_rescale_s8_s16(const int8_t *in, int16_t *out, int32_t count, int32_t zero_point, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        out[i] = (int16_t)es_requant_stored(in[i] - zero_point, 0, q);
}

ES_INLINE void es_rescale_s16_s8(const int16_t *in, int8_t *out, int32_t count, const es_requant *q)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        out[i] = (int8_t)es_requant_stored(in[i], 0, q);
}

/* Chunk `index` of an int16 input of a concatenation in other units than the output's; chunk and stride in bytes. */
ES_INLINE void es_concat_part_rescaled_s16(const int16_t *in, void *out, int32_t index, const es_chunks *p,
                                           const es_requant *q)
{
    const int32_t count = p->chunk / 2;
    const int16_t *x = in + index * count;
    int16_t *y = (int16_t *)(void *)((uint8_t *)out + index * p->stride);
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        y[i] = (int16_t)es_requant_stored(x[i], 0, q);
}

/* table: sigmoid of i / 24 in Q0.16, 256 entries; inputs become units of 1 / (3 * 4096) by multiplier and shift. */
typedef struct {
    const uint16_t *table;
    int32_t multiplier, shift;
} es_interpolation;

/* The sigmoid of the magnitude, `bits` fraction bits below the table's; `most` where it has reached its end. */
ES_INLINE int32_t es_upper_half(uint32_t magnitude, int32_t bits, int32_t most, const uint16_t *table)
{
    const uint32_t index = magnitude >> bits;
    if (index >= 255u)
        return most;
    const uint32_t here = table[index], after = table[index + 1];
    return (int32_t)((here << bits) + (magnitude & ((UINT32_C(1) << bits) - 1u)) * (after - here));
}

ES_INLINE int32_t es_argument(int32_t x, const es_interpolation *p)
{
    return (x * p->multiplier + ((INT32_C(1) << p->shift) >> 1)) >> p->shift;
}

ES_INLINE void es_sigmoid_s16(const int16_t *in, int16_t *out, int32_t count, const es_interpolation *p)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++) {
        const int32_t x = es_argument(in[i], p);
        const int32_t v = es_upper_half((uint32_t)(x < 0 ? -x : x), 9, 0x7FFF << 10, p->table);
        out[i] = (int16_t)((x < 0 ? (1 << 25) - v + 511 : v + 512) >> 10);
    }
}

ES_INLINE void es_tanh_s16(const int16_t *in, int16_t *out, int32_t count, const es_interpolation *p)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++) {
        const int32_t x = es_argument(in[i], p);
        const int32_t v = es_upper_half((uint32_t)(x < 0 ? -x : x), 8, 0xFFFF << 8, p->table);
        out[i] = (int16_t)((x < 0 ? (1 << 23) - v + 127 : v - (1 << 23) + 128) >> 8);
    }
}

#endif
