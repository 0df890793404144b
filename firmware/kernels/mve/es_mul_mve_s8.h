/* LiteRT's int8 Mul: of two tensors of one shape, or by one value a channel, or by a single one; four elements at a time:
 * all are read before they are written, upwards. */
#ifndef ES_MUL_MVE_S8_H
#define ES_MUL_MVE_S8_H

#include "es_elementwise_s8.h"
#include "es_mve.h"

typedef struct {
    es_binary_s8 shape;
    int32_t multiplier, left; /* `left` is minus the shift to the right, -1 or less */
    es_mve_output output;
} es_mve_mul;

ES_INLINE void es_mul_mve_s8(const int8_t *a, const int8_t *b, int8_t *out, const es_mve_mul *k)
{
    const es_binary_s8 *p = &k->shape;
    ES_UNROLL_NOT
    for (int32_t row = 0; row < p->rows; row++) {
#if ES_MVE
        const int8_t *second = p->broadcast == ES_OPERAND_FULL ? b + row * p->channels : b;
        const int8_t *first = a + row * p->channels;
        int8_t *to = out + row * p->channels;
        int32x4_t y = vdupq_n_s32(b[0] - p->b_zero_point);
        ES_UNROLL_NOT
        for (int32_t left = p->channels; left > 0; left -= 4) {
            const mve_pred16_t real = vctp32q((uint32_t)left);
            if (p->broadcast != ES_OPERAND_SCALAR) {
                y = vldrbq_z_s32(second, real);
                if (p->b_zero_point != 0)
                    y = vsubq_n_s32(y, p->b_zero_point);
                second += 4;
            }
            const int32x4_t x = vsubq_n_s32(vldrbq_z_s32(first, real), p->a_zero_point);
            const int32x4_t v = es_mve_rescale_n(vmulq_s32(x, y), k->multiplier, k->left);
            es_mve_store_some_s32(to, es_mve_finish(v, &k->output), real);
            first += 4;
            to += 4;
        }
#else
        ES_UNROLL_NOT
        for (int32_t i = row * p->channels, c = 0; c < p->channels; i++, c++)
            out[i] = es_mve_requant_one((a[i] - p->a_zero_point) * es_second_s8(b, p, row, c), k->multiplier, k->left,
                                        &k->output);
#endif
    }
}

#endif
