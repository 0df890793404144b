/* Accumulators become outputs: bias, multiplier and shift a channel, zero-point, clamp. */
#ifndef ES_TVM_SCALE_H
#define ES_TVM_SCALE_H

#include "es_tvm.h"

typedef struct {
    const int32_t *bias, *multiplier;
    const int8_t *shift;
} es_scales;

ES_INLINE es_scales es_scales_of(const es_layer *l)
{
    const int32_t *bias = (const int32_t *)(const void *)(l + 1);
    const int32_t *multiplier = bias + l->out_c;
    return (es_scales){bias, multiplier, (const int8_t *)(multiplier + l->out_c)};
}

/* One accumulator; `shift` positive is left. */
ES_INLINE int8_t es_scaled(const es_layer *l, int32_t sum, int32_t multiplier, int32_t shift)
{
    int64_t value;
    if (l->single) {
        const int32_t total = 31 - shift;
        value = ((int64_t)sum * multiplier + ((int64_t)1 << (total - 1))) >> total;
    } else {
        const int32_t left = shift > 0 ? shift : 0, right = shift < 0 ? -shift : 0;
        value = ((int64_t)((uint64_t)(int64_t)sum << left) * multiplier + (1 << 30)) >> 31;
        value = (value + (((int64_t)1 << right) >> 1) - (value < 0 && right > 0)) >> right;
    }
    value += l->output_zero;
    value = value < l->low.integer ? l->low.integer : value;
    return (int8_t)(value > l->high.integer ? l->high.integer : value);
}

#if ES_OFFSET
#include <immintrin.h>

typedef struct { __m512i multiplier, left, right, half; __mmask8 shifted; } es_half_scale;
typedef struct { __m512i bias; es_half_scale half[2]; __m512i zero, low, high; __mmask16 mask; } es_vector_scale;

/* Scales of the channels from n on, as many as `mask` has. */
ES_INLINE es_vector_scale es_load_scale(const es_layer *l, es_scales s, int32_t n, __mmask16 mask)
{
    es_vector_scale v;
    const __m512i multiplier = _mm512_maskz_loadu_epi32(mask, s.multiplier + n);
    const __m128i shift = _mm_maskz_loadu_epi8(mask, s.shift + n);
    const __m512i none = _mm512_setzero_si512(), one = _mm512_set1_epi64(1);
    v.mask = mask;
    v.bias = _mm512_maskz_loadu_epi32(mask, s.bias + n);
    v.zero = _mm512_set1_epi64(l->output_zero);
    v.low = _mm512_set1_epi64(l->low.integer);
    v.high = _mm512_set1_epi64(l->high.integer);
    for (int h = 0; h < 2; h++) {
        const __m256i part = h ? _mm512_extracti64x4_epi64(multiplier, 1) : _mm512_castsi512_si256(multiplier);
        const __m512i wide = _mm512_cvtepi8_epi64(h ? _mm_srli_si128(shift, 8) : shift);
        es_half_scale *to = &v.half[h];
        to->multiplier = _mm512_cvtepi32_epi64(part);
        to->left = _mm512_max_epi64(wide, none);
        to->right = l->single ? _mm512_sub_epi64(_mm512_set1_epi64(31), wide)
                              : _mm512_max_epi64(_mm512_sub_epi64(none, wide), none);
        to->half = _mm512_srli_epi64(_mm512_sllv_epi64(one, to->right), 1);
        to->shifted = _mm512_cmpgt_epi64_mask(to->right, none);
    }
    return v;
}

ES_INLINE __m128i es_scale_half(__m256i sums, const es_vector_scale *v, int h, int single)
{
    const es_half_scale *s = &v->half[h];
    __m512i value = _mm512_cvtepi32_epi64(sums);
    if (single) {
        value = _mm512_mul_epi32(value, s->multiplier);
    } else {
        value = _mm512_mul_epi32(_mm512_sllv_epi64(value, s->left), s->multiplier);
        value = _mm512_srai_epi64(_mm512_add_epi64(value, _mm512_set1_epi64(1 << 30)), 31);
        value = _mm512_mask_add_epi64(value, s->shifted, value, _mm512_srai_epi64(value, 63));
    }
    value = _mm512_srav_epi64(_mm512_add_epi64(value, s->half), s->right);
    value = _mm512_add_epi64(value, v->zero);
    value = _mm512_min_epi64(_mm512_max_epi64(value, v->low), v->high);
    return _mm512_cvtepi64_epi8(value);
}

ES_INLINE void es_store_scaled(int8_t *y, __m512i sums, const es_vector_scale *v, int single)
{
    sums = _mm512_add_epi32(sums, v->bias);
    const __m128i low = es_scale_half(_mm512_castsi512_si256(sums), v, 0, single);
    const __m128i high = es_scale_half(_mm512_extracti64x4_epi64(sums, 1), v, 1, single);
    _mm_mask_storeu_epi8(y, v->mask, _mm_unpacklo_epi64(low, high));
}

/* 16 channels of 4 weights: bytes, or nibbles (value + 8, the first one lowest). */
ES_INLINE __m512i es_load_weights(const uint8_t *w, __mmask16 mask, int bits)
{
    if (bits == 8) return _mm512_maskz_loadu_epi32(mask, w);
    __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w));
    v = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi32(v, 8)), _mm512_set1_epi32(0x00FF00FF));
    v = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi32(v, 4)), _mm512_set1_epi32(0x0F0F0F0F));
    return _mm512_sub_epi8(v, _mm512_set1_epi8(8));
}

ES_INLINE __mmask16 es_lanes(int32_t count)
{
    return count >= 16 ? (__mmask16)0xFFFF : count <= 0 ? (__mmask16)0 : (__mmask16)((1u << count) - 1u);
}
#endif

/* Weight j of four at w. */
ES_INLINE int32_t es_weight(const uint8_t *w, int32_t j, int bits)
{
    return bits == 8 ? (int8_t)w[j] : (w[j >> 1] >> (j & 1) * 4 & 15) - 8;
}

#endif
