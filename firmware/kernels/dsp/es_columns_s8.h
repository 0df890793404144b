/* Columns for es_gemm_s8.h: the taps of up to four output pixels, sign-extended to 16 bits.
 *
 * Taps are numbered (row, column, channel); those of a quad 4i .. 4i+3 go to the words (4i, 4i+2) and (4i+1, 4i+3), as
 * SXTB16 unpacks them. Pixels outside the image count as the input's zero-point. */
#ifndef ES_COLUMNS_S8_H
#define ES_COLUMNS_S8_H

#include "es_dsp.h"
#include "es_window.h"

/* `words` times four taps of one pixel; the next pixel's words lie in between. */
ES_INLINE uint32_t *es_expand_s8(const int8_t *from, int32_t words, uint32_t *to)
{
    ES_UNROLL_NOT
    for (; words >= 4; words -= 4) {
        const uint32_t a = es_load_word(from), b = es_load_word(from + 4);
        const uint32_t c = es_load_word(from + 8), d = es_load_word(from + 12);
        to[0] = es_sxtb16(a);
        to[4] = es_sxtb16_odd(a);
        to[8] = es_sxtb16(b);
        to[12] = es_sxtb16_odd(b);
        to[16] = es_sxtb16(c);
        to[20] = es_sxtb16_odd(c);
        to[24] = es_sxtb16(d);
        to[28] = es_sxtb16_odd(d);
        from += 16;
        to += 32;
    }
    ES_UNROLL_NOT
    for (; words > 0; words--) {
        const uint32_t a = es_load_word(from);
        to[0] = es_sxtb16(a);
        to[4] = es_sxtb16_odd(a);
        from += 4;
        to += 8;
    }
    return to;
}

/* Words of a pixel that quads of its taps become: as above, or all six pairs of the four, as es_gemm_pairs_s8 has them. */
#define ES_COLUMN_QUADS 2
#define ES_COLUMN_PAIRS 6

ES_INLINE uint32_t *es_expand_pairs_s8(const int8_t *from, int32_t words, uint32_t *to)
{
    ES_UNROLL_NOT
    for (; words > 0; words--) {
        const uint32_t a = es_load_word(from), even = es_sxtb16(a), odd = es_sxtb16_odd(a);
        to[0] = even;
        to[4] = odd;
        to[8] = es_low_halves(even, odd);
        to[12] = es_high_halves(even, odd);
        to[16] = es_mixed_halves(even, odd);
        to[20] = es_mixed_halves(odd, even);
        from += 4;
        to += 24;
    }
    return to;
}

ES_INLINE uint32_t *es_expand_any_s8(const int8_t *from, int32_t words, uint32_t *to, int32_t form)
{
    return form == ES_COLUMN_PAIRS ? es_expand_pairs_s8(from, words, to) : es_expand_s8(from, words, to);
}

/* The same with `count` taps of one value; a multiple of four. */
ES_INLINE uint32_t *es_expand_fill_s8(int32_t value, int32_t count, uint32_t *to, int32_t form)
{
    const uint32_t pair = es_pair(value, value);
    ES_UNROLL_NOT
    for (; count > 0; count -= 4) {
        ES_UNROLL_FULL
        for (int32_t i = 0; i < form; i++)
            to[4 * i] = pair;
        to += 4 * form;
    }
    return to;
}

/* One pixel of a convolution whose in_c is a multiple of four. form: ES_COLUMN_QUADS or ES_COLUMN_PAIRS. */
ES_INLINE void es_column_s8(const int8_t *in, int32_t oy, int32_t ox, const es_window *g, int32_t zero_point,
                            uint32_t *to, int32_t form)
{
    const int32_t iy = oy * g->stride_h - g->pad_top, ix = ox * g->stride_w - g->pad_left;
    const int32_t depth = g->in_c;
    const int32_t whole = g->dilation_w == 1 && ix >= 0 && ix + g->k_w <= g->in_w;
    ES_UNROLL_NOT
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        const int32_t y = iy + ky * g->dilation_h;
        if (y < 0 || y >= g->in_h) {
            to = es_expand_fill_s8(zero_point, g->k_w * depth, to, form);
        } else {
            const int32_t runs = whole ? 1 : g->k_w, taps = whole ? g->k_w * depth : depth;
            ES_UNROLL_NOT
            for (int32_t run = 0; run < runs; run++) {
                const int32_t x = ix + run * g->dilation_w;
                if (x < 0 || x >= g->in_w)
                    to = es_expand_fill_s8(zero_point, depth, to, form);
                else
                    to = es_expand_any_s8(in + (y * g->in_w + x) * depth, taps >> 2, to, form);
            }
        }
    }
}

/* `count` bytes upwards, words first. */
ES_INLINE int8_t *es_append_s8(const int8_t *from, int32_t count, int8_t *to)
{
    ES_UNROLL_NOT
    for (; count >= 4; count -= 4) {
        es_store_word(to, es_load_word(from));
        from += 4;
        to += 4;
        __asm__ volatile("" ::: "memory"); /* not a call of memcpy */
    }
    ES_UNROLL_NOT
    for (; count > 0; count--) {
        *to++ = *from++;
        __asm__ volatile("" ::: "memory");
    }
    return to;
}

ES_INLINE int8_t *es_append_fill_s8(int32_t value, int32_t count, int8_t *to)
{
    ES_UNROLL_NOT
    for (; count > 0; count--) {
        *to++ = (int8_t)value;
        __asm__ volatile("" ::: "memory"); /* not a call of memset */
    }
    return to;
}

/* The bytes of the taps of a pixel whose window lies inside; g: constants, and rows short. */
ES_INLINE void es_gather_whole_s8(const int8_t *from, const es_window *g, int8_t *to)
{
    const int32_t run = g->k_w * g->in_c;
    ES_UNROLL_FULL
    for (int32_t ky = 0; ky < g->k_h; ky++)
        __builtin_memcpy(to + ky * run, from + ky * g->dilation_h * g->in_w * g->in_c, (size_t)run);
}

/* The bytes of one pixel's taps, for any in_c. */
ES_INLINE void es_gather_s8(const int8_t *in, int32_t oy, int32_t ox, const es_window *g, int32_t zero_point, int8_t *to)
{
    const int32_t iy = oy * g->stride_h - g->pad_top, ix = ox * g->stride_w - g->pad_left;
    const int32_t depth = g->in_c;
    const int32_t joined = g->dilation_w == 1;
    /* Joined taps [from, until) of a row are real; single ones are looked at one by one. */
    const es_taps real = es_real_taps(ix, joined ? g->k_w : 0, 1, g->in_w);
    ES_UNROLL_NOT
    for (int32_t ky = 0; ky < g->k_h; ky++) {
        const int32_t y = iy + ky * g->dilation_h;
        if (y < 0 || y >= g->in_h) {
            to = es_append_fill_s8(zero_point, g->k_w * depth, to);
        } else if (joined) {
            to = es_append_fill_s8(zero_point, real.from * depth, to);
            if (real.to > real.from)
                to = es_append_s8(in + (y * g->in_w + ix + real.from) * depth, (real.to - real.from) * depth, to);
            to = es_append_fill_s8(zero_point, (g->k_w - real.to) * depth, to);
        } else {
            ES_UNROLL_NOT
            for (int32_t kx = 0; kx < g->k_w; kx++) {
                const int32_t x = ix + kx * g->dilation_w;
                if (x < 0 || x >= g->in_w)
                    to = es_append_fill_s8(zero_point, depth, to);
                else
                    to = es_append_s8(in + (y * g->in_w + x) * depth, depth, to);
            }
        }
    }
}

#endif
