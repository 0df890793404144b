/* Sums of two tensors, pools and means of int8: layers whose tensor expressions would be many times this code. */
#ifndef ES_TVM_SIMPLE_H
#define ES_TVM_SIMPLE_H

#include "es_tvm_scale.h"

typedef struct { int32_t zero, multiplier, shift; } es_operand;
typedef struct {
    int32_t count, left_shift, subtract;
    es_operand a, b, sum; /* the sum's zero-point is the output's */
    int32_t low, high;
} es_sum;

#if ES_OFFSET
/* Eight values at once; each lies within int32, as does what it becomes. */
ES_INLINE __m512i es_rescaled_eight(__m512i value, es_operand o)
{
    const int32_t left = o.shift > 0 ? o.shift : 0, right = o.shift < 0 ? -o.shift : 0;
    value = _mm512_mul_epi32(_mm512_sll_epi64(value, _mm_cvtsi32_si128(left)), _mm512_set1_epi64(o.multiplier));
    value = _mm512_srai_epi64(_mm512_add_epi64(value, _mm512_set1_epi64(1 << 30)), 31);
    const __m512i below = _mm512_maskz_srai_epi64(right > 0 ? 0xFF : 0, value, 63);
    value = _mm512_add_epi64(_mm512_add_epi64(value, below), _mm512_set1_epi64(((int64_t)1 << right) >> 1));
    return _mm512_sra_epi64(value, _mm_cvtsi32_si128(right));
}

ES_INLINE __m512i es_operand_eight(const int8_t *x, __mmask16 mask, es_operand o, int32_t left_shift)
{
    const __m512i value = _mm512_sub_epi64(_mm512_cvtepi8_epi64(_mm_maskz_loadu_epi8(mask, x)), _mm512_set1_epi64(o.zero));
    return es_rescaled_eight(_mm512_sll_epi64(value, _mm_cvtsi32_si128(left_shift)), o);
}

ES_INLINE void es_sums(const int8_t *a, const int8_t *b, int8_t *y, es_sum p)
{
    const __m512i minus = _mm512_set1_epi64(-(int64_t)p.subtract);
    ES_ONE_COPY
    for (int32_t i = 0; i < p.count; i += 8) {
        const __mmask16 mask = es_lanes(p.count - i) & 0xFF;
        const __m512i first = es_operand_eight(a + i, mask, p.a, p.left_shift);
        const __m512i second = es_operand_eight(b + i, mask, p.b, p.left_shift);
        __m512i sum = _mm512_add_epi64(first, _mm512_sub_epi64(_mm512_xor_si512(second, minus), minus));
        sum = _mm512_add_epi64(es_rescaled_eight(sum, p.sum), _mm512_set1_epi64(p.sum.zero));
        sum = _mm512_min_epi64(_mm512_max_epi64(sum, _mm512_set1_epi64(p.low)), _mm512_set1_epi64(p.high));
        _mm_mask_storeu_epi8(y + i, mask, _mm512_cvtepi64_epi8(sum));
    }
}
#else
ES_INLINE int64_t es_rescaled(int64_t value, es_operand o)
{
    const int32_t left = o.shift > 0 ? o.shift : 0, right = o.shift < 0 ? -o.shift : 0;
    value = ((int64_t)((uint64_t)value << left) * o.multiplier + (1 << 30)) >> 31;
    return (value + (((int64_t)1 << right) >> 1) - (value < 0 && right > 0)) >> right;
}

ES_INLINE void es_sums(const int8_t *a, const int8_t *b, int8_t *restrict y, es_sum p)
{
    const int64_t minus = -(int64_t)p.subtract; /* no branch in the loop: it would double its code */
    ES_ONE_COPY
    for (int32_t i = 0; i < p.count; i++) {
        const int64_t first = es_rescaled((int64_t)((uint64_t)(int64_t)(a[i] - p.a.zero) << p.left_shift), p.a);
        const int64_t second = es_rescaled((int64_t)((uint64_t)(int64_t)(b[i] - p.b.zero) << p.left_shift), p.b);
        int64_t sum = es_rescaled(first + ((second ^ minus) - minus), p.sum) + p.sum.zero;
        sum = sum < p.low ? p.low : sum;
        y[i] = (int8_t)(sum > p.high ? p.high : sum);
    }
}
#endif

