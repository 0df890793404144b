/* See es_controller.h and docs/controller.md. Names of the steps are those of edgescale.control in Python. */
#include "es_controller.h"

#include "es_slowdown.h"

#define MOST_CORRECTION (2 * OCTAVE)
#define MISSES_IN_A_ROW 3u
#define FIRST_WAIT 8u
#define MOST_FAILURES 9u
#define MOST_PRICE (15 * OCTAVE)
#define MOST_RATIO (1u << 16)
#define MOST_SURPLUS 64u
#define MERIT_ZERO 0x40000000u /* merit of a quality of 0 */

static ES_APART void demote(es_controller *c, uint32_t v)
{
    c->waits[v] = sum(c->calls, FIRST_WAIT << c->failures[v]);
    if (c->failures[v] < MOST_FAILURES)
        c->failures[v]++;
}

static ES_APART void pace(es_controller *c, uint32_t us, uint32_t uj)
{
    const es_request *r = &c->request;
    const uint32_t limit = r->mean_us ? r->mean_us : r->mean_uj, spent = r->mean_us ? us : uj;
    const uint64_t kept = (uint64_t)limit * MOST_SURPLUS;
    const int64_t most = kept > I32_MAX ? I32_MAX : (int64_t)kept;
    int64_t surplus;
    if (!limit)
        return;
    surplus = (int64_t)c->surplus + limit - spent;
    if (surplus < -I32_MAX)
        surplus = -I32_MAX;
    c->surplus = (int32_t)(surplus > most ? most : surplus);
    c->price = clamp(c->price + ((int32_t)min_u32(c->wanted, 2048) - 256) * 16, 0, MOST_PRICE);
}

void es_controller_init(es_controller *c, const es_policy *policy)
{
    static const es_request any = ES_REQUEST_ANY;
    c->policy = policy;
    c->resident = 0xffff;
    c->free_memory = 0;
    c->request = any;
    c->decision.bound = 0;
    c->decision.option = c->decision.held = c->decision.binding = 0;
    c->mean = c->streak = c->debt = 0;
    c->breach = LEAST_BREACH;
    c->variance = FIRST_VARIANCE;
    c->drift = LEAST_DRIFT;
    c->noise = LEAST_NOISE;
    c->sigma = sigma_of(FIRST_VARIANCE + LEAST_DRIFT + LEAST_NOISE);
    c->price = c->surplus = 0;
    c->wanted = 256;
    c->calls = 0;
    for (uint32_t v = 0; v < ES_MAX_VARIANTS; v++) {
        c->correction[v] = 0;
        c->factors[v] = 1u << 12;
        c->waits[v] = 0;
        c->runs[v] = c->failures[v] = c->misses[v] = 0;
    }
    c->slow = 1u << 12;
    c->current = -1;
}

/* What one option costs under the present slowdown, and the limits it breaks. */
typedef struct {
    uint32_t worst_us, uj, ratio;
    uint32_t merit; /* compared among options of one rank: the larger the better */
    uint32_t fail;
    uint32_t free; /* no limit but that of the mean is broken */
} weighed;

/* What holds for all options of a decision. Scales of the variants have the work in them. */
typedef struct {
    uint32_t scales[ES_MAX_VARIANTS];
    uint32_t expected; /* slowdown of any variant, Q12, in the mean */
    uint32_t limit, price, memory;
    uint32_t overspent, allowance; /* of the mean cost */
} standing;

static uint32_t load_us(const es_controller *c, uint32_t v)
{
    return scaled(c->policy->load_us[v], scaled(c->factors[v], c->slow));
}

static void add_step(const es_controller *c, const es_option *o, uint32_t step, const standing *s, weighed *w)
{
    const uint32_t v = o->variant[step], scale = s->scales[v];
    w->worst_us = sum(w->worst_us, scaled(o->time_us[step], scale));
    if (o->energy_uj[step])
        w->uj = sum(w->uj, scaled(o->energy_uj[step], scale));
    if (c->waits[v] > c->calls)
        w->fail = ES_LIMIT_DEMOTED;
    if (!((c->resident >> v) & 1u))
        w->worst_us = sum(w->worst_us, load_us(c, v));
}

