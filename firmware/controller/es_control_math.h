/* Integer arithmetic of the controller: octaves are Q16, scales Q12. The same as edgescale/control/fixed.py. */
#ifndef ES_CONTROL_MATH_H
#define ES_CONTROL_MATH_H

#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define ES_APART __attribute__((noinline)) /* one copy: code size counts more than a call */
#else
#define ES_APART
#endif

#define OCTAVE 65536
#define U32_MAX 0xffffffffu
#define I32_MAX 0x7fffffff

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t clamp(int32_t x, int32_t least, int32_t most)
{
    return x < least ? least : min_i32(x, most);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* x / 2^bits, rounded down also below zero. */
static int32_t shifted(int32_t x, uint32_t bits)
{
    return x >= 0 ? (int32_t)((uint32_t)x >> bits) : (int32_t)~(~(uint32_t)x >> bits);
}

static uint32_t sum(uint32_t a, uint32_t b)
{
    return a > U32_MAX - b ? U32_MAX : a + b;
}

static uint32_t scaled(uint32_t value, uint32_t scale)
{
    const uint64_t product = ((uint64_t)value * scale) >> 12;
    return product > U32_MAX ? U32_MAX : (uint32_t)product;
}

static uint32_t worked(uint32_t value, uint32_t work)
{
    const uint64_t product = ((uint64_t)value * work) >> 8;
    return product > U32_MAX ? U32_MAX : (uint32_t)product;
}

static ES_APART int32_t log2_q16(uint32_t value)
{
    int32_t n = 31;
    uint32_t f, bend, slope;
    if (value == 0)
        value = 1;
    while (!(value >> 31)) {
        value <<= 1;
        n--;
    }
    f = (value - 0x80000000u) >> 15;
    bend = (f * (65536 - f)) >> 16;
    slope = 28752 - (((15667 - ((5383 * f) >> 16)) * f) >> 16);
    return n * OCTAVE + (int32_t)(f + ((bend * slope) >> 16));
}

static ES_APART uint32_t exp2_q12(int32_t x)
{
    const uint32_t up = (uint32_t)(clamp(x, -8 * OCTAVE, 15 * OCTAVE) + 8 * OCTAVE);
    const uint32_t n = up >> 16, f = up & 0xffff;
    const uint32_t bend = (f * (65536 - f)) >> 16;
    const uint32_t slope = 20119 + (((4289 + ((898 * f) >> 16)) * f) >> 16);
    const uint32_t m = 65536 + f - ((bend * slope) >> 16);
    return n <= 12 ? m >> (12 - n) : m << (n - 12);
}

static ES_APART uint32_t square_root(uint32_t value)
{
    uint32_t root = 0, bit = 1u << 30;
    while (bit > value)
        bit >>= 2;
    for (; bit; bit >>= 2) {
        if (value >= root + bit) {
            value -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return root;
}

static int32_t square_q16(int32_t x)
{
    const uint32_t size = (uint32_t)(x < 0 ? -x : x);
    return (int32_t)(((uint64_t)size * size) >> 16);
}

#endif
