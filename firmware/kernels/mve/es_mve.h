/* Armv8.1-M vectors (Helium) for int8 kernels: whether they exist, and the requantization of four lanes.
 *
 * Double rounding: v = VQRDMULH(acc, multiplier), the reference's rounded high half; then v + (v >> 31), shifted right
 * and rounded half up by VRSHL. Taking one off a negative v before rounding half up is rounding half away from zero:
 * the reference's sign-dependent threshold. VRSHL rounds in full precision and |v| < 2^31, so no bound on |acc| is
 * needed; shifts are 1 .. 31 to the right. (Shifted by 0, the correction would be wrong: the code generator keeps such
 * layers away.)
 * Single rounding: VMULH, the floor of the high half, then VRSHL by at least 1: one round-half-up of the product. */
#ifndef ES_MVE_H
#define ES_MVE_H

#include "es_requant.h"

/* Define ES_MVE as 0 to run the C that stands in for the vectors. */
#if !defined(ES_MVE)
#if defined(__ARM_FEATURE_MVE) && !defined(__ARM_BIG_ENDIAN)
#define ES_MVE 1
#else
#define ES_MVE 0
#endif
#endif

#if ES_MVE
#include <arm_mve.h>
/* GCC 12 builds vectors in memory and addresses anew what post-increment would reach: innermost products of weights of
 * 8 bits, and four lanes of registers, are written out for it. */
#if defined(__clang__)
#define ES_MVE_BY_HAND 0
#else
#define ES_MVE_BY_HAND 1
#endif
#endif

/* What the outputs of a layer share. min and max are in output units, within [-128, 127]. */
typedef struct {
    int32_t zero_point, min, max;
    int32_t single; /* rounding */
} es_mve_output;

#if ES_MVE
ES_INLINE int32x4_t es_mve_quad(int32_t a, int32_t b, int32_t c, int32_t d)
{
#if ES_MVE_BY_HAND
    int32x4_t v;
    __asm__("vmov %e0, %1, %2\n\tvmov %f0, %3, %4" : "=&w"(v) : "r"(a), "r"(b), "r"(c), "r"(d));
#else
    const int32x4_t v = {a, b, c, d};
#endif
    return v;
}

/* Bytes of the lanes of `some`. GCC 12 takes such a store for one of all lanes: what an earlier store left in the others
 * would be dropped as never read, were it not said to be read here. */
ES_INLINE void es_mve_store_some_s8(int8_t *to, int8x16_t v, mve_pred16_t some)
{
#if ES_MVE_BY_HAND
    __asm__ volatile("" : "+m"(*(int8_t(*)[16])to));
#endif
    vstrbq_p_s8(to, v, some);
}

/* The lowest bytes of the lanes of `some`. */
ES_INLINE void es_mve_store_some_s32(int8_t *to, int32x4_t v, mve_pred16_t some)
{
#if ES_MVE_BY_HAND
    __asm__ volatile("" : "+m"(*(int8_t(*)[4])to));
#endif
    vstrbq_p_s32(to, v, some);
}

/* Outputs in the lowest byte of each lane, clamped; the other bytes hold anything. */
ES_INLINE int32x4_t es_mve_finish(int32x4_t v, const es_mve_output *o)
{
    if (o->zero_point != 0)
        v = vaddq_n_s32(v, o->zero_point);
    if (o->min == -128 && o->max == 127) {
        const int16x8_t halves = vqmovnbq_s32(vreinterpretq_s16_s32(v), v);
        return vreinterpretq_s32_s8(vqmovnbq_s16(vreinterpretq_s8_s16(halves), halves));
    }
    return vminq_s32(vmaxq_s32(v, vdupq_n_s32(o->min)), vdupq_n_s32(o->max));
}

/* `left` is minus the shift to the right. */
ES_INLINE int32x4_t es_mve_requant(int32x4_t acc, int32x4_t multiplier, int32x4_t left, const es_mve_output *o)
{
    int32x4_t v;
    if (o->single) {
        v = vmulhq_s32(acc, multiplier);
    } else {
        v = vqrdmulhq_s32(acc, multiplier);
        v = vaddq_s32(v, vshrq_n_s32(v, 31));
    }
    return es_mve_finish(vrshlq_s32(v, left), o);
}

/* The same with one multiplier and shift for all lanes, before zero-point and clamp; double rounding. */
ES_INLINE int32x4_t es_mve_rescale_n(int32x4_t acc, int32_t multiplier, int32_t left)
{
    const int32x4_t v = vqrdmulhq_n_s32(acc, multiplier);
    return vrshlq_n_s32(vaddq_s32(v, vshrq_n_s32(v, 31)), left);
}
#endif

/* One output, as the vectors compute it. */
ES_INLINE int8_t es_mve_requant_one(int32_t acc, int32_t multiplier, int32_t left, const es_mve_output *o)
{
    const int32_t v = o->single ? es_requant_single(acc, multiplier, left - 1)
                                : es_rounding_shift(es_sqrdmulh(acc, multiplier), -left);
    return (int8_t)es_clamp_s32(v + o->zero_point, o->min, o->max);
}

/* `count` bytes upwards. */
ES_INLINE void es_mve_copy(int8_t *to, const int8_t *from, int32_t count)
{
#if ES_MVE
    ES_UNROLL_NOT
    for (; count > 0; count -= 16) {
        const mve_pred16_t real = vctp8q((uint32_t)count);
        es_mve_store_some_s8(to, vldrbq_z_s8(from, real), real);
        to += 16;
        from += 16;
    }
#else
    es_copy_up(to, from, count);
#endif
}

ES_INLINE void es_mve_fill(int8_t *to, int32_t value, int32_t count)
{
#if ES_MVE
    const int8x16_t v = vdupq_n_s8((int8_t)value);
    ES_UNROLL_NOT
    for (; count > 0; count -= 16) {
        es_mve_store_some_s8(to, v, vctp8q((uint32_t)count));
        to += 16;
    }
#else
    ES_UNROLL_NOT
    for (int32_t i = 0; i < count; i++) {
        to[i] = (int8_t)value;
        __asm__ volatile("" ::: "memory"); /* not a call of memset */
    }
#endif
}

#endif
