/* int8 LSTM over a sequence, bit for bit as LiteRT's reference kernel (8x8->16): int16 gates and cell state.
 *
 * Rows of the weights: unit after unit, its input, forget, candidate and output gate. A step reads the whole output of
 * the step before it and writes its own beside it; the input is read to the end. */
#ifndef ES_LSTM_S8_H
#define ES_LSTM_S8_H

#include "es_recurrent_s16.h"

typedef struct {
    int32_t steps, reverse, sequence, units;
    int32_t cell_exponent; /* the cell state is in units of 2^cell_exponent, -15 to -9 */
    int32_t cell_clip;     /* its bound in those units; 0: none */
    es_product_s8 ahead, back;
    es_requant hidden; /* Q0.30 to the output */
} es_lstm_s8_layer;

/* h: the output before the first step, NULL for zeros. c: the cell state, updated. other: `units` bytes for outputs of
 * all but the last step where only that one is kept (`sequence` 0 and more than one step), else unused. */
ES_INLINE void es_lstm_s8(const int8_t *in, const int8_t *h, int16_t *c, int8_t *out, int8_t *other,
                          const es_lstm_s8_layer *p)
{
    ES_UNROLL_NOT
    for (int32_t t = 0; t < p->steps; t++) {
        const int32_t at = p->reverse ? p->steps - 1 - t : t;
        const int8_t *x = in + at * p->ahead.columns;
        /* The last step writes to `out`, the one before it beside it. */
        int8_t *y = p->sequence ? out + at * p->units : (p->steps - 1 - t) % 2 != 0 ? other : out;
        ES_UNROLL_NOT
        for (int32_t u = 0; u < p->units; u++) {
            int32_t gate[4];
            es_gates_s8(&p->ahead, &p->back, x, h, 4 * u, 0, 4, gate);
            const int32_t forget = es_gate_logistic(gate[1]);
            const int32_t fresh = es_gate_logistic(gate[0]) * es_gate_tanh(gate[2]);
            int32_t cell = es_rounding_shift(forget * c[u], 15) + es_rounding_shift(fresh, 30 + p->cell_exponent);
            cell = es_saturate_s16(cell);
            if (p->cell_clip != 0)
                cell = es_clamp_s32(cell, -p->cell_clip, p->cell_clip);
            c[u] = (int16_t)cell;
            y[u] = es_requant_s8(es_gate_logistic(gate[3]) * es_gate_tanh_inline(cell, 15 + p->cell_exponent), 0, &p->hidden);
        }
        h = y;
    }
}

#endif
