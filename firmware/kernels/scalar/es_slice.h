/* Parts of a tensor, and the shift that updates a state in place; for any element size, counted in bytes. */
#ifndef ES_SLICE_H
#define ES_SLICE_H

#include "es_base.h"

/* Move `bytes` to another place that overlaps the first, in pieces no longer than the distance, which do not. */
ES_INLINE void es_shift(void *dst, const void *src, int32_t bytes)
{
    uint8_t *to = (uint8_t *)dst;
    const uint8_t *from = (const uint8_t *)src;
    if (to < from) {
        const int32_t distance = (int32_t)(from - to);
        ES_UNROLL_NOT
        for (; bytes > distance; bytes -= distance) {
            __builtin_memcpy(to, from, (size_t)distance);
            to += distance;
            from += distance;
        }
        __builtin_memcpy(to, from, (size_t)bytes);
    } else if (to > from) {
        const int32_t distance = (int32_t)(to - from);
        ES_UNROLL_NOT
        for (; bytes > distance; bytes -= distance)
            __builtin_memcpy(to + bytes - distance, from + bytes - distance, (size_t)distance);
        __builtin_memcpy(to, from, (size_t)bytes);
    }
}

ES_INLINE void es_copy(void *dst, const void *src, int32_t bytes)
{
    __builtin_memcpy(dst, src, (size_t)bytes);
}

/* Pieces of `piece` bytes along four axes, `step` bytes apart in the input, side by side in the output. */
typedef struct {
    int32_t size[4], step[4], piece;
} es_part;

ES_INLINE void es_slice(const uint8_t *in, void *out, const es_part *p)
{
    uint8_t *to = (uint8_t *)out;
    for (int32_t a = 0; a < p->size[0]; a++)
        for (int32_t b = 0; b < p->size[1]; b++)
            for (int32_t c = 0; c < p->size[2]; c++) {
                const uint8_t *from = in + a * p->step[0] + b * p->step[1] + c * p->step[2];
                ES_UNROLL_NOT
                for (int32_t d = 0; d < p->size[3]; d++) {
                    __builtin_memcpy(to, from, (size_t)p->piece);
                    to += p->piece;
                    from += p->step[3];
                }
            }
}

#endif
