/* One int8 vector times up to four rows of weights: sixteen values of the vector read once, a VMLADAVA a row. */
#ifndef ES_ROWS_S8_H
#define ES_ROWS_S8_H

#include "es_mve.h"

/* acc[r] += sum of v[i] * w[r * count + i], r below `rows` (1 to 4). */
ES_INLINE void es_rows_s8(const int8_t *v, const int8_t *w, int32_t count, int32_t rows, uint32_t acc[4])
{
#if ES_MVE
    ES_UNROLL_NOT
    for (int32_t left = count; left > 0; left -= 16) {
        const mve_pred16_t real = vctp8q((uint32_t)left);
        const int8x16_t x = vldrbq_z_s8(v, real);
        ES_UNROLL_FULL
        for (int32_t r = 0; r < rows; r++)
            acc[r] = (uint32_t)vmladavaq_p_s8((int32_t)acc[r], x, vldrbq_z_s8(w + r * count, real), real);
        v += 16;
        w += 16;
    }
#else
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++)
        for (int32_t r = 0; r < rows; r++)
            acc[r] += (uint32_t)(v[i] * w[r * count + i]);
#endif
}

#endif
