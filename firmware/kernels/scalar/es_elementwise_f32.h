/* float32 element-wise layers, and the way in and out of int8. Upwards: element i is read before element i is written. */
#ifndef ES_ELEMENTWISE_F32_H
#define ES_ELEMENTWISE_F32_H

#include "es_elementwise_s8.h"
#include "es_math_f32.h"

ES_INLINE float es_second_f32(const float *b, int32_t broadcast, int32_t channels, int32_t row, int32_t channel)
{
    return b[broadcast == ES_OPERAND_SCALAR ? 0 : broadcast == ES_OPERAND_CHANNEL ? channel : row * channels + channel];
}

/* a + sign * b */
ES_INLINE void es_add_f32(const float *a, const float *b, float *out, int32_t rows, int32_t channels,
                          int32_t broadcast, float sign, float lo, float hi)
{
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < channels; c++)
            out[r * channels + c] =
                es_clamp_f32(a[r * channels + c] + sign * es_second_f32(b, broadcast, channels, r, c), lo, hi);
}

ES_INLINE void es_mul_f32(const float *a, const float *b, float *out, int32_t rows, int32_t channels,
                          int32_t broadcast, float lo, float hi)
{
    for (int32_t r = 0; r < rows; r++)
        for (int32_t c = 0; c < channels; c++)
            out[r * channels + c] =
                es_clamp_f32(a[r * channels + c] * es_second_f32(b, broadcast, channels, r, c), lo, hi);
}

enum {
    ES_CLIP = 0,        /* p0 least, p1 greatest; relu is clip(0, infinity) */
    ES_SIGMOID = 1,
    ES_TANH = 2,
    ES_EXP = 3,
    ES_HARDSWISH = 4,
    ES_HARDSIGMOID = 5, /* p0 alpha, p1 beta */
    ES_LEAKYRELU = 6,   /* p0 alpha */
    ES_ELU = 7          /* p0 alpha */
};

ES_INLINE float es_apply_f32(float x, int32_t function, float p0, float p1)
{
    switch (function) {
    case ES_SIGMOID:
        return es_sigmoid_f32(x);
    case ES_TANH:
        return es_tanh_f32(x);
    case ES_EXP:
        return es_exp_f32(x);
    case ES_HARDSWISH:
        return x * es_clamp_f32(x / 6.0f + 0.5f, 0.0f, 1.0f);
    case ES_HARDSIGMOID:
        return es_clamp_f32(p0 * x + p1, 0.0f, 1.0f);
    case ES_LEAKYRELU:
        return x < 0.0f ? p0 * x : x;
    case ES_ELU:
        return x < 0.0f ? p0 * es_expm1_f32(x) : x;
    default:
        return es_clamp_f32(x, p0, p1);
    }
}

ES_INLINE void es_unary_f32(const float *in, float *out, int32_t count, int32_t function, float p0, float p1)
{
    for (int32_t i = 0; i < count; i++)
        out[i] = es_apply_f32(in[i], function, p0, p1);
}

/* round_half_even(x / scale) + zero_point, saturated; NaN becomes the zero-point. */
ES_INLINE void es_quantize_s8(const float *in, int8_t *out, int32_t count, float scale, int32_t zero_point)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++) {
        float v = in[i] / scale;
        v = v != v ? 0.0f : es_clamp_f32(v, -1000.0f, 1000.0f);
        int32_t q = (int32_t)v; /* towards zero */
        const float rest = v - (float)q;
        const int32_t odd = q & 1;
        if (rest > 0.5f || (rest == 0.5f && odd))
            q++;
        else if (rest < -0.5f || (rest == -0.5f && odd))
            q--;
        out[i] = (int8_t)es_clamp_s32(q + zero_point, -128, 127);
    }
}

ES_INLINE void es_dequantize_s8(const int8_t *in, float *out, int32_t count, float scale, int32_t zero_point)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        out[i] = (float)(in[i] - zero_point) * scale;
}

/* Softmax over rows; a row is read wholly before its first output is written. */
ES_INLINE void es_softmax_f32(const float *in, float *out, int32_t rows, int32_t channels)
{
    for (int32_t r = 0; r < rows; r++) {
        const float *x = in + r * channels;
        float *y = out + r * channels;
        float largest = x[0];
        for (int32_t c = 1; c < channels; c++)
            largest = x[c] > largest ? x[c] : largest;
        float sum = 0.0f;
        for (int32_t c = 0; c < channels; c++)
            sum += es_exp_f32(x[c] - largest);
        for (int32_t c = 0; c < channels; c++)
            y[c] = es_exp_f32(x[c] - largest) / sum;
    }
}

#endif
