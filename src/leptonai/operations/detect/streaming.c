/* One point of the streaming detector: the same arithmetic as streaming_reference.py, operation by operation, on the
 * same memory (streaming_state.py), so that either can go on from where the other stopped. Constants are explained
 * there. Nothing here allocates, and a state full of zeros is a detector that has seen nothing. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LN10 2.302585092994046

#define NUM_CHANNELS 7
#define WINDOW_POINTS 5000
#define KEPT 1024
#define FEW_KEPT 300
#define MIN_POINTS 20
#define TAIL_SHARE 0.02
#define MIN_TAIL 4.0
#define FLOOR_DECAY 0.99
#define RECORD_STEEPNESS 3.0
#define MAX_EVIDENCE 30.0
#define TIE_SHARE 1e-6

#define NUM_BOOKS 2
#define MAX_SCALES 4
#define NUM_PROTOTYPES 256
#define NEW_RATIO 3.0
#define USUAL_RATE 0.002
#define MOVE_RATE 0.02
#define AGEING_POINTS 5000

#define RECENT 256
#define SHIFT_POINTS 100
#define CONTEXT_POINTS 64
#define DAY_SLOTS 48
#define DAY_SLOT_SECONDS 1800.0
#define DAY_RATE 0.02
#define DAY_VISIT_RATE 0.12
#define WEEK_SLOTS 168
#define WEEK_SLOT_SECONDS 3600.0
#define WEEK_RATE 0.05
#define WEEK_VISIT_RATE 0.6
#define MIN_VISITS 2
#define RESIDUALS 8
#define MOVES 12
#define SPREAD_RATE 0.005

#define LARGEST_VALUE 1e37
#define LARGEST_DECAY 0.999
#define ROUNDING_SHARE 1.4e-14
#define INTERVAL_RATE 0.05
#define GAP_INTERVALS 16.0
#define WINDOW_WEIGHT 0.85

enum { SHAPE, CONTEXT, DAY, WEEK, LEVEL, SHIFT, SPREAD };

typedef struct {
    double anchor, largest, last_seconds, interval_seconds, usual_move;
    int64_t num_points, num_together, num_moves, num_spreads, num_residuals;
    double recent[RECENT];
    double residuals[RESIDUALS];
    double moves[MOVES];
    double day_levels[DAY_SLOTS];
    double week_levels[WEEK_SLOTS];
    int64_t day_visits[DAY_SLOTS];
    int64_t week_visits[WEEK_SLOTS];
    double prototypes[NUM_BOOKS][MAX_SCALES][NUM_PROTOTYPES];
    double usual_distance[NUM_BOOKS];
    int64_t num_distances[NUM_BOOKS];
    int64_t num_prototypes[NUM_BOOKS];
    int64_t uses[NUM_BOOKS][NUM_PROTOTYPES];
    int64_t tail_seen[NUM_CHANNELS];
    int64_t tail_kept[NUM_CHANNELS];
    double tail_floor[NUM_CHANNELS];
    float tail_values[NUM_CHANNELS][KEPT];
    uint32_t tail_numbers[NUM_CHANNELS][KEPT];
} State;

static const int SCALES[NUM_BOOKS][MAX_SCALES] = {{1, 3, 9, 0}, {1, 4, 16, 64}};
static const int NUM_SCALES[NUM_BOOKS] = {3, 4};

static int first_at_least(const float *sorted, int count, double wanted) {
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if ((double)sorted[middle] < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* -log10 of the chance of a distance this large, from the channel's own past. */
static double tail_evidence(const State *state, int channel, double distance) {
    const float *kept = state->tail_values[channel];
    int64_t seen = state->tail_seen[channel];
    int count = (int)state->tail_kept[channel];
    double past = (double)(seen < WINDOW_POINTS ? seen : WINDOW_POINTS), found;
    if (past < MIN_POINTS || distance <= 0.0 || distance < state->tail_floor[channel]) return 0.0;
    int above = count - first_at_least(kept, count, distance * (1.0 - TIE_SHARE));
    double by_count = -log10((above + 1.0) / (past + 1.0));
    if (channel == SHIFT) {
        int half = (int)past / 2;
        double largest = kept[count - 1], middle = kept[count - 1 - (half < count - 1 ? half : count - 1)];
        found = by_count;
        if (distance > largest && largest > middle)
            found = log10(past + 1.0) + RECORD_STEEPNESS * (distance - largest) / (largest - middle) / LN10;
    } else {
        double share = TAIL_SHARE * past;
        int top = (int)(share < MIN_TAIL ? MIN_TAIL : share);
        if (top > count) top = count;
        found = by_count;
        if (above < top) {
            double edge = kept[count - top], sum = 0.0;
            for (int i = count - top; i < count; i++) sum += kept[i];
            double excess = sum / top - edge;
            if (excess > TIE_SHARE * edge) {
                /* what an exponential tail predicts when its scale is only known from `top` excesses */
                found = log10(past / top) + top * log10(1.0 + (distance - edge) / excess / top);
            }
            else if (distance > edge * (1.0 + TIE_SHARE)) found = log10(past + 1.0);
        }
    }
    return found < 0.0 ? 0.0 : found > MAX_EVIDENCE ? MAX_EVIDENCE : found;
}

