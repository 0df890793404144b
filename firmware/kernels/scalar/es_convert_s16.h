/* Between float32 and int16 of zero-point 0. */
#ifndef ES_CONVERT_S16_H
#define ES_CONVERT_S16_H

#include "es_base.h"

/* round_half_even(x / scale), saturated; NaN becomes 0. */
ES_INLINE void es_quantize_s16(const float *in, int16_t *out, int32_t count, float scale)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++) {
        float v = in[i] / scale;
        v = v != v ? 0.0f : es_clamp_f32(v, -40000.0f, 40000.0f);
        int32_t q = (int32_t)v; /* towards zero */
        const float rest = v - (float)q;
        const int32_t odd = q & 1;
        if (rest > 0.5f || (rest == 0.5f && odd))
            q++;
        else if (rest < -0.5f || (rest == -0.5f && odd))
            q--;
        out[i] = (int16_t)es_clamp_s32(q, INT16_MIN, INT16_MAX);
    }
}

ES_INLINE void es_dequantize_s16(const int16_t *in, float *out, int32_t count, float scale)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        out[i] = (float)in[i] * scale;
}

#endif
