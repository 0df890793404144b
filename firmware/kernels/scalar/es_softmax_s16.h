/* int16 softmax over rows by interpolated tables, bit for bit as LiteRT's reference kernel.
 *
 * A row is read wholly before its first output is written; then exponential c, kept in output c, replaces element c. */
#ifndef ES_SOFTMAX_S16_H
#define ES_SOFTMAX_S16_H

#include "es_requant.h"

/* Tables of 513 int16 entries: exp over [-10, 0] and 1 / (1 + x) over [0, 1], Q0.15. channels < 2^16, so that the sum
 * stays within 31 bits. */
typedef struct {
    int32_t rows, channels;
    int32_t multiplier, shift; /* differences to the maximum become 65535ths of 10 */
    const int16_t *exponential;
    const int16_t *reciprocal;
} es_softmax_tables;

/* A table at int16 `value`: 512 steps of 128. */
ES_INLINE int32_t es_interpolate(int32_t value, const int16_t *table)
{
    const int32_t i = 256 + (value >> 7);
    return table[i] + (((table[i + 1] - table[i]) * (value & 127) + 64) >> 7);
}

ES_INLINE void es_softmax_s16(const int16_t *in, int16_t *out, const es_softmax_tables *p)
{
    ES_UNROLL_NOT
    for (int32_t r = 0; r < p->rows; r++) {
        const int16_t *x = in + r * p->channels;
        int16_t *y = out + r * p->channels;
        int32_t largest = INT16_MIN;
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++)
            largest = es_max_s32(largest, x[c]);
        uint32_t sum = 0; /* Q16.15 */
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t v = es_requant_double(x[c] - largest, p->multiplier, p->shift);
            const int32_t e = es_interpolate(es_max_s32(v + INT16_MAX, INT16_MIN), p->exponential);
            y[c] = (int16_t)e;
            sum += (uint32_t)e;
        }
        int32_t headroom = 1;
        while (((sum << headroom) & UINT32_C(0x80000000)) == 0u)
            headroom++;
        const int32_t mantissa = (int32_t)(((sum << (headroom - 1)) + 8192u) >> 14);
        const int32_t reciprocal = es_interpolate(es_clamp_s32(mantissa - 98304, INT16_MIN, INT16_MAX), p->reciprocal);
        const int32_t right = 31 - headroom;
        ES_UNROLL_NOT
        for (int32_t c = 0; c < p->channels; c++) {
            const int32_t v = (y[c] * reciprocal + (INT32_C(1) << (right - 1))) >> right;
            y[c] = (int16_t)es_clamp_s32(v, 0, INT16_MAX);
        }
    }
}

#endif
