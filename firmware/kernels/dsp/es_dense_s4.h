/* Products of one row of activations with all output channels whose weights have 4 bits: fully connected layers,
 * convolutions of one pixel.
 *
 * Halves of words hold one tap of four channels, as es_gemm_s4.h has them; for four taps t .. t+3 of four channels the
 * words (t, t+2) and (t+1, t+3); two such groups side by side, then, for up to four last channels, one alone. */
#ifndef ES_DENSE_S4_H
#define ES_DENSE_S4_H

#include "es_gemm_s4.h"

/* One row; the assembly knows the order of the fields. */
typedef struct {
    const uint32_t *weights;
    const int32_t *table; /* as es_nibble_block has it; biases doubled for double rounding only */
    const int8_t *x;      /* readable to a multiple of four bytes */
    const int8_t *x_end;
    int32_t rounding;     /* 2 * zero_point + 1 of the output */
    int32_t quads;        /* taps / 4 */
    const int32_t *start; /* [4] */
    int8_t *out;
    int8_t *out_end;
    const int32_t *table_end; /* of the channels in groups of eight */
} es_nibble_row;

#if ES_DSP
ES_STATIC_ASSERT(nibble_row_layout, sizeof(es_nibble_row) == 40 && offsetof(es_nibble_row, table_end) == 36);

/* Two taps in `x` of four channels in `word`. */                                                                      \
#define ES_DENSE_S4_WORD(x, word, d, c, b, a)                                                                          \
    "smlad " d ", " x ", " word ", " d "\n"                                                                            \
    "bic " word ", " word ", #0xF000F000\n"                                                                            \
    "smlad " c ", " x ", " word ", " c "\n"                                                                            \
    "and " word ", " word ", #0x00FF00FF\n"                                                                            \
    "smlad " b ", " x ", " word ", " b "\n"                                                                            \
    "and " word ", " word ", #0x000F000F\n"                                                                            \
    "smlad " a ", " x ", " word ", " a "\n"

#define ES_DENSE_S4_GROUP(d, c, b, a)                                                                                  \
    "ldrd r12, lr, [r0], #8\n" ES_DENSE_S4_WORD("r10", "r12", d, c, b, a) ES_DENSE_S4_WORD("r11", "lr", d, c, b, a)

#define ES_DENSE_S4_UNPACK                                                                                             \
    "ldr.w r11, [r1], #4\n"                                                                                            \
    "sxtb16 r10, r11\n"                                                                                                \
    "sxtb16 r11, r11, ror #8\n"

#define ES_DENSE_S4_TAPS                                                                                               \
    ES_DENSE_S4_UNPACK ES_DENSE_S4_GROUP("r2", "r3", "r4", "r5") ES_DENSE_S4_GROUP("r6", "r7", "r8", "r9")

#define ES_NIBBLE_SINGLE(acc)                                                                                          \
    "smmla " acc ", " acc ", r10, r1\n"                                                                                \
    "asr " acc ", " acc ", lr\n"                                                                                       \
    "ssat " acc ", #8, " acc ", asr #1\n"

#define ES_NIBBLE_TWICE(acc) ES_NIBBLE_DOUBLE(acc, "r12")

#define ES_DENSE_S4_CHANNEL(k, acc, low, down, END)                                                                    \
    ES_NIBBLE_LOAD(k)                                                                                                  \
    "sub " acc ", " acc ", " low "\n"                                                                                  \
    "add " acc ", r12, " acc ", asr #" down "\n" END(acc)

#define ES_DENSE_S4_BYTE(acc)                                                                                          \
    "strb " acc ", [r1], #1\n"                                                                                         \
    "cmp r1, r12\n"                                                                                                    \
    "beq.w 9f\n"

/* Four finished channels: rescaled, stored; jumps to 9 after the last channel. FIRST adds the first one's bias. */    \
#define ES_DENSE_S4_STORE(d, c, b, a, END, FIRST, by3, by2, by1)                                                       \
    ES_DENSE_S4_CHANNEL("3", d, c, by3, END) ES_DENSE_S4_CHANNEL("2", c, b, by2, END)                                  \
    ES_DENSE_S4_CHANNEL("1", b, a, by1, END) ES_NIBBLE_LOAD("0") FIRST(a) END(a)                                       \
    "add r11, r11, #36\n"                                                                                              \
    "str r11, [sp, #0]\n"                                                                                              \
    "ldrd r1, r12, [sp, #24]\n"                                                                                        \
    ES_DENSE_S4_BYTE(a) ES_DENSE_S4_BYTE(b) ES_DENSE_S4_BYTE(c) ES_DENSE_S4_BYTE(d)                                    \
    "str r1, [sp, #24]\n"

