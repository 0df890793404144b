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

ES_INLINE int64_t es_rescaled(int64_t value, es_operand o)
{
    const int32_t left = o.shift > 0 ? o.shift : 0, right = o.shift < 0 ? -o.shift : 0;
    value = ((int64_t)((uint64_t)value << left) * o.multiplier + (1 << 30)) >> 31;
    return (value + (((int64_t)1 << right) >> 1) - (value < 0 && right > 0)) >> right;
}

/* Arguments (a, b, es_sum, y); both operands have the output's shape. */
ES_INLINE int es_add(const TVMFFIAny *arguments)
{
    const int8_t *a = es_data(arguments, 0), *b = es_data(arguments, 1);
    const es_sum p = *(const es_sum *)es_data(arguments, 2);
    int8_t *restrict y = es_data(arguments, 3);
    for (int32_t i = 0; i < p.count; i++) {
        const int64_t first = es_rescaled((int64_t)((uint64_t)(int64_t)(a[i] - p.a.zero) << p.left_shift), p.a);
        const int64_t second = es_rescaled((int64_t)((uint64_t)(int64_t)(b[i] - p.b.zero) << p.left_shift), p.b);
        int64_t sum = es_rescaled(p.subtract ? first - second : first + second, p.sum) + p.sum.zero;
        sum = sum < p.low ? p.low : sum;
        y[i] = (int8_t)(sum > p.high ? p.high : sum);
    }
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
    for (int32_t c = 0; c < l->out_c; c++) {
        int32_t sum = s.bias[c];
        for (int32_t i = 0; i < l->in_h * l->in_w; i++) sum += x[i * l->in_c + c];
        y[c] = es_scaled(l, sum, s.multiplier[c], s.shift[c]);
    }
    return 0;
}

#endif
