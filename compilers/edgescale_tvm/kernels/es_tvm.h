/* What the kernels of a TVM artifact share: how they are called, the layer's description, its image and its scales.
 *
 * A kernel is a packed function of TVM's C interface with the arguments (x, weights, parameters, y), all tensors.
 * `parameters` are bytes: an es_layer, then one entry a channel of bias (int32 or float32) and, for integers,
 * multiplier (int32) and shift (int8). Weights lie as the back end packs them for ES_OFFSET: 128 where activations
 * are multiplied as unsigned bytes (their value + 128), else 0. The bias holds the input's zero-point and ES_OFFSET.
 */
#ifndef ES_TVM_H
#define ES_TVM_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#ifndef ES_OFFSET
#define ES_OFFSET 0
#endif

#include "es_base.h"

/* Before a loop that vectors make fast and copies of its body make long. */
#ifdef __clang__
#define ES_ONE_COPY _Pragma("clang loop interleave(disable) unroll(disable)")
#else
#define ES_ONE_COPY ES_UNROLL_NOT
#endif

typedef struct {
    int32_t in_h, in_w, in_c, out_h, out_w, out_c;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    int32_t top, left, bottom, right;
    int32_t groups; /* of a depthwise layer: outputs a channel */
    int32_t input_zero, output_zero;
    int32_t single; /* 1: one rounding, 0: two */
    union { int32_t integer; float real; } low, high;
} es_layer;

ES_INLINE int32_t es_min(int32_t a, int32_t b) { return a < b ? a : b; }

/* Data of the i-th argument, a tensor or a pointer to its description. */
ES_INLINE void *es_data(const TVMFFIAny *arguments, int32_t i)
{
    const TVMFFIAny *argument = &arguments[i];
    const DLTensor *tensor = argument->type_index == kTVMFFIDLTensorPtr
        ? (const DLTensor *)argument->v_ptr
        : (const DLTensor *)(const void *)((const char *)argument->v_obj + sizeof(TVMFFIObject));
    return (char *)tensor->data + tensor->byte_offset;
}

ES_INLINE int es_no_memory(void)
{
    TVMFFIErrorSetRaisedFromCStr("MemoryError", "no memory for a layer's padded input");
    return -1;
}

/* Bytes behind an image that kernels may read and never use. */
#define ES_SLACK 64

/* A copy of x [in_h, in_w, in_c] of `item` bytes an element, with its padding, each channel `repeat` times;
 * ES_OFFSET added where elements are bytes. NULL without memory; else the caller frees it. */
static ES_NOINLINE uint8_t *es_image(const uint8_t *x, const es_layer *l, int32_t item, int32_t repeat)
{
    const int32_t pixel = l->in_c * repeat * item;
    const int32_t row = (l->left + l->in_w + l->right) * pixel;
    const int32_t rows = l->top + l->in_h + l->bottom;
    const size_t size = (size_t)row * (size_t)rows;
    const uint8_t flip = item == 1 ? ES_OFFSET : 0;
    uint8_t *image = malloc(size + ES_SLACK);
    if (image == NULL) return NULL;
    if (l->top | l->left | l->bottom | l->right) memset(image, item == 1 ? (uint8_t)(l->input_zero + ES_OFFSET) : 0, size);
    memset(image + size, 0, ES_SLACK);
    for (int32_t i = 0; i < l->in_h; i++) {
        uint8_t *to = image + (size_t)(l->top + i) * (size_t)row + (size_t)(l->left * pixel);
        const int32_t count = l->in_w * l->in_c;
        if (repeat == 1) {
            ES_ONE_COPY
            for (int32_t j = 0; j < count * item; j++) to[j] = x[j] ^ flip;
        } else {
            ES_ONE_COPY
            for (int32_t j = 0; j < count; j++)
                for (int32_t r = 0; r < repeat; r++)
                    for (int32_t b = 0; b < item; b++) to[(j * repeat + r) * item + b] = x[j * item + b] ^ flip;
        }
        x += count * item;
    }
    return image;
}

/* Where output position i starts reading, in elements of an image of `channels`. */
ES_INLINE int32_t es_start(const es_layer *l, int32_t i, int32_t channels)
{
    const int32_t width = l->left + l->in_w + l->right;
    return (i / l->out_w * l->stride_h * width + i % l->out_w * l->stride_w) * channels;
}

#endif