static weighed weigh(const es_controller *c, const es_option *o, const standing *s)
{
    const es_request *r = &c->request;
    const uint32_t quality = o->quality[r->difficulty];
    weighed w = {0, 0, 256, 0, 0, 0};
    add_step(c, o, 0, s, &w);
    if (o->variant[1] != ES_NO_VARIANT)
        add_step(c, o, 1, s, &w);
    if (o->memory > s->memory)
        w.fail |= ES_LIMIT_MEMORY;
    if (r->deadline_us && w.worst_us > r->deadline_us)
        w.fail |= ES_LIMIT_TIME;
    if (r->energy_uj && w.uj > r->energy_uj)
        w.fail |= ES_LIMIT_ENERGY;
    if (quality < r->quality)
        w.fail |= ES_LIMIT_QUALITY;
    w.merit = MERIT_ZERO + quality;
    w.free = w.fail == 0;
    if (s->limit || r->cheapest) {
        const uint32_t mean = r->mean_uj ? o->mean_uj : o->mean_us;
        const uint32_t cost = scaled(mean, scaled(c->factors[o->variant[0]], s->expected));
        if (r->cheapest) {
            w.merit = U32_MAX - cost;
        } else {
            const uint32_t ratio = min_u32((min_u32(cost, 0xffffff) << 8) / s->limit, MOST_RATIO);
            w.merit -= (s->price * ratio) >> 8;
            w.ratio = ratio;
            if (s->overspent || cost > s->allowance)
                w.fail |= ES_LIMIT_MEAN;
        }
    }
    return w;
}

/* Fails of the best of the options that are better than the chosen one; 0 where there is none. */
static uint32_t in_the_way(const es_controller *c, uint32_t chosen, const uint8_t *fails, uint32_t paced)
{
    const es_policy *p = c->policy;
    const uint32_t d = c->request.difficulty;
    uint32_t quality = p->options[chosen].quality[d], best = ES_MAX_OPTIONS;
    for (uint32_t i = 0; i < p->option_count; i++) {
        if (p->options[i].quality[d] > quality) {
            best = i;
            quality = p->options[i].quality[d];
        }
    }
    if (best == ES_MAX_OPTIONS)
        return 0;
    return fails[best] ? fails[best] : paced ? ES_LIMIT_MEAN : 0;
}

es_decision es_controller_decide(es_controller *c, const es_request *request)
{
    const es_policy *p = c->policy;
    const int32_t z = deviations(request->violation);
    const uint32_t by_time = request->deadline_us > 0 || request->energy_uj == 0;
    uint8_t fails[ES_MAX_OPTIONS];
    uint32_t best = 0, best_rank = 9, best_merit = 0, common = 0xff, wanted = 256, wanted_merit = 0;
    standing s;
    c->request = *request;
    c->decision.bound = base_bound(c, z);
    c->slow = exp2_q12(c->decision.bound + margin(c));
    for (uint32_t v = 0, slow = worked(c->slow, request->work); v < p->variant_count; v++)
        s.scales[v] = scaled(c->factors[v], slow);
    s.expected = worked(exp2_q12(c->mean), request->work);
    s.limit = request->mean_us ? request->mean_us : request->mean_uj;
    s.price = exp2_q12(c->price) >> 12;
    s.memory = request->memory ? request->memory : U32_MAX;
    if (c->free_memory)
        s.memory = min_u32(s.memory, c->free_memory);
    s.overspent = c->surplus < 0 && s.limit < (uint32_t)-c->surplus;
    s.allowance = c->surplus < 0 ? s.limit - (uint32_t)-c->surplus : sum(s.limit, (uint32_t)c->surplus);
    for (uint32_t i = 0; i < p->option_count; i++) {
        weighed w = weigh(c, &p->options[i], &s);
        uint32_t rank;
        if (s.limit && w.free && w.merit > wanted_merit && !request->cheapest) {
            wanted = w.ratio;
            wanted_merit = w.merit;
        }
        if ((int32_t)i == c->current && !request->cheapest)
            w.merit += p->hysteresis;
        if (!(w.fail & ~(uint32_t)ES_LIMIT_QUALITY)) {
            rank = w.fail ? 1 : 0;
        } else if (w.fail & ES_LIMIT_MEMORY) {
            rank = 4;
            w.merit = U32_MAX - p->options[i].memory;
        } else {
            rank = w.fail & ES_LIMIT_DEMOTED ? 3 : 2;
            w.merit = U32_MAX - (by_time ? w.worst_us : w.uj);
        }
        common &= w.fail;
        fails[i] = (uint8_t)w.fail;
        if (rank < best_rank || (rank == best_rank && w.merit > best_merit)) {
            best = i;
            best_rank = rank;
            best_merit = w.merit;
        }
    }
    c->wanted = wanted;
    c->decision.option = (uint8_t)best;
    c->decision.held = best_rank == 0;
    if (c->decision.held)
        c->decision.binding = (uint8_t)in_the_way(c, best, fails, s.limit);
    else
        c->decision.binding = (uint8_t)(common ? common : fails[best]);
    c->current = (int16_t)best;
    return c->decision;
}

