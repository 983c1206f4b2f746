/* The XOR code of Gorilla (Pelkonen et al. 2015, VLDB, section 4.1.2), bits from the highest of each byte down.
 *
 * The first value is written whole. Each later one is XORed with the one before:
 *   0                          the same bits
 *   1 0 meaningful             differs only where the last written window was
 *   1 1 lead(5) length-1(6) meaningful
 * Same bytes as the Python of xor_code.py.
 */
#include <stdint.h>
#include <string.h>

typedef struct { uint8_t *out; int64_t bit; } Writer;
typedef struct { const uint8_t *in; int64_t bit, end; int bad; } Reader;

enum { MAX_LEAD = 31, LEAD_BITS = 5, LENGTH_BITS = 6 };

static void put(Writer *w, uint64_t value, int count) {
    while (count > 0) {
        int free_bits = 8 - (int)(w->bit & 7);
        int take = count < free_bits ? count : free_bits;
        uint64_t part = (value >> (count - take)) & ((1u << take) - 1u);
        w->out[w->bit >> 3] |= (uint8_t)(part << (free_bits - take));
        w->bit += take;
        count -= take;
    }
}

static uint64_t get(Reader *r, int count) {
    uint64_t value = 0;
    if (r->bit + count > r->end) { r->bad = 1; return 0; }
    while (count > 0) {
        int left = 8 - (int)(r->bit & 7);
        int take = count < left ? count : left;
        uint64_t part = (r->in[r->bit >> 3] >> (left - take)) & ((1u << take) - 1u);
        value = (value << take) | part;
        r->bit += take;
        count -= take;
    }
    return value;
}

/* out must hold 10 * count + 8 zero bytes; returns the bytes used. */
int64_t lepton_xor_encode(const uint64_t *values, int64_t count, uint8_t *out) {
    Writer w = {out, 0};
    int lead = -1, length = 0;
    if (count > 0) put(&w, values[0], 64);
    for (int64_t at = 1; at < count; at++) {
        uint64_t changed = values[at] ^ values[at - 1];
        if (changed == 0) { put(&w, 0, 1); continue; }
        int zeros = __builtin_clzll(changed), tail = __builtin_ctzll(changed);
        if (zeros > MAX_LEAD) zeros = MAX_LEAD;
        if (lead >= 0 && zeros >= lead && tail >= 64 - lead - length) {
            put(&w, 2, 2);
        } else {
            lead = zeros;
            length = 64 - zeros - tail;
            put(&w, 3, 2);
            put(&w, (uint64_t)lead, LEAD_BITS);
            put(&w, (uint64_t)(length - 1), LENGTH_BITS);
        }
        put(&w, changed >> (64 - lead - length), length);
    }
    return (w.bit + 7) >> 3;
}

/* Returns 0, or -1 where the bytes are not such a code. */
int lepton_xor_decode(const uint8_t *in, int64_t num_bytes, uint64_t *values, int64_t count) {
    Reader r = {in, 0, num_bytes * 8, 0};
    int lead = -1, length = 0;
    if (count > 0) values[0] = get(&r, 64);
    for (int64_t at = 1; at < count && !r.bad; at++) {
        uint64_t changed = 0;
        if (get(&r, 1)) {
            if (get(&r, 1)) {
                lead = (int)get(&r, LEAD_BITS);
                length = (int)get(&r, LENGTH_BITS) + 1;
            }
            if (lead < 0 || lead + length > 64) return -1;
            changed = get(&r, length) << (64 - lead - length);
        }
        values[at] = values[at - 1] ^ changed;
    }
    return r.bad ? -1 : 0;
}
