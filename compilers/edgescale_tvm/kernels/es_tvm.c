/* The kernels that an artifact calls, each as a packed function; ES_NEED_* says which ones it needs. */
#include "es_tvm_conv.h"
#include "es_tvm_depthwise.h"
#include "es_tvm_f32.h"
#include "es_tvm_simple.h"
#include "es_softmax_s8.h"

#define ES_PACKED(name, call)                                                                              \
    int __tvm_ffi_##name(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);         \
    int __tvm_ffi_##name(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result)          \
    {                                                                                                      \
        (void)self, (void)count, (void)result;                                                             \
        return call;                                                                                       \
    }

/* Arguments (x, es_softmax, y). */
ES_INLINE int es_softmax_packed(const TVMFFIAny *arguments)
{
    es_softmax_s8(es_data(arguments, 0), es_data(arguments, 2), es_data(arguments, 1));
    return 0;
}

#ifdef ES_NEED_ADD_S8
ES_PACKED(es_add_s8, es_add(arguments))
#endif
#ifdef ES_NEED_POOL_S8
ES_PACKED(es_pool_s8, es_pool(arguments))
#endif
#ifdef ES_NEED_MEAN_S8
ES_PACKED(es_mean_s8, es_mean(arguments))
#endif
#ifdef ES_NEED_SOFTMAX_S8
ES_PACKED(es_softmax_s8, es_softmax_packed(arguments))
#endif
#ifdef ES_NEED_CONV_S8
ES_PACKED(es_conv_s8, es_conv(arguments, 8))
#endif
#ifdef ES_NEED_CONV_S4
ES_PACKED(es_conv_s4, es_conv(arguments, 4))
#endif
#ifdef ES_NEED_DEPTHWISE_S8
ES_PACKED(es_depthwise_s8, es_depthwise(arguments, 8))
#endif
#ifdef ES_NEED_DEPTHWISE_S4
ES_PACKED(es_depthwise_s4, es_depthwise(arguments, 4))
#endif
#ifdef ES_NEED_CONV_F32
ES_PACKED(es_conv_f32, es_conv_real(arguments))
#endif
#ifdef ES_NEED_DEPTHWISE_F32
ES_PACKED(es_depthwise_f32, es_depthwise_real(arguments))
#endif
