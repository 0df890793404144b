/* Convolution, fully connected and depthwise layers of float32. Weights [groups][taps and inputs][channels]. */
#ifndef ES_TVM_F32_H
#define ES_TVM_F32_H

#include "es_tvm.h"

typedef float es_vector __attribute__((vector_size(64), aligned(4)));
enum { ES_F32_ROWS = 4, ES_F32_LANES = 16 };

ES_INLINE float es_clamped(const es_layer *l, float value)
{
    value = value < l->low.real ? l->low.real : value;
    return value > l->high.real ? l->high.real : value;
}

ES_INLINE int es_conv_real(const TVMFFIAny *arguments)
{
    const es_layer *l = es_data(arguments, 2);
    const float *weights = es_data(arguments, 1), *bias = (const float *)(const void *)(l + 1);
    float *y = es_data(arguments, 3);
    float *image = (float *)(void *)es_image(es_data(arguments, 0), l, 4, 1);
    if (image == NULL) return es_no_memory();
    const int32_t inputs = l->in_c / l->groups, channels = l->out_c / l->groups;
    const int32_t count = l->out_h * l->out_w, width = l->left + l->in_w + l->right;
    for (int32_t g = 0; g < l->groups; g++, weights += l->kernel_h * l->kernel_w * inputs * channels) {
        for (int32_t i = 0; i < count; i += ES_F32_ROWS) {
            const float *rows[ES_F32_ROWS];
            float *outputs[ES_F32_ROWS];
            for (int32_t m = 0; m < ES_F32_ROWS; m++) {
                const int32_t position = es_min(i + m, count - 1);
                rows[m] = image + es_start(l, position, l->in_c) + g * inputs;
                outputs[m] = y + (size_t)position * (size_t)l->out_c + g * channels;
            }
            for (int32_t n = 0; n < channels; n += ES_F32_LANES) {
                const int32_t lanes = es_min(channels - n, ES_F32_LANES);
                es_vector sums[ES_F32_ROWS], part = {0};
                for (int32_t m = 0; m < ES_F32_ROWS; m++) sums[m] = part;
                const float *w = weights + n;
                for (int32_t p = 0; p < l->kernel_h; p++) {
                    for (int32_t q = 0; q < l->kernel_w; q++) {
                        const int32_t offset = (p * l->dilation_h * width + q * l->dilation_w) * l->in_c;
                        for (int32_t k = 0; k < inputs; k++, w += channels) {
                            if (lanes == ES_F32_LANES) part = *(const es_vector *)(const void *)w;
                            else memcpy(&part, w, (size_t)lanes * sizeof(float));
                            for (int32_t m = 0; m < ES_F32_ROWS; m++) sums[m] += part * rows[m][offset + k];
                        }
                    }
                }
                for (int32_t m = 0; m < ES_F32_ROWS; m++)
                    for (int32_t c = 0; c < lanes; c++)
                        outputs[m][n + c] = es_clamped(l, sums[m][c] + bias[g * channels + n + c]);
            }
        }
    }
    free(image);
    return 0;
}

ES_INLINE int es_depthwise_real(const TVMFFIAny *arguments)
{
    const es_layer *l = es_data(arguments, 2);
    const float *weights = es_data(arguments, 1), *bias = (const float *)(const void *)(l + 1);
    float *y = es_data(arguments, 3);
    float *image = (float *)(void *)es_image(es_data(arguments, 0), l, 4, l->groups);
    if (image == NULL) return es_no_memory();
    const int32_t width = l->left + l->in_w + l->right, channels = l->out_c;
    for (int32_t i = 0; i < l->out_h * l->out_w; i++, y += channels) {
        const float *from = image + es_start(l, i, channels);
        const float *w = weights;
        for (int32_t c = 0; c < channels; c++) y[c] = 0;
        for (int32_t p = 0; p < l->kernel_h; p++) {
            for (int32_t q = 0; q < l->kernel_w; q++, w += channels) {
                const float *tap = from + (p * l->dilation_h * width + q * l->dilation_w) * channels;
                for (int32_t c = 0; c < channels; c++) y[c] += tap[c] * w[c];
            }
        }
        for (int32_t c = 0; c < channels; c++) y[c] = es_clamped(l, y[c] + bias[c]);
    }
    free(image);
    return 0;
}

#endif
