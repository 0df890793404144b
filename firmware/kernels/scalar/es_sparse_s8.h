/* int8 products with rows of weights of which most are zero: fully connected layers, and convolutions whose windows are
 * single pixels. Where multiplications are one by one, a zero skipped is a multiplication saved.
 *
 * Entries are two bytes: the step from the place before (the first from the start of the row), and the weight; weights of
 * zero bridge more than 255 places. counts: entries of an output. bias: with the input's zero-point folded in.
 *
 * Rows in order, one at a time, or of a convolution up to ES_TILE_PIXELS; their input is read again for every pair of their
 * outputs, and not after the last pair is written. The memory planner relies on this order. */
#ifndef ES_SPARSE_S8_H
#define ES_SPARSE_S8_H

#include "es_requant.h"

typedef struct {
    const int8_t *entries;
    const uint16_t *counts;
    const int32_t *bias;
} es_sparse_rows;

/* The products of an entry with one row, or with two that are `step` apart. */
#define ES_SPARSE_ENTRY(at)                                                                                            \
    do {                                                                                                               \
        const int32_t w = entry[2 * (at) + 1];                                                                         \
        x += (uint8_t)entry[2 * (at)];                                                                                 \
        a += (uint32_t)(x[0] * w);                                                                                     \
        if (rows == 2)                                                                                                 \
            b += (uint32_t)(x[step] * w);                                                                              \
    } while (0)

/* Adds an output's products; returns the entries of the next. Unrolled by four where there are registers; the empty
 * statements keep the compiler from counting what the pointer counts already. */
ES_INLINE const int8_t *es_sparse_dot_s8(const int8_t *x, int32_t step, const int8_t *entry, int32_t count, int32_t rows,
                                         uint32_t acc[2])
{
    const int8_t *const end = entry + 2 * count;
    uint32_t a = acc[0], b = acc[1];
    if (ES_TILE_PIXELS == 2) {
        const int8_t *fours = entry + 2 * (count & ~3);
        __asm__("" : "+r"(fours));
        ES_UNROLL_NOT
        for (; entry != fours; entry += 8) {
            ES_SPARSE_ENTRY(0);
            ES_SPARSE_ENTRY(1);
            ES_SPARSE_ENTRY(2);
            ES_SPARSE_ENTRY(3);
            __asm__("" : "+r"(entry));
        }
    }
    ES_UNROLL_NOT
    for (; entry != end; entry += 2)
        ES_SPARSE_ENTRY(0);
    acc[0] = a;
    acc[1] = b;
    return entry;
}

/* All outputs of one row or two. */
ES_INLINE void es_sparse_tile_s8(const int8_t *x, int8_t *y, int32_t rows, int32_t in_c, int32_t out_c,
                                 const es_sparse_rows *k, const es_requant *q)
{
    const int8_t *entry = k->entries;
    ES_UNROLL_NOT
    for (int32_t c = 0; c < out_c; c += 2) {
        const int32_t pair = c + 1 < out_c;
        uint32_t first[2] = {(uint32_t)k->bias[c], (uint32_t)k->bias[c]}, second[2] = {0u, 0u};
        entry = es_sparse_dot_s8(x, in_c, entry, k->counts[c], rows, first);
        if (pair) {
            second[0] = second[1] = (uint32_t)k->bias[c + 1];
            entry = es_sparse_dot_s8(x, in_c, entry, k->counts[c + 1], rows, second);
        }
        ES_UNROLL_FULL
        for (int32_t r = 0; r < rows; r++) {
            y[r * out_c + c] = es_requant_s8((int32_t)first[r], c, q);
            if (pair)
                y[r * out_c + c + 1] = es_requant_s8((int32_t)second[r], c + 1, q);
        }
    }
}

/* pixels: whether rows are those of a convolution. */
ES_INLINE void es_sparse_s8(const int8_t *in, int8_t *out, int32_t rows, int32_t in_c, int32_t out_c, int32_t pixels,
                            const es_sparse_rows *k, const es_requant *q)
{
    int32_t row = 0;
    if (ES_TILE_PIXELS == 2 && pixels) {
        ES_UNROLL_NOT
        for (; row + 2 <= rows; row += 2)
            es_sparse_tile_s8(in + row * in_c, out + row * out_c, 2, in_c, out_c, k, q);
    }
    ES_UNROLL_NOT
    for (; row < rows; row++)
        es_sparse_tile_s8(in + row * in_c, out + row * out_c, 1, in_c, out_c, k, q);
}

#endif
