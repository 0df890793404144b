/* Layers that only move elements: concat, pad, transpose; for any element size. All write upwards.
 *
 * `overlap` is 1 where the memory plan lets the output start below the input and reach into it: then bytes are copied
 * one by one, upwards; 0 where the two are apart. */
#ifndef ES_MOVE_H
#define ES_MOVE_H

#include "es_requant.h"

ES_INLINE void es_move(void *dst, const void *src, int32_t bytes, int32_t overlap)
{
    if (overlap)
        es_copy_up(dst, src, bytes);
    else
        __builtin_memcpy(dst, src, (size_t)bytes);
}

/* One input's share of a concatenation: `count` chunks of `chunk` bytes, `stride` bytes apart in the output. */
typedef struct {
    int32_t count, chunk, stride;
} es_chunks;

/* Chunk `index` of an input whose units are the output's. */
ES_INLINE void es_concat_part(const void *in, void *out, int32_t index, const es_chunks *p, int32_t overlap)
{
    es_move((uint8_t *)out + index * p->stride, (const uint8_t *)in + index * p->chunk, p->chunk, overlap);
}

/* Chunk `index` of an int8 input in other units. */
ES_INLINE void es_concat_part_rescaled_s8(const int8_t *in, int8_t *out, int32_t index, const es_chunks *p,
                                          int32_t zero_point, const es_requant *q)
{
    const int8_t *x = in + index * p->chunk;
    int8_t *y = out + index * p->stride;
    ES_UNROLL_NOT
    for (int32_t i = 0; i < p->chunk; i++)
        y[i] = es_requant_s8(x[i] - zero_point, 0, q);
}

/* Constant padding of up to four axes; the innermost holds bytes, not elements. */
typedef struct {
    int32_t in[4], before[4], after[4];
} es_padding;

/* Write `bytes` of padding at y; the value is one element of `item` (1, 2 or 4) bytes. */
ES_INLINE uint8_t *es_pad_fill(uint8_t *y, int32_t bytes, const uint8_t *value, int32_t item)
{
    ES_UNROLL_NOT
    for (int32_t i = 0; i < bytes; i++)
        y[i] = value[i & (item - 1)];
    return y + bytes;
}

ES_INLINE void es_pad(const void *in, void *out, const es_padding *p, const uint8_t *value, int32_t item,
                      int32_t overlap)
{
    const uint8_t *x = (const uint8_t *)in;
    uint8_t *y = (uint8_t *)out;
    const int32_t w3 = p->before[3] + p->in[3] + p->after[3];
    const int32_t w2 = (p->before[2] + p->in[2] + p->after[2]) * w3;
    const int32_t w1 = (p->before[1] + p->in[1] + p->after[1]) * w2;
    y = es_pad_fill(y, p->before[0] * w1, value, item);
    for (int32_t i0 = 0; i0 < p->in[0]; i0++) {
        y = es_pad_fill(y, p->before[1] * w2, value, item);
        for (int32_t i1 = 0; i1 < p->in[1]; i1++) {
            y = es_pad_fill(y, p->before[2] * w3, value, item);
            for (int32_t i2 = 0; i2 < p->in[2]; i2++) {
                y = es_pad_fill(y, p->before[3], value, item);
                es_move(y, x, p->in[3], overlap);
                x += p->in[3];
                y = es_pad_fill(y + p->in[3], p->after[3], value, item);
            }
            y = es_pad_fill(y, p->after[2] * w3, value, item);
        }
        y = es_pad_fill(y, p->after[1] * w2, value, item);
    }
    (void)es_pad_fill(y, p->after[0] * w1, value, item);
}

/* Output extents and the input's step, in elements, for a step along each output axis. */
typedef struct {
    int32_t size[6], step[6];
} es_transposition;

/* Element (i0 .. i5) of the output comes from sum of i * step in the input; items of 1, 2 or 4 bytes, never overlapping. */
ES_INLINE void es_transpose(const void *in, void *out, const es_transposition *t, int32_t item)
{
    int32_t o = 0;
    for (int32_t a = 0; a < t->size[0]; a++)
        for (int32_t b = 0; b < t->size[1]; b++)
            for (int32_t c = 0; c < t->size[2]; c++)
                for (int32_t d = 0; d < t->size[3]; d++)
                    for (int32_t e = 0; e < t->size[4]; e++) {
                        const int32_t i = a * t->step[0] + b * t->step[1] + c * t->step[2] + d * t->step[3] +
                                          e * t->step[4];
                        ES_UNROLL_NOT
                        for (int32_t f = 0; f < t->size[5]; f++, o++) {
                            const int32_t from = i + f * t->step[5];
                            if (item == 1)
                                ((int8_t *)out)[o] = ((const int8_t *)in)[from];
                            else if (item == 2)
                                ((uint16_t *)out)[o] = ((const uint16_t *)in)[from];
                            else
                                ((uint32_t *)out)[o] = ((const uint32_t *)in)[from];
                        }
                    }
}

#endif