uint32_t es_controller_report(es_controller *c, const uint32_t *steps_us, uint32_t steps, uint32_t total_us,
                              uint32_t energy_uj)
{
    const es_option *o = &c->policy->options[c->decision.option];
    int32_t beyond = -16 * OCTAVE;
    uint32_t estimated = 0, last = o->variant[0];
    if (steps == 0)
        steps = 1;
    if (steps > 1 && o->variant[1] == ES_NO_VARIANT)
        steps = 1;
    for (uint32_t i = 0; i < min_u32(steps, 2); i++) {
        const uint32_t v = o->variant[i];
        const int32_t ratio = log2_q16(steps_us[i]) - log2_q16(worked(o->time_us[i], c->request.work));
        const int32_t seen = ratio - c->correction[v];
        int32_t rest;
        last = v;
        if (seen - c->decision.bound > beyond)
            beyond = seen - c->decision.bound;
        estimated = sum(estimated, scaled(worked(o->energy_uj[i], c->request.work), exp2_q12(ratio)));
        observe(c, seen);
        rest = shifted(seen - c->mean, c->runs[v] < 4 ? 2 : 5);
        c->correction[v] = clamp(c->correction[v] + rest, -MOST_CORRECTION, MOST_CORRECTION);
        c->factors[v] = exp2_q12(c->correction[v]);
        if (c->runs[v] < 255)
            c->runs[v]++;
        c->failures[v] = 0;
        c->resident |= 1u << v;
    }
    if (c->decision.held && c->request.deadline_us) {
        const int32_t missed = total_us > c->request.deadline_us;
        judge(c, missed, beyond);
        c->misses[last] = (uint8_t)(missed ? c->misses[last] + 1 : 0);
        if (c->misses[last] >= MISSES_IN_A_ROW) {
            c->misses[last] = 0;
            demote(c, last);
        }
    }
    if (energy_uj == ES_UNKNOWN_ENERGY)
        energy_uj = estimated;
    pace(c, total_us, energy_uj);
    c->calls = sum(c->calls, 1);
    return energy_uj;
}

void es_controller_failed(es_controller *c, uint32_t variant)
{
    if (variant >= c->policy->variant_count)
        return;
    c->resident &= ~(1u << variant);
    c->calls = sum(c->calls, 1);
    demote(c, variant);
}

int32_t es_controller_settled(const es_controller *c, uint32_t confidence, uint32_t spent_us)
{
    const es_option *o = &c->policy->options[c->decision.option];
    uint32_t us;
    if (o->variant[1] == ES_NO_VARIANT || confidence >= o->confidence)
        return 1;
    us = scaled(o->time_us[1], scaled(c->factors[o->variant[1]], worked(c->slow, c->request.work)));
    if (!((c->resident >> o->variant[1]) & 1u))
        us = sum(us, load_us(c, o->variant[1]));
    return c->request.deadline_us != 0 && sum(spent_us, us) > c->request.deadline_us;
}
