/* LiteRT's int8 Mul: of two tensors of one shape, or by one value a channel, or by a single one. Element i is read before
 * it is written, upwards. */
#ifndef ES_MUL_DSP_S8_H
#define ES_MUL_DSP_S8_H

#include "es_elementwise_s8.h"
#include "es_scale_s8.h"

typedef struct {
    es_binary_s8 shape;
    int32_t multiplier, shift; /* as es_scale_double takes them */
    int32_t rounding;          /* 2 * zero_point + 1 of the output */
} es_mul_layer;

/* `count` elements; `second`: the second operand's element, ES_OPERAND_SCALAR where it is the same for all. */
ES_INLINE void es_mul_run_s8(const int8_t *a, const int8_t *b, int8_t *out, int32_t count, int32_t broadcast,
                             const es_mul_layer *k)
{
    const int8_t *const end = a + count;
    const int32_t offset = (int32_t)((uint32_t)k->rounding << k->shift);
    int32_t y = b[0] - k->shape.b_zero_point;
    ES_UNROLL_NOT
    do {
        if (broadcast != ES_OPERAND_SCALAR)
            y = *b++ - k->shape.b_zero_point;
        const int32_t twice = (*a++ - k->shape.a_zero_point) * y * 2;
        *out++ = (int8_t)es_half_s8((es_smmlar(twice, k->multiplier, offset) + (twice >> 31)) >> k->shift);
    } while (a != end);
}

ES_INLINE void es_mul_dsp_s8(const int8_t *a, const int8_t *b, int8_t *out, const es_mul_layer *k)
{
    const int32_t channels = k->shape.channels;
    ES_UNROLL_NOT
    for (int32_t row = 0; row < k->shape.rows; row++) {
        es_mul_run_s8(a, b, out, channels, k->shape.broadcast, k);
        a += channels;
        out += channels;
    }
}

#endif
