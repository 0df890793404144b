/* The memory functions a compiler may call by itself, for images without a libc.
 *
 * Words where both sides are aligned, else bytes; no unaligned access, so that ARMv6-M can run them.
 * Build this file with -fno-builtin, or the loops become calls to themselves. */
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(__clang__)
/* GCC turns loops into calls of these very functions whatever -fno-builtin says. */
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#endif

void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
int memcmp(const void *left, const void *right, size_t count);

/* Words may alias any object here. */
typedef uint32_t __attribute__((may_alias)) word_t;

static int both_aligned(const void *a, const void *b)
{
    return (((uintptr_t)a | (uintptr_t)b) & 3u) == 0u;
}

void *memcpy(void *restrict to, const void *restrict from, size_t count)
{
    uint8_t *out = (uint8_t *)to;
    const uint8_t *in = (const uint8_t *)from;
    if (both_aligned(to, from)) {
        word_t *out_words = (word_t *)to;
        const word_t *in_words = (const word_t *)from;
        for (; count >= 16u; count -= 16u) {
            uint32_t a = in_words[0], b = in_words[1], c = in_words[2], d = in_words[3];
            out_words[0] = a;
            out_words[1] = b;
            out_words[2] = c;
            out_words[3] = d;
            in_words += 4;
            out_words += 4;
        }
        for (; count >= 4u; count -= 4u) {
            *out_words++ = *in_words++;
        }
        out = (uint8_t *)out_words;
        in = (const uint8_t *)in_words;
    }
    while (count-- != 0u) {
        *out++ = *in++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t count)
{
    uint8_t *out = (uint8_t *)to;
    const uint8_t *in = (const uint8_t *)from;
    if ((uintptr_t)out - (uintptr_t)in >= count) {
        return memcpy(to, from, count); /* forward copying never overwrites what it still has to read */
    }
    while (count-- != 0u) {
        out[count] = in[count];
    }
    return to;
}

void *memset(void *to, int value, size_t count)
{
    uint8_t *out = (uint8_t *)to;
    const uint8_t byte = (uint8_t)value;
    if (((uintptr_t)to & 3u) == 0u) {
        const uint32_t word = byte * 0x01010101u;
        word_t *words = (word_t *)to;
        for (; count >= 4u; count -= 4u) {
            *words++ = word;
        }
        out = (uint8_t *)words;
    }
    while (count-- != 0u) {
        *out++ = byte;
    }
    return to;
}

int memcmp(const void *left, const void *right, size_t count)
{
    const uint8_t *a = (const uint8_t *)left;
    const uint8_t *b = (const uint8_t *)right;
    for (; count != 0u; --count, ++a, ++b) {
        if (*a != *b) {
            return *a < *b ? -1 : 1;
        }
    }
    return 0;
}

#if defined(__ARM_EABI__)
/* The names of the Arm run-time ABI (RTABI 4.3.4); note memset's order of arguments there. */
void __aeabi_memcpy(void *to, const void *from, size_t count);
void __aeabi_memcpy4(void *to, const void *from, size_t count);
void __aeabi_memcpy8(void *to, const void *from, size_t count);
void __aeabi_memmove(void *to, const void *from, size_t count);
void __aeabi_memmove4(void *to, const void *from, size_t count);
void __aeabi_memmove8(void *to, const void *from, size_t count);
void __aeabi_memset(void *to, size_t count, int value);
void __aeabi_memset4(void *to, size_t count, int value);
void __aeabi_memset8(void *to, size_t count, int value);
void __aeabi_memclr(void *to, size_t count);
void __aeabi_memclr4(void *to, size_t count);
void __aeabi_memclr8(void *to, size_t count);

void __aeabi_memcpy(void *to, const void *from, size_t count) { (void)memcpy(to, from, count); }
void __aeabi_memcpy4(void *to, const void *from, size_t count) { (void)memcpy(to, from, count); }
void __aeabi_memcpy8(void *to, const void *from, size_t count) { (void)memcpy(to, from, count); }
void __aeabi_memmove(void *to, const void *from, size_t count) { (void)memmove(to, from, count); }
void __aeabi_memmove4(void *to, const void *from, size_t count) { (void)memmove(to, from, count); }
void __aeabi_memmove8(void *to, const void *from, size_t count) { (void)memmove(to, from, count); }
void __aeabi_memset(void *to, size_t count, int value) { (void)memset(to, value, count); }
void __aeabi_memset4(void *to, size_t count, int value) { (void)memset(to, value, count); }
void __aeabi_memset8(void *to, size_t count, int value) { (void)memset(to, value, count); }
void __aeabi_memclr(void *to, size_t count) { (void)memset(to, 0, count); }
void __aeabi_memclr4(void *to, size_t count) { (void)memset(to, 0, count); }
void __aeabi_memclr8(void *to, size_t count) { (void)memset(to, 0, count); }
#endif
