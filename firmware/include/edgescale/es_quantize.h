/* For applications: real numbers to the stored integers of a model's input, and back from those of its output.
 * C99 or C++; no C library, no floating-point unit needed.
 *
 *     x[i] = es_real_to_s8(pixel / 255.0f, ES_NET_INPUT_SCALE, ES_NET_INPUT_ZERO_POINT);
 *     float score = es_s8_to_real(y[i], ES_NET_OUTPUT_SCALE, ES_NET_OUTPUT_ZERO_POINT); */
#ifndef ES_QUANTIZE_H
#define ES_QUANTIZE_H

#include <stdint.h>

/* real / scale, rounded half to even, plus the zero-point, saturated to [lowest, highest]: ONNX's QuantizeLinear in
 * float32, bit for bit. NaN becomes lowest. The limits may span at most 2^23. */
static inline int32_t es_quantize(float real, float scale, int32_t zero_point, int32_t lowest, int32_t highest)
{
    const float least = (float)(lowest - zero_point), most = (float)(highest - zero_point);
    float steps = real / scale;
    int32_t whole;
    float rest;
    if (!(steps > least)) {
        return lowest;
    }
    if (steps >= most) {
        return highest;
    }
    whole = (int32_t)steps; /* towards zero */
    rest = steps - (float)whole;
    if (rest > 0.5f || (rest >= 0.5f && (whole & 1) != 0)) {
        whole++;
    } else if (rest < -0.5f || (rest <= -0.5f && (whole & 1) != 0)) {
        whole--;
    }
    return whole + zero_point;
}

static inline int8_t es_real_to_s8(float real, float scale, int32_t zero_point)
{
    return (int8_t)es_quantize(real, scale, zero_point, -128, 127);
}

static inline int16_t es_real_to_s16(float real, float scale, int32_t zero_point)
{
    return (int16_t)es_quantize(real, scale, zero_point, -32768, 32767);
}

/* The real number that a stored integer stands for. */
static inline float es_s8_to_real(int8_t stored, float scale, int32_t zero_point)
{
    return scale * (float)(stored - zero_point);
}

static inline float es_s16_to_real(int16_t stored, float scale, int32_t zero_point)
{
    return scale * (float)(stored - zero_point);
}

#endif
