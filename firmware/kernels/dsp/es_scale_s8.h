/* Requantization of the dsp kernels: four (double rounding) or three (single) instructions and a store.
 *
 * Both forms end alike, with t = value + offset, offset = (2 * zero_point + 1) * 2^shift, t >> shift, then a halving
 * that saturates; the offset holds the rounding constant and the zero-point.
 *
 * Double: v = high word of 2 * acc * multiplier, rounded; the reference adds the sign of v and rounds v / 2^(shift + 1)
 * up. The sign of acc may stand for the sign of v: they differ only where acc < 0 and v == 0, and then
 * (2^shift - 1) >> (shift + 1) and 2^shift >> (shift + 1) are both 0. Needs |acc| < 2^30.
 * Single: floor(floor(acc * multiplier / 2^32) + 2^shift) / 2^(shift + 1)) is one round-half-up of the product.
 *
 * Domain, kept by the code generator (`edgescale_c/pack.py`): shift in [0, 22] and |value| < 2^30, so nothing wraps. */
#ifndef ES_SCALE_S8_H
#define ES_SCALE_S8_H

#include "es_dsp.h"

/* Two neighbouring output channels: multipliers, and shifts in bytes 0 and 1. */
typedef struct {
    int32_t multiplier[2];
    int32_t shifts;
} es_scale_pair;

/* The same for kernels that go channel by channel: tables of an entry a channel (filled up to an even number, and aligned
 * to two bytes), or two equal entries for all. */
typedef struct {
    const int32_t *multiplier;
    const uint8_t *shift;
    int32_t per_channel;
} es_scales;

/* `acc2` is twice the accumulator; `rounding` is 2 * zero_point + 1 of the output. */
ES_INLINE int32_t es_scale_double(int32_t acc2, int32_t multiplier, int32_t shift, int32_t rounding)
{
    const int32_t offset = (int32_t)((uint32_t)rounding << shift);
    return es_half_s8((es_smmlar(acc2, multiplier, offset) + (acc2 >> 31)) >> shift);
}

ES_INLINE int32_t es_scale_single(int32_t acc, int32_t multiplier, int32_t shift, int32_t rounding)
{
    const int32_t offset = (int32_t)((uint32_t)rounding << shift);
    return es_half_s8(es_smmla(acc, multiplier, offset) >> shift);
}

ES_INLINE int32_t es_scale(int32_t acc, int32_t multiplier, int32_t shift, int32_t rounding, int32_t single)
{
    return single ? es_scale_single(acc, multiplier, shift, rounding)
                  : es_scale_double(acc * 2, multiplier, shift, rounding);
}

#endif
