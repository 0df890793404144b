/* int8 fully connected layer on the kernels of es_dense_s8.h: row after row; a row's input is read for every group of
 * eight of its outputs, unless it was copied to scratch first. The memory planner relies on this order. */
#ifndef ES_FULLY_CONNECTED_DENSE_S8_H
#define ES_FULLY_CONNECTED_DENSE_S8_H

#include "es_dense_s8.h"

typedef struct {
    const uint32_t *weights; /* as es_dense_row has them */
    const int32_t *bias;
    const es_scale_pair *scale;
    int32_t scale_step;
    int32_t rounding;
    int32_t single; /* rounding of the requantization */
    int32_t wide;   /* accumulators around centres */
} es_dense_layer;

/* scratch: in_c rounded up to a multiple of four bytes where in_c is none, else unused. */
ES_INLINE void es_fully_connected_dense_s8(const int8_t *in, int8_t *out, int8_t *scratch, int32_t rows, int32_t in_c,
                                           int32_t out_c, const es_dense_layer *k)
{
    es_dense_row row;
    row.scale_step = k->scale_step;
    row.rounding = k->rounding;
    row.quads = (in_c + 3) / 4;
    row.bias = k->bias;
    row.bias_end = k->bias + (out_c + 1) / 8 * 8;
    row.scale = k->scale;
    row.weights = k->weights;
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        row.x = in + r * in_c;
        if (in_c % 4 != 0) {
            es_copy_up(scratch, row.x, in_c);
            row.x = scratch;
        }
        row.x_end = row.x + 4 * row.quads;
        row.out = out + r * out_c;
        row.out_end = row.out + out_c;
        if (k->wide && k->single)
            es_dense_single_wide_s8(&row);
        else if (k->wide)
            es_dense_double_wide_s8(&row);
        else if (k->single)
            es_dense_single_s8(&row);
        else
            es_dense_double_s8(&row);
    }
}

#endif
