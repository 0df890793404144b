/* Element-wise functions of int8 by table, 16 elements at a time: all are read before they are written, upwards. */
#ifndef ES_LUT_MVE_S8_H
#define ES_LUT_MVE_S8_H

#include "es_mve.h"

/* table: 256 entries in the order of the input's bit pattern, 0 .. 127 then -128 .. -1. */
ES_INLINE void es_lut_mve_s8(const int8_t *in, int8_t *out, int32_t count, const int8_t *table)
{
#if ES_MVE
    ES_UNROLL_NOT
    for (; count > 0; count -= 16) {
        const mve_pred16_t real = vctp8q((uint32_t)count);
        const uint8x16_t at = vreinterpretq_u8_s8(vldrbq_z_s8(in, real));
        es_mve_store_some_s8(out, vldrbq_gather_offset_z_s8(table, at, real), real);
        in += 16;
        out += 16;
    }
#else
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        out[i] = table[(uint8_t)in[i]];
#endif
}

#endif
