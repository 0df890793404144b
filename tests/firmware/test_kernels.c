/* Arithmetic of the kernels against definitions written a second time: 64-bit integers, division, libm in double. */
#include "es_elementwise_f32.h"
#include "es_move.h"
#include "es_pool_s8.h"
#include "es_requant.h"
#include "es_softmax_s8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static void expect(int holds, const char *what, long long a, long long b, long long c)
{
    if (!holds && failures++ < 20)
        printf("%s: %lld %lld %lld\n", what, a, b, c);
}

static uint32_t state = 1;

static int32_t random_s32(void)
{
    state = state * UINT32_C(1664525) + UINT32_C(1013904223);
    const uint32_t high = state;
    state = state * UINT32_C(1664525) + UINT32_C(1013904223);
    const uint32_t bits = (high & 0xFFFF0000u) | (state >> 16);
    return (int32_t)bits >> ((state >> 8) % 31u);
}

static int32_t random_multiplier(void) { return (int32_t)(((uint32_t)random_s32() & 0x3FFFFFFFu) | 0x40000000u); }

/* gemmlowp's definition: nudge by sign, divide towards zero. */
static int32_t doubling_high_mul(int32_t a, int32_t b)
{
    const int64_t product = (int64_t)a * b;
    const int64_t nudge = product >= 0 ? (INT64_C(1) << 30) : 1 - (INT64_C(1) << 30);
    return (int32_t)((product + nudge) / (INT64_C(1) << 31));
}

/* Nearest, halves away from zero. */
static int32_t divide_by_power(int32_t x, int32_t exponent)
{
    const int64_t power = INT64_C(1) << exponent;
    const int64_t magnitude = x < 0 ? -(int64_t)x : (int64_t)x;
    const int64_t rounded = (magnitude + power / 2) / power;
    return (int32_t)(x < 0 ? -rounded : rounded);
}

static void test_products(void)
{
    static const int32_t extremes[] = {0, 1, -1, 65535, 65536, -65536, INT32_MAX, INT32_MIN, 1 << 30, -(1 << 30)};
    const int count = (int)(sizeof extremes / sizeof extremes[0]);
    for (int i = 0; i < 200000; i++) {
        const int32_t a = i < count * count ? extremes[i / count] : random_s32();
        const int32_t b = i < count * count ? extremes[i % count] : random_s32();
        int32_t high;
        uint32_t low;
        es_smull(a, b, &high, &low);
        const int64_t product = (int64_t)a * b;
        expect(high == (int32_t)(product >> 32) && low == (uint32_t)product, "es_smull", a, b, high);
        if (a == INT32_MIN && b == INT32_MIN)
            continue;
        expect(es_sqrdmulh(a, b) == doubling_high_mul(a, b), "es_sqrdmulh", a, b, es_sqrdmulh(a, b));
    }
}

static void test_requantization(void)
{
    for (int i = 0; i < 300000; i++) {
        const int32_t acc = random_s32(), m = i % 50 ? random_multiplier() : 0;
        const int32_t right = (int32_t)((uint32_t)random_s32() % 32u);
        const int32_t wanted = divide_by_power(doubling_high_mul(acc, m), right);
        expect(es_rounding_shift(acc, right) == divide_by_power(acc, right), "es_rounding_shift", acc, right, 0);
        expect(es_requant_double(acc, m, -right) == wanted, "es_requant_double", acc, m, right);
        if (acc > -(1 << 30) && acc < 1 << 30) {
            if (right > 0)
                expect(es_requant_bounded(acc, m, -right) == wanted, "es_requant_bounded", acc, m, right);
            else
                expect(es_requant_high(acc, m) == wanted, "es_requant_high", acc, m, right);
        }
        const int32_t shift = (int32_t)((uint32_t)random_s32() % 62u) - 31; /* -31 .. 30 */
        const int32_t total = 31 - shift;
        const int64_t exact = ((int64_t)acc * m + (INT64_C(1) << (total - 1))) >> total;
        const int32_t single = exact > INT32_MAX ? INT32_MAX : exact < INT32_MIN ? INT32_MIN : (int32_t)exact;
        expect(es_requant_single(acc, m, shift) == single, "es_requant_single", acc, m, shift);
        if (shift <= -2)
            expect(es_requant_single_small(acc, m, shift) == single, "es_requant_single_small", acc, m, shift);
        if (shift >= 0)
            expect(es_requant_double(acc, m, shift) == single, "left shift", acc, m, shift);
    }
}

