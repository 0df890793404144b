/* Depthwise convolution of int8: four taps of a channel at a time. Weights [taps / 4, rounded up][channels][4]. */
#ifndef ES_TVM_DEPTHWISE_H
#define ES_TVM_DEPTHWISE_H

#include "es_tvm_scale.h"

#if ES_OFFSET
/* 16 channels of four taps, tap after tap -> channel after channel. */
ES_INLINE __m512i es_four_taps(const uint8_t *image, const int32_t *offsets)
{
    const __m128i a = _mm_loadu_si128((const void *)(image + offsets[0]));
    const __m128i b = _mm_loadu_si128((const void *)(image + offsets[1]));
    const __m128i c = _mm_loadu_si128((const void *)(image + offsets[2]));
    const __m128i d = _mm_loadu_si128((const void *)(image + offsets[3]));
#if defined(__AVX512VBMI__)
    const __m512i order = _mm512_set_epi32(0x3F2F1F0F, 0x3E2E1E0E, 0x3D2D1D0D, 0x3C2C1C0C, 0x3B2B1B0B, 0x3A2A1A0A,
        0x39291909, 0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404, 0x33231303, 0x32221202, 0x31211101,
        0x30201000);
    const __m512i taps = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(b, a)), _mm256_set_m128i(d, c), 1);
    return _mm512_permutexvar_epi8(order, taps);
#else
    const __m128i ab0 = _mm_unpacklo_epi8(a, b), ab1 = _mm_unpackhi_epi8(a, b);
    const __m128i cd0 = _mm_unpacklo_epi8(c, d), cd1 = _mm_unpackhi_epi8(c, d);
    const __m256i low = _mm256_set_m128i(_mm_unpackhi_epi16(ab0, cd0), _mm_unpacklo_epi16(ab0, cd0));
    const __m256i high = _mm256_set_m128i(_mm_unpackhi_epi16(ab1, cd1), _mm_unpacklo_epi16(ab1, cd1));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#endif
}

ES_INLINE void es_depthwise_all(const es_layer *l, const uint8_t *image, const uint8_t *weights, int8_t *y,
    const int32_t *offsets, int32_t fours, const int bits)
{
    const es_scales scales = es_scales_of(l);
    const int32_t channels = l->out_c;
    for (int32_t c = 0; c < channels; c += 16) {
        const __mmask16 mask = es_lanes(channels - c);
        const es_vector_scale scale = es_load_scale(l, scales, c, mask);
        const uint8_t *first = weights + (size_t)c * (size_t)bits / 2;
        for (int32_t i = 0; i < l->out_h * l->out_w; i++) {
            const uint8_t *from = image + es_start(l, i, channels) + c;
            const uint8_t *w = first;
            __m512i sums = _mm512_setzero_si512();
            for (int32_t k = 0; k < fours; k++, w += (size_t)channels * (size_t)bits / 2)
                sums = _mm512_dpbusd_epi32(sums, es_four_taps(from, offsets + 4 * k), es_load_weights(w, mask, bits));
            es_store_scaled(y + (size_t)i * (size_t)channels + c, sums, &scale, 0);
        }
    }
}
#else
#define ES_BLOCK 32

ES_INLINE void es_depthwise_all(const es_layer *l, const uint8_t *image, const uint8_t *weights, int8_t *y,
    const int32_t *offsets, int32_t fours, const int bits)
{
    const es_scales scales = es_scales_of(l);
    const int32_t channels = l->out_c;
    for (int32_t i = 0; i < l->out_h * l->out_w; i++) {
        for (int32_t c = 0; c < channels; c += ES_BLOCK) {
            const int32_t count = es_min(channels - c, ES_BLOCK);
            const uint8_t *from = image + es_start(l, i, channels) + c;
            int32_t sums[ES_BLOCK];
            for (int32_t n = 0; n < count; n++) sums[n] = scales.bias[c + n];
            for (int32_t k = 0; k < fours; k++) {
                const uint8_t *w = weights + ((size_t)k * (size_t)channels + (size_t)c) * (size_t)bits / 2;
                for (int32_t j = 0; j < 4; j++) {
                    const int8_t *tap = (const int8_t *)from + offsets[4 * k + j];
                    for (int32_t n = 0; n < count; n++) sums[n] += tap[n] * es_weight(w + n * bits / 2, j, bits);
                }
            }
            int8_t *to = y + (size_t)i * (size_t)channels + c;
            for (int32_t n = 0; n < count; n++)
                to[n] = es_scaled(l, sums[n], scales.multiplier[c + n], scales.shift[c + n]);
        }
    }
}
#endif

ES_INLINE int es_depthwise(const TVMFFIAny *arguments, int bits)
{
    const es_layer *l = es_data(arguments, 2);
    const int32_t taps = l->kernel_h * l->kernel_w, fours = (taps + 3) / 4;
    const int32_t width = l->left + l->in_w + l->right;
    uint8_t *image = es_image(es_data(arguments, 0), l, 1, l->groups);
    int32_t *offsets = calloc((size_t)(4 * fours), sizeof(int32_t));
    if (image == NULL || offsets == NULL) {
        free(offsets);
        free(image);
        return es_no_memory();
    }
    for (int32_t i = 0; i < taps; i++)
        offsets[i] = (i / l->kernel_w * l->dilation_h * width + i % l->kernel_w * l->dilation_w) * l->out_c;
    es_depthwise_all(l, image, es_data(arguments, 1), es_data(arguments, 3), offsets, fours, bits);
    free(offsets);
    free(image);
    return 0;
}

#endif
