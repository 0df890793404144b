/* int16 fully connected with int8 weights: [rows, I] x weights [O, I] -> [rows, O]. Row after row; a row's input is
 * read for every pair of its outputs. */
#ifndef ES_FULLY_CONNECTED_S16_H
#define ES_FULLY_CONNECTED_S16_H

#include "es_conv2d_s16.h"

ES_INLINE void es_fully_connected_s16(const int16_t *in, int16_t *out, int32_t rows, int32_t in_c, int32_t out_c,
                                      const es_weights_s16 *k, const es_real_scale *q)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        const int16_t *x = in + r * in_c;
        int16_t *y = out + r * out_c;
        ES_UNROLL_NOT
        for (int32_t c = 0; c < out_c; c += 2) {
            const int32_t channels = es_min_s32(out_c - c, 2);
            es_sums_s16 s;
            es_sums_start_s16(&s, es_bias_s16(k, q->wide, c), channels == 2 ? es_bias_s16(k, q->wide, c + 1) : 0,
                              q->wide);
            if (channels == 2)
                es_dot_s16(x, 0, k->weights + c * in_c, in_c, in_c, 1, 2, q->wide, &s);
            else
                es_dot_s16(x, 0, k->weights + c * in_c, 0, in_c, 1, 1, q->wide, &s);
            /* One copy of the rescaling serves both. */
            ES_UNROLL_NOT
            for (int32_t i = 0; i < channels; i++)
                y[c + i] = es_real_s16(es_sum_s16(&s, i, q->wide), c + i, q);
        }
    }
}

#endif
