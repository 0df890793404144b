/* int8 fully connected layer of which most weights are zero: those that are not, each with the step to its place. Steps are
 * decoded where the weights are loaded.
 *
 * A step moves on from the place before, the first from the start of the row; entries of weight zero bridge what is
 * further. Four entries are a word of steps, a byte each, and a word of weights. What is left of an output's entries is a
 * word of two: step, weight, step, weight; an odd number is filled up with a weight of zero. Two bytes a weight.
 *
 * Packed: eight entries are a word of steps of four bits and two words of weights; those of the first weights are in the
 * lower halves of the bytes. What is left is as above. One byte and a half a weight, but steps reach only 15.
 *
 * counts: of an output, how many groups of four or eight (bits 2 and on), whether four entries follow (bit 1, packed
 * only), whether two do (bit 0).
 *
 * Row after row, a row's input is read for every output. The memory planner relies on this order. */
#ifndef ES_DENSE_SPARSE_S8_H
#define ES_DENSE_SPARSE_S8_H

#include "es_scale_s8.h"

typedef struct {
    const uint32_t *entries;
    const uint16_t *counts; /* [channels] */
    const int32_t *bias;    /* [channels], input zero-point folded in */
    es_scales scales;
    int32_t rounding; /* 2 * zero_point + 1 of the output */
    int32_t single;   /* rounding of the requantization */
} es_sparse_layer;

#if ES_DSP
#define ES_SPARSE_FOUR                                                                                                 \
    "uxtab %[x], %[x], %[s]\n\t"                                                                                       \
    "sxtb16 %[w], %[odd]\n\t"                                                                                          \
    "ldrsb %[v], [%[x]]\n\t"                                                                                           \
    "uxtab %[x], %[x], %[s], ror #8\n\t"                                                                               \
    "sxtb16 %[odd], %[odd], ror #8\n\t"                                                                                \
    "smlabb %[acc], %[v], %[w], %[acc]\n\t"                                                                            \
    "ldrsb %[v], [%[x]]\n\t"                                                                                           \
    "uxtab %[x], %[x], %[s], ror #16\n\t"                                                                              \
    "smlabb %[acc], %[v], %[odd], %[acc]\n\t"                                                                          \
    "ldrsb %[v], [%[x]]\n\t"                                                                                           \
    "uxtab %[x], %[x], %[s], ror #24\n\t"                                                                              \
    "smlabt %[acc], %[v], %[w], %[acc]\n\t"                                                                            \
    "ldrsb %[v], [%[x]]\n\t"                                                                                           \
    "smlabt %[acc], %[v], %[odd], %[acc]"
#endif

/* acc + the products of four entries; *x moves on. */
ES_INLINE int32_t es_sparse_four_s8(const int8_t **x, uint32_t steps, uint32_t weights, int32_t acc)
{
    const int8_t *at = *x;
#if ES_DSP
    int32_t v;
    uint32_t w, odd = weights;
    __asm__(ES_SPARSE_FOUR
            : [x] "+r"(at), [w] "=&r"(w), [v] "=&r"(v), [acc] "+r"(acc), [odd] "+r"(odd)
            : [s] "r"(steps)
            : "memory");
#else
    for (int32_t i = 0; i < 4; i++) {
        at += steps >> 8 * i & 0xFFu;
        acc += *at * (int8_t)(uint8_t)(weights >> 8 * i & 0xFFu);
    }
#endif
    *x = at;
    return acc;
}

/* The same of `groups` times a word of steps and one of weights; *entry moves on. */
ES_INLINE int32_t es_sparse_fours_s8(const int8_t **x, const uint32_t **entry, uint32_t groups, int32_t acc)
{
#if ES_DSP
    const int8_t *at = *x;
    const uint32_t *e = *entry;
    ES_UNROLL_NOT
    for (; groups > 0; groups--) {
        int32_t v;
        uint32_t s, w, odd;
        __asm__("ldrd %[s], %[odd], [%[e]], #8\n\t" ES_SPARSE_FOUR
                : [x] "+r"(at), [w] "=&r"(w), [v] "=&r"(v), [acc] "+r"(acc), [odd] "=&r"(odd), [s] "=&r"(s), [e] "+r"(e)
                :
                : "memory");
    }
    *x = at;
    *entry = e;
#else
    for (; groups > 0; groups--, *entry += 2)
        acc = es_sparse_four_s8(x, (*entry)[0], (*entry)[1], acc);
#endif
    return acc;
}

/* The same of two entries of a word. */
ES_INLINE int32_t es_sparse_two_s8(const int8_t *x, uint32_t entry, int32_t acc)
{
    const int8_t *first = x + (entry & 0xFFu), *second = first + (entry >> 16 & 0xFFu);
    const uint32_t w = es_sxtb16_odd(entry);
    return acc + *first * es_low_half(w) + *second * es_high_half(w);
}

ES_INLINE void es_dense_entries_s8(const int8_t *in, int8_t *out, int32_t rows, int32_t in_c, int32_t out_c,
                                   const es_sparse_layer *k, int32_t packed)
{
    const int32_t mask = -k->scales.per_channel;
    const uint32_t low = 0x0F0F0F0Fu;
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++, in += in_c) {
        const uint32_t *entry = k->entries;
        ES_UNROLL_NOT
        for (int32_t c = 0; c < out_c; c++) {
            const int8_t *x = in;
            int32_t acc = k->bias[c];
            const uint32_t count = k->counts[c];
            if (packed) {
                ES_UNROLL_NOT
                for (uint32_t groups = count >> 2; groups > 0; groups--) {
                    const uint32_t steps = entry[0];
                    acc = es_sparse_four_s8(&x, steps & low, entry[1], acc);
                    acc = es_sparse_four_s8(&x, steps >> 4 & low, entry[2], acc);
                    entry += 3;
                }
                acc = es_sparse_fours_s8(&x, &entry, count >> 1 & 1u, acc);
            } else {
                acc = es_sparse_fours_s8(&x, &entry, count >> 2, acc);
            }
            if ((count & 1u) != 0)
                acc = es_sparse_two_s8(x, *entry++, acc);
            const int32_t at = c & mask;
            *out++ = (int8_t)es_scale(acc, k->scales.multiplier[at], k->scales.shift[at], k->rounding, k->single);
        }
    }
}

static ES_NOINLINE ES_UNUSED void es_fully_connected_sparse_s8(const int8_t *in, int8_t *out, int32_t rows, int32_t in_c,
                                                               int32_t out_c, const es_sparse_layer *k)
{
    es_dense_entries_s8(in, out, rows, in_c, out_c, k, 0);
}

static ES_NOINLINE ES_UNUSED void es_fully_connected_packed_s8(const int8_t *in, int8_t *out, int32_t rows, int32_t in_c,
                                                               int32_t out_c, const es_sparse_layer *k)
{
    es_dense_entries_s8(in, out, rows, in_c, out_c, k, 1);
}

#endif
