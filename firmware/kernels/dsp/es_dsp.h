/* The DSP extension of Armv7E-M and Armv8-M: the few instructions the kernels use, and C that computes the same on any
 * other machine, without undefined behaviour. */
#ifndef ES_DSP_H
#define ES_DSP_H

#include "es_base.h"

/* Whether the instructions exist. Define ES_DSP as 0 to run the C that stands in for them. */
#if !defined(ES_DSP)
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && !defined(__ARM_BIG_ENDIAN)
#define ES_DSP 1
#else
#define ES_DSP 0
#endif
#endif

/* A function written wholly in assembly; it reads its arguments where the procedure call standard puts them. Compilers
 * must not conclude from its empty body that it needs none. */
#if defined(__clang__)
#define ES_NAKED __attribute__((naked, noinline)) ES_UNUSED
#else
#define ES_NAKED __attribute__((naked, noipa)) ES_UNUSED
#endif

/* Four bytes at any address, the lowest in the low bits. */
ES_INLINE uint32_t es_load_word(const void *at)
{
#if ES_DSP
    uint32_t v;
    __builtin_memcpy(&v, at, 4);
    return v;
#else
    const uint8_t *b = (const uint8_t *)at;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
#endif
}

ES_INLINE void es_store_word(void *at, uint32_t v)
{
#if ES_DSP
    __builtin_memcpy(at, &v, 4);
#else
    uint8_t *b = (uint8_t *)at;
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
    b[2] = (uint8_t)(v >> 16);
    b[3] = (uint8_t)(v >> 24);
#endif
}

/* Two values of 16 bits in a word: the first in the low half. */
ES_INLINE uint32_t es_pair(int32_t low, int32_t high)
{
    return ((uint32_t)low & 0xFFFFu) | (uint32_t)high << 16;
}

ES_INLINE int32_t es_low_half(uint32_t v) { return (int16_t)(uint16_t)(v & 0xFFFFu); }
ES_INLINE int32_t es_high_half(uint32_t v) { return (int16_t)(uint16_t)(v >> 16); }

/* Two neighbouring halves at any address of a half. */
ES_INLINE uint32_t es_load_halves(const int16_t *at)
{
#if ES_DSP
    uint32_t v;
    __builtin_memcpy(&v, at, 4);
    return v;
#else
    return es_pair(at[0], at[1]);
#endif
}

/* Bytes 0 and 2, sign-extended to halves. */
ES_INLINE uint32_t es_sxtb16(uint32_t v)
{
#if ES_DSP
    uint32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(v));
    return r;
#else
    return es_pair((int8_t)(uint8_t)(v & 0xFFu), (int8_t)(uint8_t)(v >> 16 & 0xFFu));
#endif
}

/* Bytes 1 and 3. */
ES_INLINE uint32_t es_sxtb16_odd(uint32_t v)
{
#if ES_DSP
    uint32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(v));
    return r;
#else
    return es_sxtb16(v >> 8);
#endif
}

/* Halves of sums + bytes 0 and 2 of v, each modulo 2^16. */
ES_INLINE uint32_t es_sxtab16(uint32_t sums, uint32_t v)
{
#if ES_DSP
    uint32_t r;
    __asm__("sxtab16 %0, %1, %2" : "=r"(r) : "r"(sums), "r"(v));
    return r;
#else
    const uint32_t x = es_sxtb16(v);
    return ((sums + x) & 0xFFFFu) | ((sums & 0xFFFF0000u) + (x & 0xFFFF0000u));
#endif
}

/* Bytes 1 and 3. */
ES_INLINE uint32_t es_sxtab16_odd(uint32_t sums, uint32_t v)
{
#if ES_DSP
    uint32_t r;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(r) : "r"(sums), "r"(v));
    return r;
#else
    return es_sxtab16(sums, v >> 8);
#endif
}

/* (x.low, y.low). */
ES_INLINE uint32_t es_low_halves(uint32_t x, uint32_t y)
{
#if ES_DSP
    uint32_t r;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(r) : "r"(x), "r"(y));
    return r;
#else
    return (x & 0xFFFFu) | y << 16;
#endif
}

/* (x.high, y.high). */
ES_INLINE uint32_t es_high_halves(uint32_t x, uint32_t y)
{
#if ES_DSP
    uint32_t r;
    __asm__("pkhtb %0, %2, %1, asr #16" : "=r"(r) : "r"(x), "r"(y));
    return r;
#else
    return x >> 16 | (y & 0xFFFF0000u);
#endif
}

