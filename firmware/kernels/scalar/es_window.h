/* Geometry of sliding windows over NHWC images of one sample: convolutions and pools. */
#ifndef ES_WINDOW_H
#define ES_WINDOW_H

#include "es_base.h"

/* Output rows [full_top, full_bottom) and columns [full_left, full_right) have their whole window inside the image. */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
    int32_t k_h, k_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h, dilation_w;
    int32_t pad_top, pad_left;
    int32_t groups;
    int32_t full_top, full_bottom, full_left, full_right;
} es_window;

/* Taps [from, to) of one axis that fall on real pixels. */
typedef struct {
    int32_t from, to;
} es_taps;

/* `first` is the coordinate of tap 0 (may be negative), `size` the image's extent. No division: some cores lack it. */
ES_INLINE es_taps es_real_taps(int32_t first, int32_t kernel, int32_t dilation, int32_t size)
{
    es_taps t = {0, kernel};
    while (t.from < t.to && first + t.from * dilation < 0)
        t.from++;
    while (t.to > t.from && first + (t.to - 1) * dilation >= size)
        t.to--;
    return t;
}

/* Whether some output row reaches above or below the image. A constant, as the three below are where nothing does. */
ES_INLINE int32_t es_rows_see_padding(const es_window *g)
{
    return g->full_top != 0 || g->full_bottom != g->out_h;
}

ES_INLINE int32_t es_columns_see_padding(const es_window *g)
{
    return g->full_left != 0 || g->full_right != g->out_w;
}

/* Whether the window of an output row, or column, lies inside. */
ES_INLINE int32_t es_row_is_full(const es_window *g, int32_t oy)
{
    return !es_rows_see_padding(g) || (oy >= g->full_top && oy < g->full_bottom);
}

/* The input row under the first tap, hidden from the compiler: where windows see nothing but padding, GCC would warn of
 * rows that no tap reads. */
ES_INLINE int32_t es_first_row(const es_window *g, int32_t oy)
{
    int32_t iy = oy * g->stride_h - g->pad_top;
    __asm__("" : "+r"(iy));
    return iy;
}

ES_INLINE int32_t es_column_is_full(const es_window *g, int32_t ox)
{
    return es_columns_see_padding(g) ? ox >= g->full_left && ox < g->full_right : ox < g->out_w;
}

#endif