static void tail_forget(State *state, int channel, int place) {
    int count = (int)--state->tail_kept[channel], rest = count - place;
    float *kept = state->tail_values[channel];
    uint32_t *numbers = state->tail_numbers[channel];
    memmove(kept + place, kept + place + 1, rest * sizeof *kept);
    memmove(numbers + place, numbers + place + 1, rest * sizeof *numbers);
}

static void tail_learn(State *state, int channel, double distance) {
    float *kept = state->tail_values[channel];
    uint32_t *numbers = state->tail_numbers[channel];
    int64_t seen = state->tail_seen[channel];
    if (seen >= WINDOW_POINTS) {
        uint32_t old = (uint32_t)(seen - WINDOW_POINTS), found = 0;
        uint32_t count = (uint32_t)state->tail_kept[channel];
        for (uint32_t i = 0; i < count; i++) found |= numbers[i] == old ? i + 1 : 0;
        if (found) tail_forget(state, channel, (int)found - 1);
    }
    if (state->tail_kept[channel] < FEW_KEPT) state->tail_floor[channel] *= FLOOR_DECAY;
    float rounded = (float)distance;
    if (rounded >= state->tail_floor[channel]) {
        if (state->tail_kept[channel] == KEPT) {
            state->tail_floor[channel] = kept[0];
            tail_forget(state, channel, 0);
        }
        int count = (int)state->tail_kept[channel]++;
        int place = first_at_least(kept, count, rounded);
        memmove(kept + place + 1, kept + place, (count - place) * sizeof *kept);
        memmove(numbers + place + 1, numbers + place, (count - place) * sizeof *numbers);
        kept[place] = rounded;
        numbers[place] = (uint32_t)seen;
    }
    state->tail_seen[channel] = seen + 1;
}