/* (x.low, y.high). */
ES_INLINE uint32_t es_mixed_halves(uint32_t x, uint32_t y)
{
#if ES_DSP
    uint32_t r;
    __asm__("pkhbt %0, %1, %2" : "=r"(r) : "r"(x), "r"(y));
    return r;
#else
    return (x & 0xFFFFu) | (y & 0xFFFF0000u);
#endif
}

/* acc + x.low * y.low + x.high * y.high, modulo 2^32. */
ES_INLINE uint32_t es_smlad(uint32_t x, uint32_t y, uint32_t acc)
{
#if ES_DSP
    uint32_t r;
    __asm__("smlad %0, %1, %2, %3" : "=r"(r) : "r"(x), "r"(y), "r"(acc));
    return r;
#else
    return acc + (uint32_t)(es_low_half(x) * es_low_half(y)) + (uint32_t)(es_high_half(x) * es_high_half(y));
#endif
}

/* addend + the high word of x * y, rounded half up (smmlar; smmulr without addend) or
 * down (smmla), modulo 2^32. */
ES_INLINE int32_t es_smmlar(int32_t x, int32_t y, int32_t addend)
{
#if ES_DSP
    int32_t r;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(r) : "r"(x), "r"(y), "r"(addend));
    return r;
#else
    return (int32_t)((uint32_t)(((int64_t)x * y + (INT64_C(1) << 31)) >> 32) + (uint32_t)addend);
#endif
}

ES_INLINE int32_t es_smmulr(int32_t x, int32_t y)
{
#if ES_DSP
    int32_t r;
    __asm__("smmulr %0, %1, %2" : "=r"(r) : "r"(x), "r"(y));
    return r;
#else
    return es_smmlar(x, y, 0);
#endif
}

ES_INLINE int32_t es_smmla(int32_t x, int32_t y, int32_t addend)
{
#if ES_DSP
    int32_t r;
    __asm__("smmla %0, %1, %2, %3" : "=r"(r) : "r"(x), "r"(y), "r"(addend));
    return r;
#else
    return (int32_t)((uint32_t)(((int64_t)x * y) >> 32) + (uint32_t)addend);
#endif
}

/* v / 2, rounded down, saturated to int8. */
ES_INLINE int32_t es_half_s8(int32_t v)
{
#if ES_DSP
    int32_t r;
    __asm__("ssat %0, #8, %1, asr #1" : "=r"(r) : "r"(v));
    return r;
#else
    return es_clamp_s32(v >> 1, -128, 127);
#endif
}

/* Clamp four int8 values of a word to [low, high], which hold the bound in each byte. */
ES_INLINE uint32_t es_clamp_word_s8(uint32_t v, uint32_t low, uint32_t high)
{
#if ES_DSP
    uint32_t t;
    __asm__("ssub8 %1, %0, %2\n\tsel %0, %0, %2\n\tssub8 %1, %3, %0\n\tsel %0, %0, %3"
            : "+r"(v), "=&r"(t)
            : "r"(low), "r"(high)
            : "cc");
    return v;
#else
    uint32_t r = 0;
    for (int32_t shift = 0; shift < 32; shift += 8) {
        const int32_t b = (int8_t)(uint8_t)(v >> shift & 0xFFu);
        const int32_t lo = (int8_t)(uint8_t)(low & 0xFFu), hi = (int8_t)(uint8_t)(high & 0xFFu);
        r |= ((uint32_t)es_clamp_s32(b, lo, hi) & 0xFFu) << shift;
    }
    return r;
#endif
}

/* Clamp a finished output, for layers whose clamp is narrower than int8. */
static ES_NOINLINE ES_UNUSED void es_clamp_s8(int8_t *out, int32_t count, int32_t low, int32_t high)
{
    const uint32_t lows = ((uint32_t)low & 0xFFu) * 0x01010101u, highs = ((uint32_t)high & 0xFFu) * 0x01010101u;
    int32_t i = 0;
    ES_UNROLL_NOT
    for (; i + 4 <= count; i += 4)
        es_store_word(out + i, es_clamp_word_s8(es_load_word(out + i), lows, highs));
    ES_UNROLL_NOT
    for (; i < count; i++)
        out[i] = (int8_t)es_clamp_s32(out[i], low, high);
}

#endif
