/* What the device does to the profiled times: a Kalman filter of the slowdown, with a margin that learns from misses.
 * The same as edgescale/control/tracker.py. */
#ifndef ES_SLOWDOWN_H
#define ES_SLOWDOWN_H

#include "es_control_math.h"
#include "es_controller.h"

#define LEAST_NOISE 40
#define LEAST_DRIFT 20
#define MOST_VARIANCE (1 << 20)
#define MOST_SIGMA (2 * OCTAVE)
#define FIRST_VARIANCE (1 << 14)
#define FARTHEST (8 * OCTAVE)
#define LEAST_BREACH (OCTAVE / 16)
#define CREDIT (-2 * OCTAVE)
#define MOST_DEBT (4 * OCTAVE)

typedef struct {
    uint16_t share; /* of violations, Q16 */
    int16_t z;      /* standard deviations, Q8 */
} quantile;

static const quantile quantiles[] = {{7, 952},    {66, 791},   {131, 737},  {328, 659},   {655, 596},
                                     {1311, 526}, {3277, 421}, {6554, 328}, {16384, 173}, {32768, 0}};

static int32_t sigma_of(int32_t variance)
{
    return min_i32((int32_t)(square_root((uint32_t)variance << 8) << 4), MOST_SIGMA);
}

static int32_t base_bound(const es_controller *c, int32_t z)
{
    return c->mean + shifted(z * c->sigma, 8);
}

static int32_t margin(const es_controller *c)
{
    return c->debt > 0 ? shifted(shifted(c->debt, 8) * c->breach, 8) : 0;
}

static ES_APART int32_t deviations(uint32_t violation)
{
    int32_t z = quantiles[0].z;
    for (uint32_t i = 0; i < sizeof quantiles / sizeof quantiles[0]; i++)
        if (quantiles[i].share <= violation)
            z = quantiles[i].z;
    return z;
}

static ES_APART void observe(es_controller *c, int32_t seen)
{
    const int32_t innovation = clamp(seen - c->mean, -FARTHEST, FARTHEST);
    const int32_t predicted = min_i32(c->variance + c->drift, MOST_VARIANCE);
    const int32_t total = predicted + c->noise;
    const int32_t gain = (int32_t)(((uint32_t)predicted << 10) / (uint32_t)total);
    const int32_t limit = 3 * c->sigma + OCTAVE / 16;
    const int32_t sign = innovation > limit ? 1 : innovation < -limit ? -1 : 0;
    const int32_t pulled = shifted(gain * innovation, 10);
    int32_t step = pulled;
    if (sign == 0)
        c->noise = clamp(c->noise + shifted(square_q16(innovation) - total, 4), LEAST_NOISE, MOST_VARIANCE);
    else if (sign == c->streak)
        step = innovation;
    else
        step = shifted(gain * limit * sign, 10);
    c->streak = sign;
    c->mean = clamp(c->mean + step, -FARTHEST, FARTHEST);
    c->variance = predicted - shifted(gain * predicted, 10);
    c->drift = clamp(shifted(77 * c->drift + 179 * square_q16(step), 8), LEAST_DRIFT, MOST_VARIANCE);
    c->sigma = sigma_of(min_i32(c->variance + c->drift + c->noise, 3 * MOST_VARIANCE));
}

static void judge(es_controller *c, int32_t missed, int32_t beyond)
{
    const int32_t violation = (int32_t)c->request.violation;
    if (missed) {
        c->debt = min_i32(c->debt + OCTAVE - violation, MOST_DEBT);
        c->breach = clamp(c->breach + shifted(beyond - c->breach, 1), LEAST_BREACH, FARTHEST);
    } else {
        c->debt = clamp(c->debt - violation, CREDIT, MOST_DEBT);
        c->breach = clamp(c->breach - shifted(c->breach, 8), LEAST_BREACH, FARTHEST);
    }
}

#endif