/* The distance to the nearest prototype, which then moves nearer; a far point becomes a new one. */
static double novelty(State *state, int book, const double *means) {
    double(*prototypes)[NUM_PROTOTYPES] = state->prototypes[book];
    int64_t *uses = state->uses[book];
    int count = (int)state->num_prototypes[book], num_scales = NUM_SCALES[book], best = 0;
    double distances[NUM_PROTOTYPES] = {0.0}, distance = -1.0;
    for (int s = 0; s < num_scales; s++)
        for (int i = 0; i < count; i++) distances[i] += fabs(means[s] - prototypes[s][i]);
    for (int i = 1; i < count; i++)
        if (distances[i] < distances[best]) best = i;
    if (count) {
        double usual = state->usual_distance[book], seen = (double)++state->num_distances[book];
        distance = distances[best];
        state->usual_distance[book] += fmax(1.0 / seen, USUAL_RATE) * (distance - usual);
        if (distance <= NEW_RATIO * usual) {
            for (int s = 0; s < num_scales; s++) prototypes[s][best] += MOVE_RATE * (means[s] - prototypes[s][best]);
            uses[best]++;
            return distance;
        }
    }
    int place = count;
    if (count < NUM_PROTOTYPES) state->num_prototypes[book]++;
    else {
        place = 0;
        for (int i = 1; i < count; i++)
            if (uses[i] < uses[place]) place = i;
    }
    for (int s = 0; s < num_scales; s++) prototypes[s][place] = means[s];
    uses[place] = 1;
    return distance;
}

/* Distance from the usual level of this time of the day or week, with its sign; NAN: too few visits. */
static double residual(double value, double *levels, int64_t *visits, int slot, double rate) {
    double difference = value - levels[slot], seen = (double)visits[slot];
    levels[slot] += fmax(1.0 / (seen + 1.0), rate) * difference;
    return visits[slot]++ >= MIN_VISITS ? difference : NAN;
}

static int slot_of(double seconds, double slot_seconds, int slots) {
    double place = fmod(floor(seconds / slot_seconds), slots);
    return (int)(place < 0.0 ? place + slots : place);
}

static void pass_time(State *state, double seconds) {
    double passed = seconds - state->last_seconds;
    if (state->num_points && passed > 0.0) {
        if (state->interval_seconds == 0.0) state->interval_seconds = passed;
        else if (passed > GAP_INTERVALS * state->interval_seconds) state->num_together = state->num_moves = 0;
        double most = 2.0 * state->interval_seconds;
        state->interval_seconds += INTERVAL_RATE * ((passed < most ? passed : most) - state->interval_seconds);
    }
    state->last_seconds = seconds;
}

static void seasonal_distances(State *state, double value, double seconds, double *distances) {
    double day_rate = fmin(DAY_RATE, DAY_VISIT_RATE * state->interval_seconds / DAY_SLOT_SECONDS);
    double week_rate = fmin(WEEK_RATE, WEEK_VISIT_RATE * state->interval_seconds / WEEK_SLOT_SECONDS);
    int day_slot = slot_of(seconds, DAY_SLOT_SECONDS, DAY_SLOTS);
    int week_slot = slot_of(seconds, WEEK_SLOT_SECONDS, WEEK_SLOTS);
    double day = residual(value, state->day_levels, state->day_visits, day_slot, day_rate);
    double week = residual(value, state->week_levels, state->week_visits, week_slot, week_rate);
    if (!isnan(week)) distances[WEEK] = fabs(week);
    if (isnan(day)) return;
    distances[DAY] = fabs(day);
    state->residuals[state->num_residuals++ % RESIDUALS] = day;
    double sum = 0.0;
    for (int i = 0; i < RESIDUALS; i++) sum += state->residuals[i];
    if (state->num_residuals >= RESIDUALS) distances[LEVEL] = fabs(sum / RESIDUALS);
}

static void spread_distance(State *state, double move, double *distances) {
    state->moves[state->num_moves++ % MOVES] = fabs(move);
    if (state->num_moves < MOVES) return;
    double sum = 0.0;
    for (int i = 0; i < MOVES; i++) sum += state->moves[i];
    double mean = sum / MOVES, before = state->usual_move;
    double seen = (double)++state->num_spreads;
    state->usual_move += fmax(1.0 / seen, SPREAD_RATE) * (mean - before);
    if (seen > 1.0) distances[SPREAD] = fabs(mean - before);
}

