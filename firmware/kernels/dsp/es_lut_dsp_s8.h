/* Element-wise functions of int8 by table, four elements at a time: all are read before they are written, upwards. */
#ifndef ES_LUT_DSP_S8_H
#define ES_LUT_DSP_S8_H

#include "es_dsp.h"

/* table: 256 entries in the order of the input's bit pattern, 0 .. 127 then -128 .. -1. One copy serves all layers. */
static ES_NOINLINE ES_UNUSED void es_lut_dsp_s8(const int8_t *in, int8_t *out, int32_t count, const int8_t *table)
{
    ES_UNROLL_NOT
    for (; count >= 4; count -= 4) {
        const uint32_t v = es_load_word(in);
        const int8_t a = table[v & 0xFFu], b = table[v >> 8 & 0xFFu], c = table[v >> 16 & 0xFFu], d = table[v >> 24];
        out[0] = a;
        out[1] = b;
        out[2] = c;
        out[3] = d;
        in += 4;
        out += 4;
    }
    ES_UNROLL_NOT
    for (; count > 0; count--)
        *out++ = table[(uint8_t)*in++];
}

#endif
