/* Normal numbers from random bits, by Box and Muller's transformation.

   A pair takes 96 bits: 64 for the radius sqrt(-2 ln u), as two words, and 32 for the angle. With a 32-bit u no
   number could exceed sqrt(2 * 33 ln 2) = 6.76: whoever saw a larger deviation would know that it is not
   all noise. With 64 bits the limit is 9.49, beyond which a true normal lies with probability 2.2e-21.

   `words` holds three planes of one word a pair: the high and the low half of u, then the angle. The numbers are two
   planes: all cosines, then all sines. The loops have no branches and no calls, so that the compiler makes
   vectors of them. Contraction is off: where a fused multiply-add is wanted it is written. Polynomials and the
   split of ln 2 are those of Moshier's Cephes library (logf, sinf, cosf). */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __FP_FAST_FMAF
#define FMA(a, b, c) __builtin_fmaf((a), (b), (c))
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

static inline float from_bits(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline uint32_t to_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

/* An unsigned word as a float, rounded once: vectors convert only signed ones. */
static inline float from_word(uint32_t word) {
    return FMA((float)(int32_t)(word >> 16), 65536.0f, (float)(int32_t)(word & 0xffffu));
}

/* sqrt(-2 ln u) for u = (high 2^32 + low + 1/2) / 2^64.
   Near one, u has no digits left as a float, and the radius would lie on a coarse grid around zero; there the
   logarithm is that of 1 - t, with t = 1 - u known to all its digits. */
static inline float radius(uint32_t high, uint32_t low) {
    float u = FMA(from_word(high), 0x1p-32f, FMA(from_word(low), 0x1p-64f, 0x1p-65f));
    float t = FMA(from_word(~high), 0x1p-32f, FMA(from_word(~low), 0x1p-64f, 0x1p-65f));
    /* u = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)) */
    uint32_t shifted = to_bits(u) - 0x3f3504f3u;
    int32_t exponent = (int32_t)shifted >> 23;
    float e = (float)exponent;
    float f = from_bits((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    uint32_t near_one = 0u - (uint32_t)(exponent == 0);
    f = from_bits((to_bits(-t) & near_one) | (to_bits(f) & ~near_one));
    /* ln(1 + f) = f - f^2/2 + f^3 p(f) */
    float p = FMA(7.0376836292e-2f, f, -1.1514610310e-1f);
    p = FMA(p, f, 1.1676998740e-1f);
    p = FMA(p, f, -1.2420140846e-1f);
    p = FMA(p, f, 1.4249322787e-1f);
    p = FMA(p, f, -1.6668057665e-1f);
    p = FMA(p, f, 2.0000714765e-1f);
    p = FMA(p, f, -2.4999993993e-1f);
    p = FMA(p, f, 3.3333331174e-1f);
    float tail = FMA(f * f, FMA(p, f, -0.5f), e * -2.12194440e-4f);
    float log_u = FMA(e, 0.693359375f, f + tail); /* below zero, as u < 1 and t > 0 */
    return sqrtf(-2.0f * log_u);
}

/* Sine and cosine of (word + 1/2) 2 pi / 2^32, without the quarter turns that `turns` counts. */
static inline uint32_t angle(uint32_t word, float *sine, float *cosine) {
    uint32_t turns = (word + 0x20000000u) >> 30;
    int32_t rest = (int32_t)(word - (turns << 30)); /* in [-2^29, 2^29) */
    float x = FMA((float)rest, 1.46291807926715968e-9f, 7.3145903963357984e-10f);
    float z = x * x;
    float s = FMA(FMA(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f);
    float c = FMA(FMA(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
    *sine = FMA(x * z, s, x);
    *cosine = FMA(z * z, c, FMA(z, -0.5f, 1.0f));
    return turns;
}

/* cosines[i], sines[i] = keep * itself + scale * normal; keep is 0 or 1 and known where this is inlined. */
static inline void pairs_into(const uint32_t *restrict high, const uint32_t *restrict low,
                              const uint32_t *restrict turn, uint64_t pairs, float scale, int keep,
                              float *restrict cosines, float *restrict sines) {
    for (uint64_t i = 0; i < pairs; i++) {
        float s, c, r = scale * radius(high[i], low[i]);
        uint32_t turns = angle(turn[i], &s, &c);
        uint32_t odd = 0u - (turns & 1u);
        uint32_t first = (to_bits(c) & ~odd) | (to_bits(s) & odd);
        uint32_t second = (to_bits(s) & ~odd) | (to_bits(c) & odd);
        float x = from_bits(first ^ (((turns + 1u) << 30) & 0x80000000u));
        float y = from_bits(second ^ ((turns << 30) & 0x80000000u));
        cosines[i] = keep ? FMA(r, x, cosines[i]) : r * x;
        sines[i] = keep ? FMA(r, y, sines[i]) : r * y;
    }
}

/* As many normals as `count`, from 3 * ceil(count / 2) words, added to `target` times `scale`. */
void lepton_add_normals(const uint32_t *words, uint64_t count, float scale, float *target) {
    uint64_t pairs = (count + 1) / 2, whole = count / 2;
    const uint32_t *low = words + pairs, *turn = words + 2 * pairs;
    float spare = 0.0f;
    pairs_into(words, low, turn, whole, scale, 1, target, target + pairs);
    if (pairs > whole)
        pairs_into(words + whole, low + whole, turn + whole, 1, scale, 1, target + whole, &spare);
}

/* The same, but `target` is overwritten. */
void lepton_fill_normals(const uint32_t *words, uint64_t count, float scale, float *target) {
    uint64_t pairs = (count + 1) / 2, whole = count / 2;
    const uint32_t *low = words + pairs, *turn = words + 2 * pairs;
    float spare = 0.0f;
    pairs_into(words, low, turn, whole, scale, 0, target, target + pairs);
    if (pairs > whole)
        pairs_into(words + whole, low + whole, turn + whole, 1, scale, 0, target + whole, &spare);
}