static void window_distances(State *state, double *distances) {
    double sums[2 * SHIFT_POINTS], sum = 0.0, means[MAX_SCALES];
    int together = (int)(state->num_together < 2 * SHIFT_POINTS ? state->num_together : 2 * SHIFT_POINTS);
    for (int i = 0; i < together; i++) {
        sum += state->recent[(state->num_points - i) % RECENT];
        sums[i] = sum;
    }
    for (int book = 0; book < NUM_BOOKS; book++) {
        for (int s = 0; s < NUM_SCALES[book]; s++) {
            int length = SCALES[book][s] < together ? SCALES[book][s] : together;
            means[s] = sums[length - 1] / length;
        }
        distances[SHAPE + book] = novelty(state, book, means);
    }
    if (together == 2 * SHIFT_POINTS) {
        double later = sums[SHIFT_POINTS - 1], earlier = sums[2 * SHIFT_POINTS - 1] - later;
        distances[SHIFT] = fabs(later - earlier) / SHIFT_POINTS;
    }
}

static void age(State *state) {
    for (int book = 0; book < NUM_BOOKS; book++)
        for (int i = 0; i < NUM_PROTOTYPES; i++) state->uses[book][i] /= 2;
}

/* Take in one finite point; evidence[] of every channel, weighted, comes back. */
static void take(State *state, double raw, double seconds, double *evidence) {
    double distances[NUM_CHANNELS] = {-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0};
    raw = raw > LARGEST_VALUE ? LARGEST_VALUE : raw < -LARGEST_VALUE ? -LARGEST_VALUE : raw;
    pass_time(state, seconds);
    if (state->num_points == 0) state->anchor = raw;
    double value = raw - state->anchor;
    state->largest = fmax(fmax(fabs(raw), fabs(value)), LARGEST_DECAY * state->largest);
    double rounding = ROUNDING_SHARE * state->largest;
    double previous = state->recent[state->num_points % RECENT];
    state->num_points++;
    state->num_together++;
    state->recent[state->num_points % RECENT] = value;
    window_distances(state, distances);
    seasonal_distances(state, value, seconds, distances);
    if (state->num_together > 1) spread_distance(state, value - previous, distances);
    for (int channel = 0; channel < NUM_CHANNELS; channel++) {
        double distance = distances[channel] <= rounding && distances[channel] >= 0.0 ? 0.0 : distances[channel];
        evidence[channel] = 0.0;
        if (distance < 0.0) continue;
        evidence[channel] = tail_evidence(state, channel, distance) * (channel >= LEVEL ? WINDOW_WEIGHT : 1.0);
        tail_learn(state, channel, distance);
    }
    if (state->num_points % AGEING_POINTS == 0) age(state);
}

int64_t lepton_detector_state_bytes(void) { return (int64_t)sizeof(State); }

/* evidence[] has NUM_CHANNELS places for each point; a point that is not finite is passed over and leaves zeros. */
void lepton_detector_take(State *state, int64_t num, const double *values, const double *seconds, double *evidence) {
    for (int64_t i = 0; i < num; i++) {
        if (isfinite(values[i])) take(state, values[i], seconds[i], evidence + i * NUM_CHANNELS);
        else memset(evidence + i * NUM_CHANNELS, 0, NUM_CHANNELS * sizeof *evidence);
    }
}

/* The joint evidence of one finite point; reason[0] is the number of the channel that weighs most. */
double lepton_detector_take_one(State *state, double value, double seconds, int32_t *reason) {
    double evidence[NUM_CHANNELS], sum, most = -1.0;
    take(state, value, seconds, evidence);
    for (int channel = 0; channel < NUM_CHANNELS; channel++)
        if (evidence[channel] > most) {
            most = evidence[channel];
            *reason = channel;
        }
    double both = (evidence[SHAPE] + evidence[CONTEXT]) / 2.0, square = both * both;
    sum = square * square;
    for (int channel = DAY; channel < NUM_CHANNELS; channel++) {
        square = evidence[channel] * evidence[channel];
        sum += square * square;
    }
    return sqrt(sqrt(sum));
}
