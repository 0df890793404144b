/* Convolution and fully connected layers of int8: dot products of four, a tile of positions and channels at a time.
 *
 * Weights [groups][segments][steps][channels][4]: a segment is a run of the image that one output reads, padded with
 * zero weights to whole steps of four; what the image holds there does not matter.
 */
#ifndef ES_TVM_CONV_H
#define ES_TVM_CONV_H

#include "es_tvm_scale.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

typedef struct {
    const es_layer *layer;
    es_scales scales;
    const uint8_t *weights; /* of the group */
    const int32_t *offsets; /* of the segments, in bytes */
    int32_t segments, steps;
    int32_t channels, first; /* of the group; the group's first one */
} es_task;

#if ES_OFFSET
#ifndef ES_ROWS
#define ES_ROWS 6
#endif
#ifndef ES_COLUMNS
#define ES_COLUMNS 2
#endif

/* The outputs of up to 16 channels from n on, of `count` positions; one copy serves all tiles. */
static ES_NOINLINE void es_finish(const es_task *t, const __m512i *sums, int8_t *const *outputs, int32_t n, int count)
{
    const __mmask16 mask = es_lanes(t->channels - n);
    const es_vector_scale scale = es_load_scale(t->layer, t->scales, t->first + n, mask);
    if (t->layer->single) {
        ES_UNROLL_NOT
        for (int m = 0; m < count; m++) es_store_scaled(outputs[m] + n, sums[m], &scale, 1);
    } else {
        ES_UNROLL_NOT
        for (int m = 0; m < count; m++) es_store_scaled(outputs[m] + n, sums[m], &scale, 0);
    }
}

ES_INLINE void es_tile(const es_task *t, const uint8_t *const *rows, int8_t *const *outputs, int32_t n, const int count,
    const int vectors, const int bits)
{
    __m512i sums[ES_ROWS][4];
    __mmask16 masks[4];
    for (int v = 0; v < vectors; v++) {
        masks[v] = es_lanes(t->channels - n - 16 * v);
        for (int m = 0; m < count; m++) sums[m][v] = _mm512_setzero_si512();
    }
    const uint8_t *w = t->weights + (size_t)n * (size_t)bits / 2;
    for (int32_t s = 0; s < t->segments; s++) {
        const size_t offset = (size_t)t->offsets[s];
        for (int32_t k = 0; k < t->steps; k++) {
            __m512i part[4];
            for (int v = 0; v < vectors; v++) part[v] = es_load_weights(w + v * 8 * bits, masks[v], bits);
            for (int m = 0; m < count; m++) {
                int32_t four;
                memcpy(&four, rows[m] + offset + 4 * k, 4);
                for (int v = 0; v < vectors; v++)
                    sums[m][v] = _mm512_dpbusd_epi32(sums[m][v], _mm512_set1_epi32(four), part[v]);
            }
            w += (size_t)t->channels * (size_t)bits / 2;
        }
    }
    for (int v = 0; v < vectors; v++) {
        __m512i column[ES_ROWS];
        for (int m = 0; m < count; m++) column[m] = sums[m][v];
        es_finish(t, column, outputs, n + 16 * v, count);
    }
}

/* Channels of the positions in rows; `single` where they are one. */
ES_INLINE void es_positions(const es_task *t, const uint8_t *const *rows, int8_t *const *outputs, int single, int bits)
{
    int32_t n = 0;
    if (single) {
        for (; n < t->channels; n += 64) es_tile(t, rows, outputs, n, 1, 4, bits);
        return;
    }
    for (; n + 16 < t->channels; n += 16 * ES_COLUMNS) es_tile(t, rows, outputs, n, ES_ROWS, ES_COLUMNS, bits);
    if (n < t->channels) es_tile(t, rows, outputs, n, ES_ROWS, 1, bits);
}
#else
#ifndef ES_ROWS
#define ES_ROWS 4
#endif
#define ES_LANES 16

ES_INLINE void es_tile(const es_task *t, const uint8_t *const *rows, int8_t *const *outputs, int32_t n, const int count,
    const int lanes, const int bits)
{
    int32_t sums[ES_ROWS][ES_LANES] = {{0}};
    const uint8_t *w = t->weights + (size_t)n * (size_t)bits / 2;
    const size_t row = (size_t)t->channels * (size_t)bits / 2;
#if defined(__ARM_FEATURE_DOTPROD)
    if (lanes == ES_LANES) {
        int32x4_t wide[ES_ROWS][4];
        for (int m = 0; m < count; m++)
            for (int v = 0; v < 4; v++) wide[m][v] = vdupq_n_s32(0);
        for (int32_t s = 0; s < t->segments; s++) {
            for (int32_t k = 0; k < t->steps; k++, w += row) {
                int8x16_t part[4];
                if (bits == 8) {
                    for (int v = 0; v < 4; v++) part[v] = vld1q_s8((const int8_t *)w + 16 * v);
                } else {
                    for (int v = 0; v < 2; v++) {
                        const uint8x16_t pairs = vld1q_u8(w + 16 * v);
                        const uint8x16_t even = vandq_u8(pairs, vdupq_n_u8(15)), odd = vshrq_n_u8(pairs, 4);
                        part[2 * v] = vsubq_s8(vreinterpretq_s8_u8(vzip1q_u8(even, odd)), vdupq_n_s8(8));
                        part[2 * v + 1] = vsubq_s8(vreinterpretq_s8_u8(vzip2q_u8(even, odd)), vdupq_n_s8(8));
                    }
                }
                for (int m = 0; m < count; m++) {
                    int32_t four;
                    memcpy(&four, rows[m] + t->offsets[s] + 4 * k, 4);
                    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four));
                    for (int v = 0; v < 4; v++) wide[m][v] = vdotq_s32(wide[m][v], part[v], a);
                }
            }
        }
        for (int m = 0; m < count; m++)
            for (int v = 0; v < 4; v++) vst1q_s32(&sums[m][4 * v], wide[m][v]);
    } else
