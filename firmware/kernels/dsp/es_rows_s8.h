/* One int8 vector times up to four rows of weights: four values of the vector unpacked once, two products an SMLAD. */
#ifndef ES_ROWS_S8_H
#define ES_ROWS_S8_H

#include "es_dsp.h"

/* acc[r] += sum of v[i] * w[r * count + i], r below `rows` (1 to 4). */
ES_INLINE void es_rows_s8(const int8_t *v, const int8_t *w, int32_t count, int32_t rows, uint32_t acc[4])
{
    const int32_t quads = count & ~3;
    const int8_t *v_end = v + quads;
    ES_UNROLL_NOT
    while (v != v_end) {
        const uint32_t x = es_load_word(v);
        const uint32_t even = es_sxtb16(x), odd = es_sxtb16_odd(x);
        ES_UNROLL_FULL
        for (int32_t r = 0; r < rows; r++) {
            const uint32_t y = es_load_word(w + r * count);
            acc[r] = es_smlad(even, es_sxtb16(y), acc[r]);
            acc[r] = es_smlad(odd, es_sxtb16_odd(y), acc[r]);
        }
        v += 4;
        w += 4;
    }
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count - quads; i++) {
        const int32_t x = v[i];
        ES_UNROLL_FULL
        for (int32_t r = 0; r < rows; r++)
            acc[r] += (uint32_t)(x * w[r * count + i]);
    }
}

#endif
