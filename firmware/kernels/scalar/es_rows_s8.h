/* One int8 vector times up to four rows of weights. Families with wider multipliers have a header of this name. */
#ifndef ES_ROWS_S8_H
#define ES_ROWS_S8_H

#include "es_dot_s8.h"

/* acc[r] += sum of v[i] * w[r * count + i], r below `rows` (1 to 4). */
ES_INLINE void es_rows_s8(const int8_t *v, const int8_t *w, int32_t count, int32_t rows, uint32_t acc[4])
{
    ES_UNROLL_FULL
    for (int32_t r = 0; r < rows; r += 2) {
        const int32_t pair = rows - r < 2 ? 1 : 2;
        uint32_t part[4] = {acc[r], pair == 2 ? acc[r + 1] : 0u, 0u, 0u};
        es_dot_s8(v, 0, w + r * count, count, count, 1, pair, part);
        acc[r] = part[0];
        if (pair == 2)
            acc[r + 1] = part[1];
    }
}

#endif
