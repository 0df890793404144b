/* int8 fully connected layer of which most weights are zero: those that are not, each with the step to its place, two
 * bytes a weight whatever the size of the layer. The steps are decoded where the weights are loaded.
 *
 * A word holds two entries, bytes from the lowest: step, weight, step, weight. A step moves on from the place before, the
 * first from the start of the row; entries of weight zero fill an odd number up to an even one, and bridge more than 255
 * places. Row after row, a row's input is read for every output. The memory planner relies on this order. */
#ifndef ES_DENSE_SPARSE_S8_H
#define ES_DENSE_SPARSE_S8_H

#include "es_scale_s8.h"

typedef struct {
    const uint32_t *entries;
    const uint16_t *words; /* [channels]: of an output */
    const int32_t *bias;   /* [channels], input zero-point folded in */
    es_scales scales;
    int32_t rounding; /* 2 * zero_point + 1 of the output */
    int32_t single;   /* rounding of the requantization */
} es_sparse_layer;

/* acc + both products of an entry; *x moves on. */
ES_INLINE int32_t es_sparse_entry_s8(const int8_t **x, uint32_t entry, int32_t acc)
{
#if ES_DSP
    const int8_t *at = *x;
    int32_t v;
    uint32_t w;
    __asm__("uxtab %[x], %[x], %[e]\n\t"
            "sxtb16 %[w], %[e], ror #8\n\t"
            "ldrsb %[v], [%[x]]\n\t"
            "uxtab %[x], %[x], %[e], ror #16\n\t"
            "smlabb %[acc], %[v], %[w], %[acc]\n\t"
            "ldrsb %[v], [%[x]]\n\t"
            "smlabt %[acc], %[v], %[w], %[acc]"
            : [x] "+r"(at), [w] "=&r"(w), [v] "=&r"(v), [acc] "+r"(acc)
            : [e] "r"(entry)
            : "memory");
    *x = at;
    return acc;
#else
    const int8_t *first = *x + (entry & 0xFFu), *second = first + (entry >> 16 & 0xFFu);
    const uint32_t w = es_sxtb16_odd(entry);
    *x = second;
    return acc + *first * es_low_half(w) + *second * es_high_half(w);
#endif
}

static ES_NOINLINE ES_UNUSED void es_fully_connected_sparse_s8(const int8_t *in, int8_t *out, int32_t rows, int32_t in_c,
                                                               int32_t out_c, const es_sparse_layer *k)
{
    const int32_t mask = -k->scales.per_channel;
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++, in += in_c) {
        const uint32_t *entry = k->entries;
        ES_UNROLL_NOT
        for (int32_t c = 0; c < out_c; c++) {
            const int8_t *x = in;
            int32_t acc = k->bias[c];
            const uint32_t *const end = entry + k->words[c];
            ES_UNROLL_NOT
            for (; end - entry >= 4; entry += 4) {
                acc = es_sparse_entry_s8(&x, entry[0], acc);
                acc = es_sparse_entry_s8(&x, entry[1], acc);
                acc = es_sparse_entry_s8(&x, entry[2], acc);
                acc = es_sparse_entry_s8(&x, entry[3], acc);
            }
            ES_UNROLL_NOT
            for (; entry != end; entry++)
                acc = es_sparse_entry_s8(&x, *entry, acc);
            const int32_t at = c & mask;
            *out++ = (int8_t)es_scale(acc, k->scales.multiplier[at], k->scales.shift[at], k->rounding, k->single);
        }
    }
}

#endif
