/* LiteRT's int8 Add and Sub of two tensors of one shape. Element i is read before it is written, upwards. */
#ifndef ES_ADD_DSP_S8_H
#define ES_ADD_DSP_S8_H

#include "es_scale_s8.h"

/* x becomes (x - zero_point) * 2^left_shift * multiplier / 2^(31 + right), rounded twice. */
typedef struct {
    int32_t base; /* -zero_point * 2^(left_shift + 1) */
    int32_t multiplier;
    int32_t right;
} es_add_operand;

typedef struct {
    int32_t left_shift; /* at most 21 */
    es_add_operand a, b;
    int32_t sign;                  /* of b: 1 or -1 */
    int32_t multiplier, shift;     /* of the sum, as es_scale_double takes them */
    int32_t rounding;              /* 2 * zero_point + 1 of the output */
} es_add_layer;

/* `offset` rounds the shift to the right. */
ES_INLINE int32_t es_add_term_s8(int32_t x, const es_add_operand *o, int32_t offset, int32_t left_shift)
{
    const int32_t twice = (int32_t)((uint32_t)x << (left_shift + 1)) + o->base;
    if (o->right == 0)
        return es_smmulr(twice, o->multiplier);
    /* The sign of `twice` stands for that of the product, as in es_scale_s8.h. */
    return (es_smmlar(twice, o->multiplier, offset) + (twice >> 31)) >> o->right;
}

/* Where compilers would load constants anew in every turn of a loop, this makes them stay in registers. */
#define ES_KEEP(value) __asm__("" : "+r"(value))

ES_INLINE void es_add_dsp_s8(const int8_t *a, const int8_t *b, int8_t *out, int32_t count, const es_add_layer *k)
{
    es_add_operand first = k->a, second = k->b;
    const int8_t *const end = a + count;
    int32_t multiplier = k->multiplier, offset = (int32_t)((uint32_t)k->rounding << k->shift);
    int32_t round_first = first.right ? INT32_C(1) << (first.right - 1) : 0;
    int32_t round_second = second.right ? INT32_C(1) << (second.right - 1) : 0;
    ES_KEEP(a);
    ES_KEEP(b);
    ES_KEEP(out);
    ES_KEEP(first.multiplier);
    ES_KEEP(second.multiplier);
    ES_KEEP(multiplier);
    ES_KEEP(offset);
    if (first.base != 0)
        ES_KEEP(first.base);
    if (second.base != 0)
        ES_KEEP(second.base);
    if (first.right != 0)
        ES_KEEP(round_first);
    if (second.right != 0)
        ES_KEEP(round_second);
    ES_UNROLL_NOT
    do {
        const int32_t sum = es_add_term_s8(*a++, &first, round_first, k->left_shift) +
                            k->sign * es_add_term_s8(*b++, &second, round_second, k->left_shift);
        const int32_t t = es_smmlar(sum * 2, multiplier, offset) + ((sum * 2) >> 31);
        *out++ = (int8_t)es_half_s8(t >> k->shift);
    } while (a != end);
}

#endif
