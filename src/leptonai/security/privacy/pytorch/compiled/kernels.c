// Per-example gradients and their norms, for examples of float32 numbers that lie one after the other.
//
// Sums stay in registers, twelve vectors at a time. A convolution's output gradient is turned so that a vector holds
// one position of neighbouring channels (a panel), and multiplied by single pixels: no sum across lanes is needed,
// and a tap of the filter is the same memory of the input, shifted.

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WITH_AVX2 1
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#else
#pragma STDC FP_CONTRACT ON
#endif

typedef float v8 __attribute__((vector_size(32)));
typedef float u8 __attribute__((vector_size(32), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define OUTS 4
#define COLUMNS 3
#define TAPS 6
#define PANEL 16
// Positions of one panel that stay in the first-level cache while all taps pass over them.
#define BLOCK_POSITIONS 256
// Likewise rows of a Gram matrix's factor.
#define BLOCK_FEATURES 64

INLINE v8 load(const float *from) { return *(const u8 *)from; }

INLINE void store(float *to, v8 value) { *(u8 *)to = value; }

INLINE v8 all(float one) { return (v8){one, one, one, one, one, one, one, one}; }

INLINE v8 multiply_add(v8 a, v8 b, v8 sum) {
#ifdef WITH_AVX2
    return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

// A vector that is used several times and stays in its register: compilers otherwise load it again at each use.
INLINE v8 load_once(const float *from) {
    v8 value = load(from);
#ifdef WITH_AVX2
    __asm__("" : "+x"(value));
#endif
    return value;
}

INLINE float sum_lanes(v8 value) {
#ifdef WITH_AVX2
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    return ((value[0] + value[4]) + (value[2] + value[6])) + ((value[1] + value[5]) + (value[3] + value[7]));
#endif
}

INLINE float sum_squares(const float *from, int64_t count) {
    v8 sums[4] = {{0}, {0}, {0}, {0}};
    int64_t at = 0;
    for (; at + 4 * LANES <= count; at += 4 * LANES)
        for (int part = 0; part < 4; part++) {
            v8 value = load(from + at + part * LANES);
            sums[part] = multiply_add(value, value, sums[part]);
        }
    float total = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; at < count; at++) total += from[at] * from[at];
    return total;
}

// Extents are depth, height and width; 1 where there is none.
typedef struct {
    int64_t in_channels, out_channels, groups;
    int64_t in[3], out[3], kernel[3], stride[3], padding[3], dilation[3];
    int64_t plane[3];      // extents of one channel of the input with its zeros around it
    int64_t plane_floats;  // of one channel as it is laid out, with room for reads past its end
    int64_t grad_floats;   // of one channel of the output gradient in rows of the plane's pitch
    int64_t bias;          // 1: there is one tap more, always 1.0, whose gradient is the bias's
} Shape;

static int64_t num_taps(const Shape *s) {
    return s->in_channels / s->groups * s->kernel[0] * s->kernel[1] * s->kernel[2];
}

static int64_t num_panels(const Shape *s) { return (s->out_channels / s->groups + PANEL - 1) / PANEL; }

static int64_t num_positions(const Shape *s) { return s->out[0] * s->out[1] * s->out[2]; }

// Of one example's filter gradients: (groups, panels, taps + bias, PANEL), zero for channels that are not there.
static int64_t filter_floats(const Shape *s) { return s->groups * num_panels(s) * (num_taps(s) + s->bias) * PANEL; }

static void lay_out_input(const Shape *s, const float *from, float *to) {
    for (int64_t channel = 0; channel < s->in_channels; channel++)
        for (int64_t z = 0; z < s->in[0]; z++)
            for (int64_t y = 0; y < s->in[1]; y++) {
                int64_t row = (z + s->padding[0]) * s->plane[1] + y + s->padding[1];
                memcpy(to + channel * s->plane_floats + row * s->plane[2] + s->padding[2],
                       from + ((channel * s->in[0] + z) * s->in[1] + y) * s->in[2], sizeof(float) * s->in[2]);
            }
}

// Eight rows of eight numbers, turned.
INLINE void turn(const float *from, int64_t apart, v8 factor, float *to, int64_t to_apart) {
#ifdef WITH_AVX2
    __m256 r[8], t[8];
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) r[k] = _mm256_mul_ps(_mm256_loadu_ps(from + k * apart), (__m256)factor);
#pragma GCC unroll 4
    for (int k = 0; k < 8; k += 2) {
        t[k] = _mm256_unpacklo_ps(r[k], r[k + 1]);
        t[k + 1] = _mm256_unpackhi_ps(r[k], r[k + 1]);
    }
#pragma GCC unroll 2
    for (int k = 0; k < 8; k += 4) {
        r[k] = _mm256_shuffle_ps(t[k], t[k + 2], 0x44);
        r[k + 1] = _mm256_shuffle_ps(t[k], t[k + 2], 0xEE);
        r[k + 2] = _mm256_shuffle_ps(t[k + 1], t[k + 3], 0x44);
        r[k + 3] = _mm256_shuffle_ps(t[k + 1], t[k + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        _mm256_storeu_ps(to + k * to_apart, _mm256_permute2f128_ps(r[k], r[k + 4], 0x20));
        _mm256_storeu_ps(to + (k + 4) * to_apart, _mm256_permute2f128_ps(r[k], r[k + 4], 0x31));
    }
#else
    for (int k = 0; k < 8; k++)
        for (int at = 0; at < 8; at++) to[at * to_apart + k] = from[k * apart + at] * factor[0];
#endif
}

// One example's output gradient times a factor as panels (groups, panels, positions, PANEL).
static void lay_out_panels(const Shape *s, const float *from, float factor, float *to) {
    int64_t positions = num_positions(s), outs = s->out_channels / s->groups;
    for (int64_t group = 0; group < s->groups; group++)
        for (int64_t first = 0; first < outs; first += PANEL, to += positions * PANEL)
            for (int64_t half = first; half < first + PANEL && half < outs; half += LANES) {
                const float *rows = from + (group * outs + half) * positions;
                float *target = to + half - first;
                int64_t at = 0, width = outs - half < LANES ? outs - half : LANES;
                for (; width == LANES && at + LANES <= positions; at += LANES)
                    turn(rows + at, positions, all(factor), target + at * PANEL, PANEL);
                for (; at < positions; at++)
                    for (int64_t k = 0; k < width; k++) target[at * PANEL + k] = rows[k * positions + at] * factor;
            }
}

// Where each tap of one group's filter begins in that group's planes; the bias's begins `ones` further on.
static void find_taps(const Shape *s, int64_t *taps) {
    for (int64_t channel = 0; channel < s->in_channels / s->groups; channel++)
        for (int64_t z = 0; z < s->kernel[0]; z++)
            for (int64_t y = 0; y < s->kernel[1]; y++)
                for (int64_t x = 0; x < s->kernel[2]; x++)
                    *taps++ = channel * s->plane_floats
                              + (z * s->dilation[0] * s->plane[1] + y * s->dilation[1]) * s->plane[2]
                              + x * s->dilation[2];
}

// A block of rows of output positions: each is `width` positions, `step` pixels apart.
typedef struct {
    const int64_t *begins;  // where a row begins in a plane
    int64_t rows, width, step;
} Block;

// target (taps, PANEL) = or += the sum over the block's positions of panel * pixel.
INLINE void multiply(int taps, int halves, const Block *block, const float *panel, const float *const *pixels, int add,
                     float *target) {
    v8 sums[TAPS][2];
#pragma GCC unroll 6
    for (int k = 0; k < taps; k++)
#pragma GCC unroll 2
        for (int h = 0; h < halves; h++) sums[k][h] = (v8){0};
    for (int64_t row = 0; row < block->rows; row++) {
        const float *at[TAPS];
#pragma GCC unroll 6
        for (int k = 0; k < taps; k++) at[k] = pixels[k] + block->begins[row];
        for (int64_t x = 0; x < block->width; x++, panel += PANEL) {
            v8 left[2];
#pragma GCC unroll 2
            for (int h = 0; h < halves; h++) left[h] = load_once(panel + h * LANES);
#pragma GCC unroll 6
            for (int k = 0; k < taps; k++) {
                v8 pixel = all(at[k][x * block->step]);
#pragma GCC unroll 2
                for (int h = 0; h < halves; h++) sums[k][h] = multiply_add(left[h], pixel, sums[k][h]);
            }
        }
    }
#pragma GCC unroll 6
    for (int k = 0; k < taps; k++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            float *cell = target + k * PANEL + h * LANES;
            v8 sum = h < halves ? sums[k][h] : (v8){0};
            store(cell, add ? load(cell) + sum : sum);
        }
}

#define MULTIPLY(taps, halves) \
    static void multiply_##taps##_##halves(const Block *block, const float *panel, const float *const *pixels, \
                                           int add, float *target) { \
        multiply(taps, halves, block, panel, pixels, add, target); \
    }
MULTIPLY(6, 2) MULTIPLY(5, 2) MULTIPLY(4, 2) MULTIPLY(3, 2) MULTIPLY(2, 2) MULTIPLY(1, 2)
MULTIPLY(6, 1) MULTIPLY(5, 1) MULTIPLY(4, 1) MULTIPLY(3, 1) MULTIPLY(2, 1) MULTIPLY(1, 1)
typedef void (*Multiply)(const Block *, const float *, const float *const *, int, float *);
static const Multiply MULTIPLIES[2][TAPS] = {
    {multiply_1_1, multiply_2_1, multiply_3_1, multiply_4_1, multiply_5_1, multiply_6_1},
    {multiply_1_2, multiply_2_2, multiply_3_2, multiply_4_2, multiply_5_2, multiply_6_2},
};

// Scratch memory, cut to size piece by piece.
typedef struct {
    int64_t *taps, *begins;
    float *ones, *planes, *panels, *rest;
} Scratch;

static Scratch cut(const Shape *s, char *scratch, int64_t grads) {
    Scratch found;
    found.taps = (int64_t *)scratch;
    found.begins = found.taps + num_taps(s);
    found.ones = (float *)(found.begins + s->out[0] * s->out[1]);
    found.planes = found.ones + s->plane_floats;
    found.panels = found.planes + s->in_channels * s->plane_floats;
    found.rest = found.panels + grads;
    find_taps(s, found.taps);
    for (int64_t row = 0; row < s->out[0] * s->out[1]; row++) {
        int64_t z = row / s->out[1] * s->stride[0], y = row % s->out[1] * s->stride[1];
        found.begins[row] = (z * s->plane[1] + y) * s->plane[2];
    }
    for (int64_t at = 0; at < s->plane_floats; at++) found.ones[at] = 1.0f;
    memset(found.planes, 0, sizeof(float) * (found.rest - found.planes));
    return found;
}

static int64_t panel_floats(const Shape *s) { return s->groups * num_panels(s) * num_positions(s) * PANEL; }

// Bytes of scratch memory that the functions below need.
int64_t lepton_convolution_scratch(const Shape *s, int gram) {
    int64_t words = num_taps(s) + s->out[0] * s->out[1];
    int64_t floats = (s->in_channels + 1) * s->plane_floats;
    floats += gram ? s->out_channels * s->grad_floats + 2 * (s->plane_floats + LANES) * s->plane_floats
                   : panel_floats(s) + filter_floats(s);
    return 8 * words + 4 * floats + 64;
}

// filters = or += one example's filter gradients, from its panels and planes.
static void filter_gradients(const Shape *s, const Scratch *own, int add, float *filters) {
    int64_t count = num_taps(s), all_taps = count + s->bias, positions = num_positions(s);
    int64_t rows = s->out[0] * s->out[1], outs = s->out_channels / s->groups;
    int64_t most = BLOCK_POSITIONS / s->out[2] > 0 ? BLOCK_POSITIONS / s->out[2] : 1;
    for (int64_t part = 0; part < s->groups * num_panels(s); part++) {
        int64_t group = part / num_panels(s), first_out = part % num_panels(s) * PANEL;
        const float *planes = own->planes + group * (s->in_channels / s->groups) * s->plane_floats;
        const Multiply *multiplies = MULTIPLIES[outs - first_out > LANES];
        for (int64_t first = 0; first < rows; first += most) {
            Block block = {own->begins + first, rows - first < most ? rows - first : most, s->out[2], s->stride[2]};
            const float *panel = own->panels + (part * positions + first * s->out[2]) * PANEL;
            for (int64_t tap = 0; tap < all_taps; tap += TAPS) {
                const float *pixels[TAPS];
                int64_t taps = all_taps - tap < TAPS ? all_taps - tap : TAPS;
                for (int64_t k = 0; k < taps; k++)
                    pixels[k] = tap + k < count ? planes + own->taps[tap + k] : own->ones;
                multiplies[taps - 1](&block, panel, pixels, add || first > 0,
                                     filters + (part * all_taps + tap) * PANEL);
            }
        }
    }
}

// Each example's filter (and bias) gradients, and their squared norms (B).
//   inputs (B, I, *in), grads (B, O, *out), dense; filters (B, filter_floats), or null: not kept.
void lepton_convolution_each(const Shape *s, int64_t examples, const float *inputs, const float *grads, float *squares,
                             float *filters, char *scratch) {
    int64_t in_floats = s->in_channels * s->in[0] * s->in[1] * s->in[2];
    Scratch own = cut(s, scratch, panel_floats(s));
    for (int64_t example = 0; example < examples; example++) {
        float *target = filters ? filters + example * filter_floats(s) : own.rest;
        lay_out_input(s, inputs + example * in_floats, own.planes);
        lay_out_panels(s, grads + example * s->out_channels * num_positions(s), 1.0f, own.panels);
        filter_gradients(s, &own, 0, target);
        squares[example] = sum_squares(target, filter_floats(s));
    }
}

// Adds the examples' gradients times their factors (B) to filters (filter_floats); one of factor 0 is not looked at.
void lepton_convolution_sum(const Shape *s, int64_t examples, const float *inputs, const float *grads,
                            const float *factors, float *filters, char *scratch) {
    int64_t in_floats = s->in_channels * s->in[0] * s->in[1] * s->in[2];
    Scratch own = cut(s, scratch, panel_floats(s));
    for (int64_t example = 0; example < examples; example++) {
        if (factors[example] == 0.0f) continue;
        lay_out_input(s, inputs + example * in_floats, own.planes);
        lay_out_panels(s, grads + example * s->out_channels * num_positions(s), factors[example], own.panels);
        filter_gradients(s, &own, 1, filters);
    }
}

// OUTS rows and `wide` vectors of columns of a Gram matrix: = or += the sum over f of x[f][s + o] * x[f][t + ...].
INLINE void gram_tile(int wide, const float *left, const float *right, int64_t features, int64_t apart, int add,
                      int64_t rows, float *found, int64_t pitch) {
    v8 sums[OUTS][COLUMNS];
#pragma GCC unroll 4
    for (int o = 0; o < OUTS; o++)
#pragma GCC unroll 3
        for (int k = 0; k < wide; k++) sums[o][k] = (v8){0};
    for (int64_t f = 0; f < features; f++, left += apart, right += apart) {
        v8 rights[COLUMNS];
#pragma GCC unroll 3
        for (int k = 0; k < wide; k++) rights[k] = load_once(right + k * LANES);
#pragma GCC unroll 4
        for (int o = 0; o < OUTS; o++) {
            v8 ones = all(left[o]);
#pragma GCC unroll 3
            for (int k = 0; k < wide; k++) sums[o][k] = multiply_add(ones, rights[k], sums[o][k]);
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < OUTS; o++)
#pragma GCC unroll 3
        for (int k = 0; k < wide; k++) {
            float *cell = found + o * pitch + k * LANES;
            if (o < rows) store(cell, add ? load(cell) + sums[o][k] : sums[o][k]);
        }
}

// Gram matrix of columns: found (rows, pitch) gets, for t >= s rounded down to a vector and t < columns rounded up,
// the sum over f of x[f][s] * x[f][t], and after that a vector of zeros. Rows of x may be read a vector past the end.
static void gram_columns(const float *x, int64_t features, int64_t apart, int64_t rows, int64_t columns,
                         int64_t pitch, float *found) {
    for (int64_t first = 0; first < features; first += BLOCK_FEATURES) {
        int64_t count = features - first < BLOCK_FEATURES ? features - first : BLOCK_FEATURES;
        const float *part = x + first * apart;
        for (int64_t s = 0; s < rows; s += OUTS)
            for (int64_t t = s / LANES * LANES; t < columns; t += COLUMNS * LANES) {
                float *target = found + s * pitch + t;
                if (columns - t > 2 * LANES)
                    gram_tile(3, part + s, part + t, count, apart, first > 0, rows - s, target, pitch);
                else if (columns - t > LANES)
                    gram_tile(2, part + s, part + t, count, apart, first > 0, rows - s, target, pitch);
                else gram_tile(1, part + s, part + t, count, apart, first > 0, rows - s, target, pitch);
            }
    }
    for (int64_t s = 0; s < rows; s++) store(found + s * pitch + (columns + LANES - 1) / LANES * LANES, all(0.0f));
}

// Squared norms (B) of filter (and bias) gradients from Gram matrices of pixels: sum over positions s, t of
// <grad_s, grad_t> * (sum over taps of <pixel_(s + tap), pixel_(t + tap)> + bias). Every stride must be 1.
//   bounds (B): the square of what the sum would be if nothing cancelled; rounding is relative to this.
void lepton_convolution_gram(const Shape *s, int64_t examples, const float *inputs, const float *grads, float *squares,
                             float *bounds, char *scratch) {
    int64_t in_floats = s->in_channels * s->in[0] * s->in[1] * s->in[2];
    int64_t per_group = s->in_channels / s->groups, outs = s->out_channels / s->groups;
    int64_t n = ((s->out[0] - 1) * s->plane[1] + s->out[1] - 1) * s->plane[2] + s->out[2];
    int64_t pixels = s->plane[0] * s->plane[1] * s->plane[2], pitch = s->plane_floats;
    int64_t kernel = s->kernel[0] * s->kernel[1] * s->kernel[2];
    Scratch own = cut(s, scratch, s->out_channels * s->grad_floats);
    float *of_grads = own.rest, *of_pixels = of_grads + (s->plane_floats + LANES) * pitch;
    for (int64_t example = 0; example < examples; example++) {
        double total = 0.0, bound = 0.0;
        lay_out_input(s, inputs + example * in_floats, own.planes);
        for (int64_t row = 0; row < s->out_channels * s->out[0] * s->out[1]; row++) {
            int64_t channel = row / (s->out[0] * s->out[1]), line = row % (s->out[0] * s->out[1]);
            int64_t begin = (line / s->out[1] * s->plane[1] + line % s->out[1]) * s->plane[2];
            memcpy(own.panels + channel * s->grad_floats + begin,
                   grads + (example * s->out_channels * s->out[0] * s->out[1] + row) * s->out[2],
                   sizeof(float) * s->out[2]);
        }
        for (int64_t group = 0; group < s->groups; group++) {
            double largest = 0.0;
            gram_columns(own.panels + group * outs * s->grad_floats, outs, s->grad_floats, n, n, pitch,
                         of_grads);
            gram_columns(own.planes + group * per_group * s->plane_floats, per_group, s->plane_floats, pixels,
                         pixels, pitch, of_pixels);
            for (int64_t row = 0; row < n; row++) {
                const float *left = of_grads + row * pitch;
                v8 sums = {0};
                float diagonal = (float)s->bias;
                for (int64_t k = 0; k < kernel; k++)
                    diagonal += of_pixels[(row + own.taps[k]) * pitch + row + own.taps[k]];
                for (int64_t at = row; at < n; at += LANES) {
                    v8 of_taps = all((float)s->bias);
                    for (int64_t k = 0; k < kernel; k++)
                        of_taps += load(of_pixels + (row + own.taps[k]) * pitch + at + own.taps[k]);
                    sums = multiply_add(load(left + at), of_taps, sums);
                }
                total += 2.0 * sum_lanes(sums) - (double)left[row] * diagonal;
                largest += sqrt(fabs((double)left[row] * diagonal));
            }
            bound += largest * largest;
        }
        squares[example] = (float)total;
        bounds[example] = (float)bound;
    }
}

// Pitch of a matrix of `positions` columns, with room for what is read past them.
static int64_t sequence_pitch(int64_t positions) { return (positions + LANES - 1) / LANES * LANES + 2 * LANES; }

// Bytes of scratch memory that the function below needs.
int64_t lepton_sequence_scratch(int64_t positions, int64_t in, int64_t out) {
    int64_t pitch = sequence_pitch(positions);
    return 4 * pitch * ((in > out ? in : out) + 2 * (positions + LANES)) + 64;
}

// Gram matrix of the rows of x (positions, features).
static void gram_rows(const float *x, int64_t positions, int64_t features, float *turned, float *found) {
    int64_t pitch = sequence_pitch(positions), row = 0;
    for (; row + LANES <= positions; row += LANES) {
        int64_t at = 0;
        for (; at + LANES <= features; at += LANES)
            turn(x + row * features + at, features, all(1.0f), turned + at * pitch + row, pitch);
        for (; at < features; at++)
            for (int64_t k = 0; k < LANES; k++) turned[at * pitch + row + k] = x[(row + k) * features + at];
    }
    for (int64_t at = 0; at < features; at++) {
        for (int64_t k = row; k < positions; k++) turned[at * pitch + k] = x[k * features + at];
        for (int64_t k = positions; k < pitch; k++) turned[at * pitch + k] = 0.0f;
    }
    gram_columns(turned, features, pitch, positions, positions, pitch, found);
}

// Squared norms (B) of a linear layer's gradients on sequences, inputs (B, T, I) and grads (B, T, O), dense:
// sum over positions s, t of <grad_s, grad_t> * (<input_s, input_t> + bias).
void lepton_sequence_gram(int64_t examples, int64_t positions, int64_t in, int64_t out, float bias, const float *inputs,
                          const float *grads, float *squares, float *bounds, char *scratch) {
    int64_t pitch = sequence_pitch(positions);
    float *turned = (float *)scratch, *of_inputs = turned + (in > out ? in : out) * pitch;
    float *of_grads = of_inputs + (positions + LANES) * pitch;
    for (int64_t example = 0; example < examples; example++) {
        double total = 0.0, largest = 0.0;
        gram_rows(inputs + example * positions * in, positions, in, turned, of_inputs);
        gram_rows(grads + example * positions * out, positions, out, turned, of_grads);
        for (int64_t row = 0; row < positions; row++) {
            const float *left = of_grads + row * pitch, *right = of_inputs + row * pitch;
            v8 sums = {0};
            for (int64_t at = row; at < positions; at += LANES)
                sums = multiply_add(load(left + at), load(right + at) + all(bias), sums);
            double diagonal = (double)left[row] * (right[row] + bias);
            total += 2.0 * sum_lanes(sums) - diagonal;
            largest += sqrt(fabs(diagonal));
        }
        squares[example] = (float)total;
        bounds[example] = (float)(largest * largest);
    }
}
