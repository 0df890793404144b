/* float32 LSTM and GRU over a sequence. Rows of the weights and order of memory as in es_lstm_s8.h and es_gru_s8.h. */
#ifndef ES_RECURRENT_F32_H
#define ES_RECURRENT_F32_H

#include "es_math_f32.h"

/* bias: an entry a row; columns: of the weights. Vectors may be NULL: zeros. */
typedef struct {
    const float *weights, *bias;
    int32_t columns;
} es_product_f32;

ES_INLINE float es_product_row_f32(const es_product_f32 *p, const float *v, int32_t row)
{
    const float *w = p->weights + row * p->columns;
    float sum = 0.0f;
    if (v == NULL)
        return p->bias[row];
    ES_UNROLL_NOT
    for (int32_t i = 0; i < p->columns; i++)
        sum += w[i] * v[i];
    return sum + p->bias[row];
}

ES_INLINE float es_element_f32(const float *v, int32_t i) { return v != NULL ? v[i] : 0.0f; }

typedef struct {
    int32_t steps, reverse, sequence, units;
    float cell_clip; /* 0: none */
    es_product_f32 ahead, back;
} es_lstm_f32_layer;

/* h: the output before the first step; c: the cell state, updated; other: `units` floats where only the last step is
 * kept and there are several. */
ES_INLINE void es_lstm_f32(const float *in, const float *h, float *c, float *out, float *other,
                           const es_lstm_f32_layer *p)
{
    ES_UNROLL_NOT
    for (int32_t t = 0; t < p->steps; t++) {
        const int32_t at = p->reverse ? p->steps - 1 - t : t;
        const float *x = in + at * p->ahead.columns;
        float *y = p->sequence ? out + at * p->units : (p->steps - 1 - t) % 2 != 0 ? other : out;
        ES_UNROLL_NOT
        for (int32_t u = 0; u < p->units; u++) {
            float gate[4];
            ES_UNROLL_NOT
            for (int32_t k = 0; k < 4; k++)
                gate[k] = es_product_row_f32(&p->ahead, x, 4 * u + k) + es_product_row_f32(&p->back, h, 4 * u + k);
            float cell = es_sigmoid_f32(gate[1]) * c[u] + es_sigmoid_f32(gate[0]) * es_tanh_f32(gate[2]);
            if (p->cell_clip > 0.0f)
                cell = es_clamp_f32(cell, -p->cell_clip, p->cell_clip);
            c[u] = cell;
            y[u] = es_sigmoid_f32(gate[3]) * es_tanh_f32(cell);
        }
        h = y;
    }
}

typedef struct {
    int32_t steps, reverse, sequence, units, late;
    es_product_f32 ahead, back;
} es_gru_f32_layer;

/* h: the output before the first step; other: as in es_lstm_f32; masked: `units` floats, unused with `late`. */
ES_INLINE void es_gru_f32(const float *in, const float *h, float *out, float *other, float *masked,
                          const es_gru_f32_layer *p)
{
    const int32_t n = p->units;
    ES_UNROLL_NOT
    for (int32_t t = 0; t < p->steps; t++) {
        const int32_t at = p->reverse ? p->steps - 1 - t : t;
        const float *x = in + at * p->ahead.columns;
        float *y = p->sequence ? out + at * n : (p->steps - 1 - t) % 2 != 0 ? other : out;
        if (!p->late) {
            ES_UNROLL_NOT
            for (int32_t u = 0; u < n; u++)
                masked[u] =
                    es_element_f32(h, u) * es_sigmoid_f32(es_product_row_f32(&p->ahead, x, u) + es_product_row_f32(&p->back, h, u));
        }
        ES_UNROLL_NOT
        for (int32_t u = 0; u < n; u++) {
            const int32_t row = p->late ? 3 * u : n + 2 * u, last = p->late ? row + 2 : row + 1;
            const float z =
                es_sigmoid_f32(es_product_row_f32(&p->ahead, x, row) + es_product_row_f32(&p->back, h, row));
            float third;
            if (p->late) {
                const float r = es_sigmoid_f32(es_product_row_f32(&p->ahead, x, row + 1) +
                                               es_product_row_f32(&p->back, h, row + 1));
                third = r * es_product_row_f32(&p->back, h, last);
            } else {
                third = es_product_row_f32(&p->back, masked, last);
            }
            const float fresh = es_tanh_f32(es_product_row_f32(&p->ahead, x, last) + third);
            y[u] = (1.0f - z) * fresh + z * es_element_f32(h, u);
        }
        h = y;
    }
}

#endif
