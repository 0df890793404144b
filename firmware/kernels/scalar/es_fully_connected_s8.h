/* int8 fully connected: [rows, I] x weights [O, I] -> [rows, O]. Row after row; a row's input is read for every pair
 * of its outputs. `bias` has the input's zero-point folded in. Rows of weights of 4 bits are filled up to an even number. */
#ifndef ES_FULLY_CONNECTED_S8_H
#define ES_FULLY_CONNECTED_S8_H

#include "es_dot_s8.h"
#include "es_requant.h"

ES_INLINE void es_fully_connected_s8(const int8_t *in, int8_t *out, int32_t rows, int32_t in_c, int32_t out_c,
                                     const int8_t *weights, int32_t bits, const int32_t *bias,
                                     const es_requant *q)
{
    const int32_t step = bits == 4 ? in_c + (in_c & 1) : in_c;
    const es_weights_at start = {weights, 0};
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        const int8_t *x = in + r * in_c;
        int8_t *y = out + r * out_c;
        int32_t c = 0;
        ES_UNROLL_NOT
        for (; c + 2 <= out_c; c += 2) {
            uint32_t acc[4] = {(uint32_t)bias[c], (uint32_t)bias[c + 1], 0u, 0u};
            es_dot_bits_s8(x, 0, es_weights_on(start, c * step, bits), bits, step, in_c, 1, 2, acc);
            y[c] = es_requant_s8((int32_t)acc[0], c, q);
            y[c + 1] = es_requant_s8((int32_t)acc[1], c + 1, q);
        }
        if (out_c % 2 != 0) {
            uint32_t acc[4] = {(uint32_t)bias[c], 0u, 0u, 0u};
            es_dot_bits_s8(x, 0, es_weights_on(start, c * step, bits), bits, step, in_c, 1, 1, acc);
            y[c] = es_requant_s8((int32_t)acc[0], c, q);
        }
    }
}

#endif
