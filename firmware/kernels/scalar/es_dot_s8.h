/* Dot products of int8 runs with weights of 8 or 4 bits, one or two pixels by one or two output channels at a time.
 *
 * Weights of 4 bits lie two in a byte, the lower half first, in two's complement.
 *
 * Accumulators are unsigned so that an overflow wraps, as the reference's 32-bit accumulators do. */
#ifndef ES_DOT_S8_H
#define ES_DOT_S8_H

#include "es_base.h"

/* acc[p * 2 + o] += x[p * x_step] * w[o * w_step]; pixels and channels are 1 or 2. */
ES_INLINE void es_mac_s8(const int8_t *x, int32_t x_step, const int8_t *w, int32_t w_step, int32_t pixels,
                         int32_t channels, uint32_t acc[4])
{
    const int32_t x0 = x[0], w0 = w[0];
    acc[0] += (uint32_t)(x0 * w0);
    if (channels == 2) {
        const int32_t w1 = w[w_step];
        acc[1] += (uint32_t)(x0 * w1);
        if (pixels == 2) {
            const int32_t x1 = x[x_step];
            acc[2] += (uint32_t)(x1 * w0);
            acc[3] += (uint32_t)(x1 * w1);
        }
    } else if (pixels == 2) {
        const int32_t x1 = x[x_step];
        acc[2] += (uint32_t)(x1 * w0);
    }
}

/* One pixel by two channels for cores with eight registers: three pointers to the ends of the runs, one index that rises
 * to zero, two accumulators; 4.5 instructions a product on Armv6-M. The empty statements keep the compiler from merging
 * the pointers and from interleaving the steps, either of which spills. */
ES_INLINE void es_dot_pair_s8(const int8_t *x, const int8_t *w, int32_t w_step, int32_t count, uint32_t acc[4])
{
    const int8_t *x_end = x + count, *w0_end = w + count, *w1_end = w + w_step + count;
    uint32_t a0 = acc[0], a1 = acc[1];
    __asm__("" : "+r"(x_end), "+r"(w0_end), "+r"(w1_end));
    ES_UNROLL_NOT
    for (int32_t i = -count; i != 0; i++) {
        const int32_t v = x_end[i];
        a0 += (uint32_t)(v * w0_end[i]);
        __asm__("" : "+r"(a0));
        a1 += (uint32_t)(v * w1_end[i]);
        __asm__("" : "+r"(a1));
    }
    acc[0] = a0;
    acc[1] = a1;
}

/* `count` products along a run; unrolled by four where there are registers. */
ES_INLINE void es_dot_s8(const int8_t *x, int32_t x_step, const int8_t *w, int32_t w_step, int32_t count,
                         int32_t pixels, int32_t channels, uint32_t acc[4])
{
    int32_t i = 0;
    if (ES_TILE_PIXELS == 1 && channels == 2) {
        es_dot_pair_s8(x, w, w_step, count, acc);
        return;
    }
    ES_UNROLL_NOT
    for (; i + 4 <= count; i += 4) {
        es_mac_s8(x + i, x_step, w + i, w_step, pixels, channels, acc);
        es_mac_s8(x + i + 1, x_step, w + i + 1, w_step, pixels, channels, acc);
        es_mac_s8(x + i + 2, x_step, w + i + 2, w_step, pixels, channels, acc);
        es_mac_s8(x + i + 3, x_step, w + i + 3, w_step, pixels, channels, acc);
    }
    for (; i < count; i++)
        es_mac_s8(x + i, x_step, w + i, w_step, pixels, channels, acc);
}

/* Weight `index` of 4 bits. */
ES_INLINE int32_t es_weight_s4(const int8_t *w, int32_t index)
{
    const int32_t pair = w[index >> 1];
    return (index & 1 ? pair : (int8_t)(uint8_t)((uint32_t)pair << 4)) >> 4;
}

/* One product a pixel and channel. */
ES_INLINE void es_mac_s4(const int8_t *x, int32_t x_step, const int8_t *w, int32_t at, int32_t w_step, int32_t pixels,
                         int32_t channels, uint32_t acc[4])
{
    const int32_t second = channels == 2 ? es_weight_s4(w, at + w_step) : 0;
    const int8_t one[2] = {(int8_t)es_weight_s4(w, at), (int8_t)second};
    es_mac_s8(x, x_step, one, 1, pixels, channels, acc);
}

/* The same as es_dot_s8 with weights `at` and on of 4 bits; w_step is even. */
ES_INLINE void es_dot_s4(const int8_t *x, int32_t x_step, const int8_t *w, int32_t at, int32_t w_step, int32_t count,
                         int32_t pixels, int32_t channels, uint32_t acc[4])
{
    const int8_t *const end = x + count;
    /* Runs may begin or end within a byte. */
    if ((at & 1) != 0 && count > 0) {
        es_mac_s4(x, x_step, w, at, w_step, pixels, channels, acc);
        x++;
        at++;
    }
    const int8_t *pair = w + (at >> 1);
    ES_UNROLL_NOT
    for (; end - x >= 2; x += 2, pair++) {
        es_mac_s4(x, x_step, pair, 0, w_step, pixels, channels, acc);
        es_mac_s4(x + 1, x_step, pair, 1, w_step, pixels, channels, acc);
    }
    if (x != end)
        es_mac_s4(x, x_step, pair, 0, w_step, pixels, channels, acc);
}

/* A place among weights of 8 or 4 bits: a byte, and for 4 bits the weight from there on. */
typedef struct {
    const int8_t *byte;
    int32_t index;
} es_weights_at;

/* The place `count` weights on; `bits` is a constant. */
ES_INLINE es_weights_at es_weights_on(es_weights_at at, int32_t count, int32_t bits)
{
    if (bits == 4)
        at.index += count;
    else
        at.byte += count;
    return at;
}

ES_INLINE int32_t es_weight_s8(es_weights_at at, int32_t bits)
{
    return bits == 4 ? es_weight_s4(at.byte, at.index) : at.byte[0];
}

/* Products along a run of weights of `bits` bits. */
ES_INLINE void es_dot_bits_s8(const int8_t *x, int32_t x_step, es_weights_at w, int32_t bits, int32_t w_step,
                              int32_t count, int32_t pixels, int32_t channels, uint32_t acc[4])
{
    if (bits == 4)
        es_dot_s4(x, x_step, w.byte, w.index, w_step, count, pixels, channels, acc);
    else
        es_dot_s8(x, x_step, w.byte, w_step, count, pixels, channels, acc);
}

#endif
