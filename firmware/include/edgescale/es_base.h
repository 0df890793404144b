/* Compiler and core facts every kernel relies on. C99 or C++; needs only freestanding headers. */
#ifndef ES_BASE_H
#define ES_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define ES_INLINE static inline __attribute__((always_inline))
#define ES_ALIGNED(n) __attribute__((aligned(n)))
#define ES_UNUSED __attribute__((unused))
#if defined(__clang__)
#define ES_NOINLINE __attribute__((noinline))
#else
#define ES_NOINLINE __attribute__((noinline, noclone))
#endif
#else
#error "edgescale kernels need GCC or Clang"
#endif

/* Loops whose unrolling is decided by hand. */
#if defined(__clang__)
#define ES_UNROLL_NOT _Pragma("clang loop unroll(disable)")
#define ES_UNROLL_FULL _Pragma("clang loop unroll(full)")
#else
#define ES_UNROLL_NOT _Pragma("GCC unroll 1")
#define ES_UNROLL_FULL _Pragma("GCC unroll 32")
#endif

/* Last statement of every layer's function: all it wrote is in memory. Without it GCC 12 drops calls of layers that
 * read bytes and write words: its induction-variable pass rewrites the store's address in terms of the load's, later
 * passes no longer see that the arena is written, and the function counts as one without effect. */
#define ES_LAYER_END() __asm__ volatile("" ::: "memory")

/* A compile-time check that C99 knows: `name` must be unique in its file. */
#define ES_STATIC_ASSERT(name, condition) typedef char es_assert_##name[(condition) ? 1 : -1] ES_UNUSED

/* Where the arena goes: on ELF a section of its own, which a linker script may send to a fast memory. Define
 * ES_ARENA_SECTION_NAME to another section, or ES_NO_ARENA_SECTION to leave the choice to the compiler. */
#ifndef ES_ARENA_SECTION_NAME
#define ES_ARENA_SECTION_NAME ".bss.es_arena"
#endif
#if defined(__ELF__) && !defined(ES_NO_ARENA_SECTION)
#define ES_ARENA_SECTION __attribute__((section(ES_ARENA_SECTION_NAME)))
#else
#define ES_ARENA_SECTION
#endif

/* Cores without a 32x32->64 multiply (Armv6-M, Armv8-M baseline) build the product from 16-bit halves, so that
 * nothing of the compiler's run-time library is needed. Define it to exercise that path elsewhere. */
#if !defined(ES_NO_SMULL) && (defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__))
#define ES_NO_SMULL 1
#endif

/* Cores without a divide instruction (Armv6-M; Armv8-M baseline has one). */
#if !defined(ES_NO_DIVIDE) && defined(__ARM_ARCH_6M__)
#define ES_NO_DIVIDE 1
#endif

/* Registers are scarce on Thumb-1: one output pixel at a time there, two elsewhere. */
#if !defined(ES_TILE_PIXELS)
#if defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)
#define ES_TILE_PIXELS 1
#else
#define ES_TILE_PIXELS 2
#endif
#endif

/* Right shifts of negative numbers are arithmetic and unsigned-to-signed casts wrap on every supported compiler
 * (both are implementation-defined in C99, and both compilers document them so). */
ES_STATIC_ASSERT(arithmetic_shift, (-3 >> 1) == -2);

ES_INLINE int32_t es_min_s32(int32_t a, int32_t b) { return a < b ? a : b; }
ES_INLINE int32_t es_max_s32(int32_t a, int32_t b) { return a > b ? a : b; }
ES_INLINE int32_t es_clamp_s32(int32_t v, int32_t lo, int32_t hi) { return es_min_s32(es_max_s32(v, lo), hi); }

/* NaN passes through. */
ES_INLINE float es_clamp_f32(float v, float lo, float hi)
{
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}

/* Copy upwards, byte after byte: right for dst <= src even where the two overlap. The empty statement keeps the
 * compiler from turning the loop into a call of memmove, which bare-metal images may lack. */
ES_INLINE void es_copy_up(void *dst, const void *src, int32_t bytes)
{
    uint8_t *d = (uint8_t *)dst;
    const uint8_t *s = (const uint8_t *)src;
    ES_UNROLL_NOT
    for (int32_t i = 0; i < bytes; i++) {
        d[i] = s[i];
        __asm__ volatile("");
    }
}

#endif
