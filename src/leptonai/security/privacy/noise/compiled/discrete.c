/* Exact samples of the discrete Gaussian and the discrete Laplace distribution, in integers only.

   The integers are cut into buckets of 2^width_bits. A bucket is picked by an alias table whose integer weights are
   the parts of the true weights that can be written in it; the rest, with a probability of some 2^-55, is decided by
   `rare` in Python with as many digits as it takes. Within a bucket each integer is as likely as another, and is kept with
   probability exp(-gamma), gamma rational, below one: a coin decided by comparing integers (von Neumann; Canonne, Kamath
   and Steinke 2020, algorithm 1). No step rounds. */

#include <stdint.h>

typedef unsigned __int128 wide;

struct stream {
    const uint64_t *words; /* where `refill` writes */
    uint64_t size, left;
    int (*refill)(void); /* 0: failed */
    int failed;
};

static uint64_t next_word(struct stream *from) {
    if (!from->left) {
        if (from->failed || !from->refill()) { from->failed = 1; return 0; }
        from->left = from->size;
    }
    return from->words[from->size - from->left--];
}

/* Yes with probability part / whole, part < whole < 2^127: bit by bit against its binary digits. */
static int ratio_coin(struct stream *from, wide part, wide whole) {
    for (;;) {
        uint64_t word = next_word(from);
        for (int bit = 63; bit >= 0; bit--) {
            part *= 2;
            unsigned digit = part >= whole, drawn = (unsigned)(word >> bit) & 1u;
            if (digit) part -= whole;
            if (drawn != digit) return drawn < digit;
            if (!part) return 0; /* the number drawn is not below what has no digits left */
        }
        if (from->failed) return 0;
    }
}

/* Yes with probability exp(-part / whole), part < whole < 2^64; `word` is the first to use. */
static int exp_coin(struct stream *from, uint64_t word, uint64_t part, uint64_t whole) {
    wide scaled = (wide)part << 64;
    uint64_t gamma = (uint64_t)(scaled / whole), rest = (uint64_t)(scaled % whole);
    for (uint64_t k = 1; !from->failed; k++) { /* heads with probability gamma / k, till the first tails */
        wide low = (wide)word * k;
        int heads;
        if (low + k <= gamma) heads = 1;
        else if (low > gamma) heads = 0;
        else heads = ratio_coin(from, (gamma - low) * whole + rest, (wide)whole * k);
        if (!heads) return (int)(k & 1);
        word = next_word(from);
    }
    return 0;
}

/* exp_coin by itself, for its tests: 0 or 1, or -1 if the words could not be refilled. */
int lepton_exp_coin(uint64_t part, uint64_t whole, const uint64_t *words, uint64_t size, int (*refill)(void)) {
    struct stream from = {words, size, 0, refill, 0};
    uint64_t word = next_word(&from);
    int kept = exp_coin(&from, word, part, whole);
    return from.failed ? -1 : kept;
}

/* As many samples as `count`; 0 if a callback failed, else 1.

   cuts, aliases: the alias table of 2^slot_bits slots; a slot's cut is of 64 - slot_bits - dropped_bits bits.
   sure: for each bucket, the words from which on its integers are kept whatever gamma they have; the bucket
   `rare_bucket` stands for what the table cannot decide.
   part, whole: gamma of offset j in bucket k is j (2 k width + j) part / whole, or j part / whole if linear.
   rare: 0 failed, 1 gave a sample, 2 rejected. */
int lepton_discrete(const uint64_t *cuts, const uint32_t *aliases, const uint64_t *sure, uint32_t rare_bucket,
                    int slot_bits, int dropped_bits, int width_bits, int linear, uint64_t part, uint64_t whole,
                    const uint64_t *words, uint64_t size, int (*refill)(void), int (*rare)(int64_t *),
                    int64_t *samples, uint64_t count) {
    struct stream from = {words, size, 0, refill, 0};
    const uint64_t mask = ((uint64_t)1 << width_bits) - 1;
    for (uint64_t i = 0; i < count;) {
        uint64_t pick = next_word(&from), place = next_word(&from), word = next_word(&from);
        if (from.failed) return 0;
        uint32_t bucket = (uint32_t)(pick >> (64 - slot_bits));
        if ((pick << slot_bits >> slot_bits >> dropped_bits) >= cuts[bucket]) bucket = aliases[bucket];
        if (bucket == rare_bucket) {
            int answer = rare(&samples[i]);
            if (!answer) return 0;
            i += answer == 1;
            continue;
        }
        uint64_t offset = place & mask, start = (uint64_t)bucket << width_bits, value = start + offset;
        int negative = (int)(place >> 63);
        if (!value && negative) continue; /* zero has one sign */
        if (word < sure[bucket]) {
            uint64_t steps = linear ? offset : offset * (2 * start + offset);
            if (!exp_coin(&from, word, steps * part, whole)) continue;
        }
        samples[i++] = negative ? -(int64_t)value : (int64_t)value;
    }
    return !from.failed;
}