#define ES_DENSE_S4_BIAS(a) "add " a ", r12, " a "\n"
#define ES_DENSE_S4_BIAS_TWICE(a) "add " a ", r12, " a ", lsl #1\n"

#define ES_DENSE_S4_STORE_SINGLE(d, c, b, a)                                                                           \
    ES_DENSE_S4_STORE(d, c, b, a, ES_NIBBLE_SINGLE, ES_DENSE_S4_BIAS, "12", "8", "4")

#define ES_DENSE_S4_STORE_DOUBLE(d, c, b, a)                                                                           \
    ES_DENSE_S4_STORE(d, c, b, a, ES_NIBBLE_TWICE, ES_DENSE_S4_BIAS_TWICE, "11", "7", "3")

/* r0 weights, r1 x, r2-r5 the sums of four channels, r6-r9 of four more. The row is copied to the stack: sp+0 table +4 x
 * +8 x_end +12 rounding +16 entry of the loop +20 start +24 out +28 out_end +32 table_end. C99 promises strings of 4095
 * characters, hence several. */
#define ES_DENSE_S4_FUNCTION(STORE)                                                                                    \
    __asm__ volatile(                                                                                                  \
        ".syntax unified\n"                                                                                            \
        "push {r4-r11, lr}\n"                                                                                          \
        "sub sp, #36\n"                                                                                                \
        "ldm r0!, {r1-r7}\n"                                                                                           \
        /* Four taps are 132 bytes of code, two of these a turn; the first turn takes what quads % 2 leaves. */        \
        "and r6, r6, #1\n"                                                                                             \
        "mov r9, #132\n"                                                                                               \
        "mul r6, r6, r9\n"                                                                                             \
        "adr.w r8, 2f\n"                                                                                               \
        "add r6, r6, r8\n"                                                                                             \
        "orr r6, r6, #1\n"                                                                                             \
        "ldm r0, {r8-r10}\n"                                                                                           \
        "stm sp, {r2-r10}\n"                                                                                           \
        "mov r0, r1\n"                                                                                                 \
        "1:\n"                                                                                                         \
        "ldr r11, [sp, #0]\n"                                                                                          \
        "ldr r12, [sp, #32]\n"                                                                                         \
        "ldr r10, [sp, #20]\n"                                                                                         \
        "ldr r1, [sp, #4]\n"                                                                                           \
        "ldm r10, {r2-r5}\n"                                                                                           \
        "cmp r11, r12\n"                                                                                               \
        "beq.w 4f\n"                                                                                                   \
        "ldm r10, {r6-r9}\n"                                                                                           \
        "ldr.w pc, [sp, #16]\n"                                                                                        \
        ".balign 4\n"                                                                                                  \
        "2:\n" ES_DENSE_S4_TAPS ES_DENSE_S4_TAPS                                                                       \
        "ldr r12, [sp, #8]\n"                                                                                          \
        "cmp r1, r12\n"                                                                                                \
        "bne.w 2b\n"                                                                                                   \
        "ldr r11, [sp, #0]\n" ::: "memory");                                                                           \
    __asm__ volatile(STORE("r2", "r3", "r4", "r5")::: "memory");                                                       \
    __asm__ volatile(STORE("r6", "r7", "r8", "r9")::: "memory");                                                       \
    __asm__ volatile(                                                                                                  \
        "b.w 1b\n"                                                                                                     \
        "4:\n" ES_DENSE_S4_UNPACK ES_DENSE_S4_GROUP("r2", "r3", "r4", "r5")                                            \
        "ldr r12, [sp, #8]\n"                                                                                          \
        "cmp r1, r12\n"                                                                                                \
        "bne.w 4b\n"                                                                                                   \
        "ldr r11, [sp, #0]\n" STORE("r2", "r3", "r4", "r5")                                                            \
        "9:\n"                                                                                                         \
        "add sp, #36\n"                                                                                                \
        "pop {r4-r11, pc}\n" ::: "memory")