#endif
        for (int32_t s = 0; s < t->segments; s++) {
            for (int32_t k = 0; k < t->steps; k++, w += row) {
                for (int c = 0; c < lanes; c++) {
                    for (int j = 0; j < 4; j++) {
                        const int32_t weight = es_weight(w + c * bits / 2, j, bits);
                        for (int m = 0; m < count; m++)
                            sums[m][c] += (int8_t)rows[m][t->offsets[s] + 4 * k + j] * weight;
                    }
                }
            }
        }
    for (int m = 0; m < count; m++) {
        for (int c = 0; c < lanes; c++) {
            const int32_t at = t->first + n + c;
            outputs[m][n + c] =
                es_scaled(t->layer, sums[m][c] + t->scales.bias[at], t->scales.multiplier[at], t->scales.shift[at]);
        }
    }
}

ES_INLINE void es_positions(const es_task *t, const uint8_t *const *rows, int8_t *const *outputs, int single, int bits)
{
    int32_t n = 0;
    for (; n + ES_LANES <= t->channels; n += ES_LANES) {
        if (single) es_tile(t, rows, outputs, n, 1, ES_LANES, bits);
        else es_tile(t, rows, outputs, n, ES_ROWS, ES_LANES, bits);
    }
    if (n < t->channels) {
        if (single) es_tile(t, rows, outputs, n, 1, t->channels - n, bits);
        else es_tile(t, rows, outputs, n, ES_ROWS, t->channels - n, bits);
    }
}
#endif

/* Runs of the image that an output reads: where they start behind its first element, in elements; their length. */
ES_INLINE int32_t es_segments(const es_layer *l, int32_t *offsets, int32_t *length)
{
    const int32_t width = l->left + l->in_w + l->right;
    const int whole = l->dilation_w == 1 && l->groups == 1;
    int32_t count = 0;
    for (int32_t i = 0; i < l->kernel_h; i++)
        for (int32_t j = 0; j < (whole ? 1 : l->kernel_w); j++)
            offsets[count++] = (i * l->dilation_h * width + j * l->dilation_w) * l->in_c;
    *length = whole ? l->kernel_w * l->in_c : l->in_c / l->groups;
    return count;
}

ES_INLINE int es_conv(const TVMFFIAny *arguments, int bits)
{
    const es_layer *l = es_data(arguments, 2);
    int8_t *y = es_data(arguments, 3);
    uint8_t *image = es_image(es_data(arguments, 0), l, 1, 1);
    int32_t *offsets = malloc(sizeof(int32_t) * (size_t)(l->kernel_h * l->kernel_w));
    if (image == NULL || offsets == NULL) {
        free(offsets);
        free(image);
        return es_no_memory();
    }
    int32_t length;
    es_task t = {.layer = l, .scales = es_scales_of(l), .weights = es_data(arguments, 1), .offsets = offsets};
    t.segments = es_segments(l, offsets, &length);
    t.steps = (length + 3) / 4;
    t.channels = l->out_c / l->groups;
    const int32_t count = l->out_h * l->out_w;
    for (int32_t g = 0; g < l->groups; g++) {
        t.first = g * t.channels;
        for (int32_t i = 0; i < count; i += ES_ROWS) {
            const uint8_t *rows[ES_ROWS];
            int8_t *outputs[ES_ROWS];
            /* The last tile reaches back over the one before it; where there are too few positions it repeats one. */
            const int32_t at = es_min(i, count > ES_ROWS ? count - ES_ROWS : 0);
            for (int32_t m = 0; m < ES_ROWS; m++) {
                const int32_t position = es_min(at + m, count - 1);
                rows[m] = image + es_start(l, position, l->in_c) + g * length;
                outputs[m] = y + (size_t)position * (size_t)l->out_c + t.first;
            }
            es_positions(&t, rows, outputs, count == 1, bits);
        }
        t.weights += (size_t)(t.segments * t.steps * t.channels) * (size_t)bits / 2;
    }
    free(offsets);
    free(image);
    return 0;
}

#endif
