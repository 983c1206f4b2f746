/* One optimiser step on flat float32 arrays, with the undo journal, and copying that looks for what is not finite.
 *
 * Every operation is done in float32, in the order written, and rounded by itself (no contraction, no fast
 * maths): the results are those of the formulas in numpy_kernels.py to the bit, whatever the compiler and
 * wherever a range is cut. Plain C11; the loops are left to the compiler to vectorise.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <math.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

/* Not inlined, so that no copy and no update can be moved past the marker between them, whatever is known here
 * about which arrays overlap. */
#define APART __attribute__((noinline)) static

enum rule { SGD_PLAIN, SGD_MOMENTUM, SGD_NESTEROV, ADAM, ADAGRAD };

APART void sgd_plain(float *restrict p, const float *restrict g, size_t n, const float *k)
{
    const float lr = k[0], decay = k[1];
    if (decay != 0.0f)
        for (size_t i = 0; i < n; i++) p[i] = p[i] - (g[i] + p[i] * decay) * lr;
    else
        for (size_t i = 0; i < n; i++) p[i] = p[i] - g[i] * lr;
}

APART void sgd_momentum(float *restrict p, const float *restrict g, float *restrict m, size_t n, const float *k)
{
    const float lr = k[0], decay = k[1], factor = k[2];
    if (decay != 0.0f)
        for (size_t i = 0; i < n; i++) {
            m[i] = m[i] * factor + (g[i] + p[i] * decay);
            p[i] = p[i] - m[i] * lr;
        }
    else
        for (size_t i = 0; i < n; i++) {
            m[i] = m[i] * factor + g[i];
            p[i] = p[i] - m[i] * lr;
        }
}

APART void sgd_nesterov(float *restrict p, const float *restrict g, float *restrict m, size_t n, const float *k)
{
    const float lr = k[0], decay = k[1], factor = k[2], lr_factor = k[3];
    if (decay != 0.0f)
        for (size_t i = 0; i < n; i++) {
            const float d = g[i] + p[i] * decay;
            m[i] = m[i] * factor + d;
            p[i] = (p[i] - d * lr) - m[i] * lr_factor;
        }
    else
        for (size_t i = 0; i < n; i++) {
            m[i] = m[i] * factor + g[i];
            p[i] = (p[i] - g[i] * lr) - m[i] * lr_factor;
        }
}

APART void adam(float *restrict p, const float *restrict g, float *restrict m, float *restrict v, size_t n,
                const float *k)
{
    const float rate = k[0], keep = k[1], new1 = k[2], new2 = k[3], beta2 = k[4], scale = k[5], eps = k[6];
    for (size_t i = 0; i < n; i++) {
        m[i] = m[i] + (g[i] - m[i]) * new1;
        v[i] = v[i] * beta2 + (g[i] * g[i]) * new2;
        p[i] = p[i] * keep - (m[i] / (sqrtf(v[i]) * scale + eps)) * rate;
    }
}

APART void adagrad(float *restrict p, const float *restrict g, float *restrict s, size_t n, const float *k)
{
    const float lr = k[0], decay = k[1], eps = k[2];
    if (decay != 0.0f)
        for (size_t i = 0; i < n; i++) {
            const float d = g[i] + p[i] * decay;
            s[i] = s[i] + d * d;
            p[i] = p[i] - (d / (sqrtf(s[i]) + eps)) * lr;
        }
    else
        for (size_t i = 0; i < n; i++) {
            s[i] = s[i] + g[i] * g[i];
            p[i] = p[i] - (g[i] / (sqrtf(s[i]) + eps)) * lr;
        }
}

APART void update(int rule, float *p, const float *g, float *a, float *b, size_t n, const float *k)
{
    switch (rule) {
    case SGD_PLAIN: sgd_plain(p, g, n, k); break;
    case SGD_MOMENTUM: sgd_momentum(p, g, a, n, k); break;
    case SGD_NESTEROV: sgd_nesterov(p, g, a, n, k); break;
    case ADAM: adam(p, g, a, b, n, k); break;
    case ADAGRAD: adagrad(p, g, a, n, k); break;
    }
}

/* Not memcpy: for a few kB that goes around the caches on some processors, and what is copied is used at once. */
APART void copy(float *restrict to, const float *restrict from, size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] = from[i];
}

struct arrays {
    float *p, *a, *b;
};

/* Old values from..stop of a block that begins at `at`, to its slot: rows of `block`. */
APART void keep_old(float *slot, uint64_t block, const struct arrays *x, uint64_t at, uint64_t from, uint64_t stop)
{
    if (from >= stop) return;
    copy(slot + from, x->p + at + from, stop - from);
    if (x->a != NULL) copy(slot + block + from, x->a + at + from, stop - from);
    if (x->b != NULL) copy(slot + 2 * block + from, x->b + at + from, stop - from);
}