static void test_saturation(void)
{
    const int32_t multiplier = INT32_MAX;
    const int8_t shift = 10;
    const es_requant q = {&multiplier, &shift, 0, ES_SINGLE, 100, -128, 90};
    expect(es_requant_s8(INT32_MAX, 0, &q) == 90, "upper clamp", es_requant_s8(INT32_MAX, 0, &q), 0, 0);
    expect(es_requant_s8(INT32_MIN, 0, &q) == -128, "lower clamp", es_requant_s8(INT32_MIN, 0, &q), 0, 0);
}

static void test_quotients(void)
{
    for (int32_t count = 1; count < 300; count++)
        for (int32_t sum = -128 * count; sum <= 127 * count; sum += 1 + count / 7) {
            const int32_t wanted = (int32_t)lround((double)sum / count);
            expect(es_rounded_quotient(sum, count) == wanted, "es_rounded_quotient", sum, count, wanted);
        }
}

/* Distance in units of the last place of the wanted value. */
static double ulps(float got, double wanted)
{
    const float nearest = (float)wanted;
    const double unit = fabs((double)nextafterf(nearest, INFINITY) - (double)nearest);
    return fabs((double)got - wanted) / unit;
}

static void test_functions(void)
{
    double worst_exp = 0, worst_tanh = 0, worst_sigmoid = 0, worst_expm1 = 0;
    for (int i = -103000; i <= 88700; i++) {
        const float x = (float)i * 0.001f;
        if (x > -87.0f)
            worst_exp = fmax(worst_exp, ulps(es_exp_f32(x), exp((double)x)));
        else
            expect(fabs((double)es_exp_f32(x) - exp((double)x)) < 3e-45, "denormal exp", i, 0, 0);
        if (fabsf(x) < 80.0f) {
            worst_sigmoid = fmax(worst_sigmoid, ulps(es_sigmoid_f32(x), 1 / (1 + exp(-(double)x))));
            worst_tanh = fmax(worst_tanh, ulps(es_tanh_f32(x * 0.2f), tanh((double)(x * 0.2f))));
            worst_expm1 = fmax(worst_expm1, fabs((double)es_expm1_f32(-fabsf(x)) - expm1(-fabs((double)x))));
        }
    }
    printf("ulp: exp %.2f tanh %.2f sigmoid %.2f, expm1 error %.1e\n", worst_exp, worst_tanh, worst_sigmoid, worst_expm1);
    expect(worst_exp <= 2.0 && worst_tanh <= 4.0 && worst_sigmoid <= 4.0 && worst_expm1 < 2e-7, "accuracy", 0, 0, 0);
    expect(isinf(es_exp_f32(100.0f)) && isinf(es_exp_f32(INFINITY)), "exp overflow", 0, 0, 0);
    expect(es_exp_f32(-200.0f) == 0.0f && es_exp_f32(-INFINITY) == 0.0f, "exp underflow", 0, 0, 0);
    expect(isnan(es_exp_f32(NAN)), "exp of nan", 0, 0, 0);
    expect(es_tanh_f32(50.0f) == 1.0f && es_tanh_f32(-50.0f) == -1.0f, "tanh ends", 0, 0, 0);
}

static void test_fixed_point(void)
{
    double worst = 0;
    for (int32_t a = 0; a > -(1 << 30); a -= 997) {
        const double wanted = exp((double)a / (1 << 26)), got = (double)es_exp_negative(a) / 2147483648.0;
        worst = fmax(worst, fabs(got - wanted));
    }
    expect(worst < 1e-6, "es_exp_negative", (long long)(worst * 1e9), 0, 0);
    worst = 0;
    for (int32_t a = 0; a >= 0 && a < INT32_MAX - 9973; a += 9973) {
        const double wanted = 1 / (1 + (double)a / 2147483648.0);
        worst = fmax(worst, fabs((double)es_reciprocal_one_plus(a) / 2147483648.0 - wanted));
    }
    expect(worst < 1e-6, "es_reciprocal_one_plus", (long long)(worst * 1e9), 0, 0);
}

static void test_copies(void)
{
    uint8_t bytes[64], wanted[64];
    for (int gap = 0; gap < 16; gap++) {
        for (int i = 0; i < 64; i++)
            bytes[i] = wanted[i] = (uint8_t)(i * 7);
        memmove(wanted + 5, wanted + 5 + gap, 40);
        es_copy_up(bytes + 5, bytes + 5 + gap, 40);
        expect(memcmp(bytes, wanted, 64) == 0, "es_copy_up", gap, 0, 0);
    }
}

int main(void)
{
    test_products();
    test_requantization();
    test_saturation();
    test_quotients();
    test_functions();
    test_fixed_point();
    test_copies();
    if (failures)
        printf("%d failures\n", failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