static ES_NAKED void es_dense_single_s4(const es_nibble_row *row ES_UNUSED)
{
    ES_DENSE_S4_FUNCTION(ES_DENSE_S4_STORE_SINGLE);
}

static ES_NAKED void es_dense_double_s4(const es_nibble_row *row ES_UNUSED)
{
    ES_DENSE_S4_FUNCTION(ES_DENSE_S4_STORE_DOUBLE);
}
#else
/* The same in C. */
ES_INLINE void es_dense_any_s4(const es_nibble_row *row, int32_t single)
{
    const uint32_t *w = row->weights;
    int8_t *y = row->out;
    for (const int32_t *table = row->table; y != row->out_end;) {
        const int32_t groups = table < row->table_end ? 2 : 1;
        for (int32_t group = 0; group < groups; group++, table += ES_NIBBLE_TABLE) {
            const uint8_t *shift = (const uint8_t *)(const void *)(table + 8);
            uint32_t sums[4];
            for (int32_t k = 0; k < 4; k++)
                sums[k] = (uint32_t)row->start[k];
            for (int32_t i = 0; i < row->quads; i++) {
                const uint32_t x = es_load_word(row->x + 4 * i);
                const uint32_t *word = w + 2 * (i * groups + group);
                es_nibble_add(sums, es_sxtb16(x), word[0]);
                es_nibble_add(sums, es_sxtb16_odd(x), word[1]);
            }
            for (int32_t k = 0; k < 4 && y != row->out_end; k++) {
                const uint32_t sum = (uint32_t)es_nibble_sum(sums, k), bias = (uint32_t)table[k];
                *y++ = (int8_t)(single ? es_scale_single((int32_t)(bias + sum), table[4 + k], shift[k], row->rounding)
                                       : es_scale_double((int32_t)(bias + sum * 2u), table[4 + k], shift[k],
                                                         row->rounding));
            }
        }
        w += 2 * groups * row->quads;
    }
}

static ES_NOINLINE ES_UNUSED void es_dense_single_s4(const es_nibble_row *row) { es_dense_any_s4(row, 1); }
static ES_NOINLINE ES_UNUSED void es_dense_double_s4(const es_nibble_row *row) { es_dense_any_s4(row, 0); }
#endif

typedef struct {
    const uint32_t *weights; /* as es_nibble_row has them */
    const int32_t *table;
    int32_t rounding;
    int32_t single; /* rounding of the requantization */
} es_nibble_layer;

/* As es_fully_connected_dense_s8: row after row; a row's input is read for every group of eight of its outputs, unless it
 * was copied to scratch first. scratch: in_c rounded up to a multiple of four bytes where in_c is none, else unused. */
ES_INLINE void es_fully_connected_dense_s4(const int8_t *in, int8_t *out, int8_t *scratch, int32_t rows, int32_t in_c,
                                           int32_t out_c, const es_nibble_layer *k)
{
    const uint32_t ones = 0x00010001u;
    int32_t start[4];
    es_nibble_row row;
    row.weights = k->weights;
    row.table = k->table;
    row.table_end = k->table + (out_c + 3) / 8 * 2 * ES_NIBBLE_TABLE;
    row.rounding = k->rounding;
    row.quads = (in_c + 3) / 4;
    row.start = start;
    ES_UNROLL_NOT
    for (int32_t r = 0; r < rows; r++) {
        uint32_t sum = 0u;
        row.x = in + r * in_c;
        if (in_c % 4 != 0) {
            es_copy_up(scratch, row.x, in_c);
            row.x = scratch;
        }
        row.x_end = row.x + 4 * row.quads;
        row.out = out + r * out_c;
        row.out_end = row.out + out_c;
        ES_UNROLL_NOT
        for (const int8_t *x = row.x; x != row.x_end; x += 4) {
            const uint32_t word = es_load_word(x);
            sum = es_smlad(es_sxtb16(word), ones, es_smlad(es_sxtb16_odd(word), ones, sum));
        }
        es_nibble_start((int32_t)sum * -8, start);
        if (k->single)
            es_dense_single_s4(&row);
        else
            es_dense_double_s4(&row);
    }
}

#endif
