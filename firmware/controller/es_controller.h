/*
 * The run-time controller: which option of a policy answers a call, given its limits and what past calls have shown.
 *
 * Integer arithmetic, no heap, no library function. docs/controller.md is the specification; edgescale.control in
 * Python is its other body and takes the same decisions. One es_controller for each policy and thread of calls.
 *
 *     static es_controller controller;
 *     es_controller_init(&controller, &my_policy);
 *     es_decision d = es_controller_decide(&controller, &request);
 *     ... run my_policy.options[d.option], with the time of each step in us[] ...
 *     es_controller_report(&controller, us, steps, total_us, ES_UNKNOWN_ENERGY);
 */
#ifndef ES_CONTROLLER_H
#define ES_CONTROLLER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ES_MAX_VARIANTS 16
#define ES_MAX_OPTIONS 64
#define ES_DIFFICULTIES 4
#define ES_NO_VARIANT 0xffu
#define ES_UNKNOWN_ENERGY 0xffffffffu

/* Limits an option can break, as bits of es_decision.binding. */
enum {
    ES_LIMIT_MEMORY = 1,
    ES_LIMIT_TIME = 2,
    ES_LIMIT_ENERGY = 4,
    ES_LIMIT_QUALITY = 8,
    ES_LIMIT_MEAN = 16,
    ES_LIMIT_DEMOTED = 32
};

/* A plan for one call: one variant, or a second one (variant[1]) where the first is not confident enough. */
typedef struct {
    uint32_t time_us[2];   /* profiled time of each step */
    uint32_t energy_uj[2]; /* and its energy; 0: not known */
    uint32_t mean_us;      /* expected time of a call */
    uint32_t mean_uj;      /* expected energy of a call */
    uint32_t memory;       /* peak bytes */
    uint16_t quality[ES_DIFFICULTIES]; /* expected, Q15 */
    uint16_t confidence;   /* Q15: the first answer stands from here on */
    uint8_t variant[2];    /* index, or ES_NO_VARIANT */
    uint8_t samples;       /* runs of the first step */
} es_option;

/* All options of one target; constant, in flash. */
typedef struct {
    const es_option *options;
    const uint32_t *load_us; /* of each variant */
    uint16_t hysteresis;     /* quality, Q15, that a change of option must gain */
    uint8_t option_count;    /* 1 to ES_MAX_OPTIONS */
    uint8_t variant_count;   /* 1 to ES_MAX_VARIANTS */
} es_policy;

/* Limits of one call; 0 means none, except for violation (Q16, 1 to 32768) and work (Q8, 256: the profiled size). */
typedef struct {
    uint32_t deadline_us;
    uint32_t violation; /* share of calls that may miss the deadline */
    uint32_t memory;    /* bytes */
    uint32_t energy_uj; /* of this call */
    uint32_t mean_us;   /* mean over the calls; this or mean_uj */
    uint32_t mean_uj;
    uint32_t work;
    uint16_t quality;   /* least expected, Q15 */
    uint8_t difficulty; /* bin of the input */
    uint8_t cheapest;   /* 1: least expected cost that reaches quality; 0: highest quality */
} es_request;

typedef struct {
    int32_t bound;   /* slowdown times were judged by, octaves Q16, without margin */
    uint8_t option;  /* index */
    uint8_t held;    /* 1: every limit holds with the asked probability */
    uint8_t binding; /* held: what keeps the next better option out; else: what cannot be met */
} es_decision;

/* Public to be placed by the application; its members are the controller's own but for resident and free_memory. */
typedef struct {
    const es_policy *policy;
    uint32_t resident;    /* bit v: variant v is loaded; all of them where variants are linked */
    uint32_t free_memory; /* bytes left for the model; 0: not known */
    es_request request;
    es_decision decision;
    int32_t mean, streak, debt, breach, sigma; /* slowdown in octaves, Q16; misses */
    int32_t variance, drift, noise;            /* octaves squared, Q16 */
    int32_t price, surplus;
    uint32_t wanted, calls;
    int32_t correction[ES_MAX_VARIANTS];
    uint32_t factors[ES_MAX_VARIANTS], waits[ES_MAX_VARIANTS];
    uint8_t runs[ES_MAX_VARIANTS], failures[ES_MAX_VARIANTS], misses[ES_MAX_VARIANTS];
    uint32_t slow;   /* slowdown times were judged by, Q12 */
    int32_t current;   /* option of the last call, -1 before the first */
} es_controller;

/* A request without limits. */
#define ES_REQUEST_ANY {0, 3277, 0, 0, 0, 0, 256, 0, 0, 0}

/* Start with the profiles' figures. Every variant counts as loaded. */
void es_controller_init(es_controller *c, const es_policy *policy);

/* The option for a call. */
es_decision es_controller_decide(es_controller *c, const es_request *request);

/* What the decided option took: microseconds of each of the `steps` that ran (1 or 2), and of the whole call.
   energy_uj: measured, or ES_UNKNOWN_ENERGY. Returns the energy of the call, estimated where it was not measured. */
uint32_t es_controller_report(es_controller *c, const uint32_t *steps_us, uint32_t steps, uint32_t total_us,
                              uint32_t energy_uj);

/* A variant crashed or could not be loaded: it is left out for some calls, longer each time. */
void es_controller_failed(es_controller *c, uint32_t variant);

/* Whether the first answer of a cascade stands: its confidence, Q15, and whether the second step still fits. */
int32_t es_controller_settled(const es_controller *c, uint32_t confidence, uint32_t spent_us);

#ifdef __cplusplus
}
#endif

#endif
