/* LiteRT's int8 Add and Sub of two tensors of one shape, four elements at a time: all are read before they are written,
 * upwards. */
#ifndef ES_ADD_MVE_S8_H
#define ES_ADD_MVE_S8_H

#include "es_mve.h"

/* x becomes (x - zero_point) * 2^left_shift * multiplier / 2^(31 + right), rounded twice. */
typedef struct {
    int32_t base; /* -zero_point * 2^left_shift */
    int32_t multiplier;
    int32_t right;
} es_mve_operand;

typedef struct {
    int32_t left_shift; /* at most 21 */
    es_mve_operand a, b;
    int32_t sign;             /* of b: 1 or -1 */
    int32_t multiplier, left; /* of the sum; `left` is minus the shift to the right */
    es_mve_output output;
} es_mve_add;

#if ES_MVE
ES_INLINE int32x4_t es_mve_term(int32x4_t x, const es_mve_operand *o, int32_t left_shift)
{
    int32x4_t v = vshlq_r_s32(x, left_shift);
    if (o->base != 0)
        v = vaddq_n_s32(v, o->base);
    return o->right == 0 ? vqrdmulhq_n_s32(v, o->multiplier) : es_mve_rescale_n(v, o->multiplier, -o->right);
}
#endif

ES_INLINE void es_add_mve_s8(const int8_t *a, const int8_t *b, int8_t *out, int32_t count, const es_mve_add *k)
{
#if ES_MVE
    ES_UNROLL_NOT
    for (; count > 0; count -= 4) {
        const mve_pred16_t real = vctp32q((uint32_t)count);
        const int32x4_t x = es_mve_term(vldrbq_z_s32(a, real), &k->a, k->left_shift);
        const int32x4_t y = es_mve_term(vldrbq_z_s32(b, real), &k->b, k->left_shift);
        const int32x4_t sum = k->sign > 0 ? vaddq_s32(x, y) : vsubq_s32(x, y);
        es_mve_store_some_s32(out, es_mve_finish(es_mve_rescale_n(sum, k->multiplier, k->left), &k->output), real);
        a += 4;
        b += 4;
        out += 4;
    }
#else
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++) {
        const int32_t x = (int32_t)((uint32_t)a[i] << k->left_shift) + k->a.base;
        const int32_t y = (int32_t)((uint32_t)b[i] << k->left_shift) + k->b.base;
        const int32_t sum = es_rounding_shift(es_sqrdmulh(x, k->a.multiplier), k->a.right) +
                            k->sign * es_rounding_shift(es_sqrdmulh(y, k->b.multiplier), k->b.right);
        out[i] = es_mve_requant_one(sum, k->multiplier, k->left, &k->output);
    }
#endif
}

#endif