/* Arguments (a, b, es_sum, y); both operands have the output's shape. */
ES_INLINE int es_add(const TVMFFIAny *arguments)
{
    es_sums(es_data(arguments, 0), es_data(arguments, 1), es_data(arguments, 3), *(const es_sum *)es_data(arguments, 2));
    return 0;
}

enum { ES_POOL_LANES = 64 };

/* Windows of [in_h, in_w, in_c], no dilation. Arguments (x, es_layer, y). `groups`: 0 largest; mean over 1 what lies
 * inside, 2 the whole window, with padding of the real value 0. */
ES_INLINE int es_pool(const TVMFFIAny *arguments)
{
    const int8_t *x = es_data(arguments, 0);
    const es_layer *l = es_data(arguments, 1);
    int8_t *y = es_data(arguments, 2);
    for (int32_t i = 0; i < l->out_h * l->out_w; i++, y += l->out_c) {
        const int32_t top = i / l->out_w * l->stride_h - l->top, left = i % l->out_w * l->stride_w - l->left;
        const int32_t above = top > 0 ? top : 0, before = left > 0 ? left : 0;
        const int32_t below = es_min(top + l->kernel_h, l->in_h), behind = es_min(left + l->kernel_w, l->in_w);
        const int32_t window = l->kernel_h * l->kernel_w;
        const int32_t inside = below > above && behind > before ? (below - above) * (behind - before) : 0;
        const int32_t divisor = l->groups == 2 ? window : inside > 0 ? inside : 1;
        const int32_t start = l->groups == 0 ? -128 : l->groups == 2 ? (window - inside) * l->input_zero : 0;
        for (int32_t c = 0; c < l->out_c; c += ES_POOL_LANES) {
            const int32_t lanes = es_min(l->out_c - c, ES_POOL_LANES);
            int32_t sums[ES_POOL_LANES];
            for (int32_t n = 0; n < lanes; n++) sums[n] = start;
            for (int32_t p = above; p < below; p++) {
                for (int32_t q = before; q < behind; q++) {
                    const int8_t *from = x + (p * l->in_w + q) * l->in_c + c;
                    if (l->groups == 0)
                        for (int32_t n = 0; n < lanes; n++) sums[n] = from[n] > sums[n] ? from[n] : sums[n];
                    else
                        for (int32_t n = 0; n < lanes; n++) sums[n] += from[n];
                }
            }
            for (int32_t n = 0; n < lanes; n++) {
                int32_t value = sums[n];
                if (l->groups != 0) value = (value < 0 ? value - divisor / 2 : value + divisor / 2) / divisor;
                value = value < l->low.integer ? l->low.integer : value;
                y[c + n] = (int8_t)es_min(value, l->high.integer);
            }
        }
    }
    return 0;
}

/* Arguments (x, parameters, y): the sum of every channel, less the zero-point's share in the bias, scaled. */
ES_INLINE int es_mean(const TVMFFIAny *arguments)
{
    const int8_t *x = es_data(arguments, 0);
    const es_layer *l = es_data(arguments, 1);
    const es_scales s = es_scales_of(l);
    int8_t *y = es_data(arguments, 2);
    ES_ONE_COPY
    for (int32_t c = 0; c < l->out_c; c++) {
        int32_t sum = s.bias[c];
        ES_ONE_COPY
        for (int32_t i = 0; i < l->in_h * l->in_w; i++) sum += x[i * l->in_c + c];
        y[c] = es_scaled(l, sum, s.multiplier[c], s.shift[c]);
    }
    return 0;
}

#endif
