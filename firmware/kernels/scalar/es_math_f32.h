/* Single-precision functions without a maths library. Errors are given in units in the last place (ulp). */
#ifndef ES_MATH_F32_H
#define ES_MATH_F32_H

#include "es_base.h"

/* exp(r) - 1 for |r| <= ln 2 / 2: minimax polynomial (Cephes expf). */
ES_INLINE float es_expm1_core_f32(float r)
{
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * (r * r) + r;
}

/* 2^n for n in [-126, 127]. */
ES_INLINE float es_power_of_two_f32(int32_t n)
{
    union {
        uint32_t bits;
        float value;
    } u;
    u.bits = (uint32_t)(n + 127) << 23;
    return u.value;
}

/* exp(x): at most 2 ulp; overflows to infinity above 88.73, underflows to 0 below -104; NaN stays NaN. */
static ES_UNUSED float es_exp_f32(float x)
{
    if (x != x)
        return x;
    if (x > 89.0f)
        return __builtin_inff();
    if (x < -104.0f)
        return 0.0f;
    const int32_t n = (int32_t)(x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f));
    /* ln 2 in two parts, the first exact in products with n. */
    const float r = (x - (float)n * 0.693359375f) - (float)n * -2.12194440e-4f;
    /* Two factors, so that results near both ends of the range are right. */
    const int32_t half = n / 2;
    return (es_expm1_core_f32(r) + 1.0f) * es_power_of_two_f32(half) * es_power_of_two_f32(n - half);
}

/* exp(x) - 1 without cancellation near 0. */
static ES_UNUSED float es_expm1_f32(float x)
{
    if (x > -0.34f && x < 0.34f)
        return es_expm1_core_f32(x);
    return es_exp_f32(x) - 1.0f;
}

/* 1 / (1 + exp(-x)) in the form that never overflows. */
static ES_UNUSED float es_sigmoid_f32(float x)
{
    const float e = es_exp_f32(x < 0.0f ? x : -x);
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* tanh(x): at most 4 ulp (Cephes polynomial near 0, by the exponential elsewhere). */
static ES_UNUSED float es_tanh_f32(float x)
{
    const float a = x < 0.0f ? -x : x;
    if (a < 0.625f) {
        const float z = x * x;
        float p = -5.70498872745e-3f;
        p = p * z + 2.06390887954e-2f;
        p = p * z - 5.37397155531e-2f;
        p = p * z + 1.33314422036e-1f;
        p = p * z - 3.33332819422e-1f;
        return p * z * x + x;
    }
    const float t = 1.0f - 2.0f / (es_exp_f32(2.0f * a) + 1.0f);
    return x < 0.0f ? -t : t;
}

#endif