enum { STRIDE = 256 }; /* elements stepped, then as many of the next block copied: memory is read at one pace */

/* Step n elements, of which the first is element `first` of its chunk; 1: done, 0: `fuse` ended it.
 *
 * p, g, a, b: parameters, gradient, states (NULL where the rule has none); k: the constants of the rule.
 * journal: NULL, or two slots of rows x block floats each. Block number i of the chunk is copied to slot i % 2,
 * then marker becomes tag + ((i + 1) << 32), then the block changes, and meanwhile block i + 1 is copied to the
 * other slot: whenever the process ends, the marker names a block whose old values are whole, all blocks before
 * it are done, and those behind it have not changed.
 * fuse: counts down, and at 0 ends it there like a death, for tests; negative: never.
 */
int lepton_step(int rule, float *p, const float *g, float *a, float *b, uint64_t n, const float *k,
                float *journal, _Atomic uint64_t *marker, uint64_t tag, uint64_t first, uint64_t block,
                int64_t *fuse)
{
    const struct arrays x = {p, a, b};
    const uint64_t slot = (1 + (a != NULL) + (b != NULL)) * block;
    uint64_t number = first / block, at = 0, next = (number + 1) * block - first;
    if (next > n) next = n;
    if (journal != NULL) {
        if ((*fuse)-- == 0) return 0;
        keep_old(journal + (number & 1) * slot, block, &x, 0, 0, next / 2);
        if ((*fuse)-- == 0) return 0;
        keep_old(journal + (number & 1) * slot, block, &x, 0, next / 2, next);
    }
    while (at < n) {
        const uint64_t size = next - at, left = n - next, coming = left < block ? left : block;
        if (journal != NULL) {
            if ((*fuse)-- == 0) return 0;
            atomic_thread_fence(memory_order_release); /* the copies come before the marker ... */
            atomic_store_explicit(marker, tag + ((number + 1) << 32), memory_order_release);
            atomic_thread_fence(memory_order_release); /* ... and the marker before the changes */
        }
        const uint64_t whole = *fuse == 0 ? size / 2 : size;
        float *other = journal == NULL ? NULL : journal + ((number + 1) & 1) * slot;
        for (uint64_t from = 0, stop; from < whole; from = stop) {
            stop = whole - from > STRIDE ? from + STRIDE : whole;
            update(rule, p + at + from, g + at + from, a ? a + at + from : NULL, b ? b + at + from : NULL, stop - from, k);
            if (journal != NULL) keep_old(other, block, &x, next, from, stop < coming ? stop : coming);
        }
        if ((*fuse)-- == 0) return 0;
        if (journal != NULL) keep_old(other, block, &x, next, size, coming);
        at = next;
        next += coming;
        number++;
    }
    return 1;
}

static inline uint32_t bad_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u;
}

/* 1: no number is infinite or NaN. */
int lepton_all_finite(const float *from, uint64_t n)
{
    for (uint64_t at = 0; at < n;) {
        const uint64_t stop = n - at > 16384 ? at + 16384 : n;
        uint32_t bad = 0;
        for (; at < stop; at++) bad |= bad_bits(from[at]);
        if (bad) return 0;
    }
    return 1;
}

/* Copy all of it; 1: no number is infinite or NaN. The arrays do not overlap. `streaming`: past the caches. */
int lepton_copy_checked(float *restrict to, const float *restrict from, uint64_t n, int streaming)
{
    uint32_t bad = 0;
    uint64_t at = 0;
#ifdef __AVX__
    if (streaming) {
        const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));
        __m256 unsound = _mm256_setzero_ps();
        for (; at < n && ((uintptr_t)(to + at) & 31); at++) {
            to[at] = from[at];
            bad |= bad_bits(from[at]);
        }
        for (; at + 8 <= n; at += 8) {
            const __m256 value = _mm256_loadu_ps(from + at);
            _mm256_stream_ps(to + at, value);
            /* The exponent alone: an infinity where it is all ones, a finite number where not. */
            unsound = _mm256_or_ps(unsound, _mm256_cmp_ps(_mm256_and_ps(value, mask), mask, _CMP_EQ_OQ));
        }
        _mm_sfence();
        bad |= _mm256_movemask_ps(unsound) != 0;
    }
#else
    (void)streaming;
#endif
    for (; at < n; at++) {
        to[at] = from[at];
        bad |= bad_bits(from[at]);
    }
    return bad == 0;
}
