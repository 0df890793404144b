/* int8 GRU over a sequence, hidden state int16 in Q0.15; the contract is that of the integer program's Gru.
 *
 * Rows of the weights: with `late` (linear_before_reset) unit after unit its update, reset and candidate gate; else
 * first the reset gate of every unit, then unit after unit its update and candidate gate. A step reads the whole
 * output of the step before it and writes its own beside it; the input is read to the end. */
#ifndef ES_GRU_S8_H
#define ES_GRU_S8_H

#include "es_recurrent_s16.h"

typedef struct {
    int32_t steps, reverse, sequence, units, late;
    es_product_s8 ahead, back;
    es_requant hidden; /* Q0.15 to the output */
} es_gru_s8_layer;

/* s' = z * s + (1 - z) * n */
ES_INLINE int32_t es_gru_mix(int32_t z, int32_t s, int32_t n)
{
    return es_rounding_shift(z * s + (32768 - z) * n, 15);
}

ES_INLINE void es_gru_step_late_s8(const int8_t *x, const int8_t *h, int16_t *s, int8_t *y, const es_gru_s8_layer *p)
{
    ES_UNROLL_NOT
    for (int32_t u = 0; u < p->units; u++) {
        int32_t gate[4], back[4];
        es_product_rows_s8(&p->ahead, x, 3 * u, 0, 3, gate);
        es_product_rows_s8(&p->back, h, 3 * u, 0, 3, back);
        const int32_t z = es_gate_logistic(es_saturate_s16(es_saturate_s16(gate[0]) + back[0]));
        const int32_t r = es_gate_logistic(es_saturate_s16(es_saturate_s16(gate[1]) + back[1]));
        const int32_t third = es_rounding_shift(r * es_saturate_s16(back[2]), 15);
        const int32_t n = es_gate_tanh(es_saturate_s16(es_saturate_s16(gate[2]) + third));
        s[u] = (int16_t)es_gru_mix(z, s[u], n);
        y[u] = es_requant_s8(s[u], 0, &p->hidden);
    }
}

/* masked: `units` bytes for r * s. */
ES_INLINE void es_gru_step_early_s8(const int8_t *x, const int8_t *h, int16_t *s, int8_t *y, int8_t *masked,
                                    const es_gru_s8_layer *p)
{
    int32_t gate[4];
    ES_UNROLL_NOT
    for (int32_t u = 0; u < p->units; u++) {
        es_gates_s8(&p->ahead, &p->back, x, h, u, 1, 1, gate);
        masked[u] = es_requant_s8(es_rounding_shift(es_gate_logistic(gate[0]) * s[u], 15), 0, &p->hidden);
    }
    ES_UNROLL_NOT
    for (int32_t u = 0; u < p->units; u++) {
        const int32_t row = p->units + 2 * u;
        es_gates_s8(&p->ahead, &p->back, x, h, row, 0, 1, gate);
        const int32_t z = es_gate_logistic(gate[0]);
        es_gates_s8(&p->ahead, &p->back, x, masked, row + 1, 2, 1, gate);
        s[u] = (int16_t)es_gru_mix(z, s[u], es_gate_tanh(gate[0]));
        y[u] = es_requant_s8(s[u], 0, &p->hidden);
    }
}

/* s: the hidden state, updated. other: `units` bytes for the output before the first step and, where only the last
 * step is kept, for those of all steps but that. masked: `units` bytes, unused with `late`. */
ES_INLINE void es_gru_s8(const int8_t *in, int16_t *s, int8_t *out, int8_t *other, int8_t *masked,
                         const es_gru_s8_layer *p)
{
    /* Where outputs alternate between two places, the one before the first step must not lie where that one goes. */
    int8_t *h = !p->sequence && (p->steps - 1) % 2 != 0 ? out : other;
    ES_UNROLL_NOT
    for (int32_t u = 0; u < p->units; u++)
        h[u] = es_requant_s8(s[u], 0, &p->hidden);
    ES_UNROLL_NOT
    for (int32_t t = 0; t < p->steps; t++) {
        const int32_t at = p->reverse ? p->steps - 1 - t : t;
        const int8_t *x = in + at * p->ahead.columns;
        int8_t *y = p->sequence ? out + at * p->units : h == other ? out : other;
        if (p->late)
            es_gru_step_late_s8(x, h, s, y, p);
        else
            es_gru_step_early_s8(x, h, s, y, masked, p);
        h = y;
    }
}

#endif
