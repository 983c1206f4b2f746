/* Walks a Prometheus WriteRequest (protobuf) once and lays its samples out as arrays.
 *
 * The result is that of the Python walk in remote_write_walk.py, field by field; the test compares the two.
 * Nothing is allocated, every read is checked against the end of its message.
 */
#include <stdint.h>
#include <string.h>

enum { OK = 0, BROKEN = -1, FULL = -2 };
enum { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

typedef struct { const uint8_t *at, *end; } Span;

static int read_varint(Span *s, uint64_t *out) {
    uint64_t value = 0;
    for (int count = 0; count < 10; count++) {
        if (s->at >= s->end) return 0;
        uint8_t byte = *s->at++;
        value |= (uint64_t)(byte & 0x7F) << (7 * count);
        if (byte < 0x80) { *out = value; return 1; }
    }
    return 0;
}

typedef struct { uint64_t number; int kind; uint64_t value; const uint8_t *from, *to; } Field;

static int next_field(Span *s, Field *f) {
    uint64_t key, size;
    if (!read_varint(s, &key)) return 0;
    f->number = key >> 3;
    f->kind = (int)(key & 7);
    f->value = 0;
    if (f->number == 0 || f->number > ((1u << 29) - 1)) return 0;
    f->from = s->at;
    switch (f->kind) {
    case VARINT:
        if (!read_varint(s, &f->value)) return 0;
        break;
    case FIXED64: size = 8; goto skip;
    case FIXED32: size = 4; goto skip;
    case LENGTH:
        if (!read_varint(s, &size)) return 0;
        f->from = s->at;
    skip:
        if (size > (uint64_t)(s->end - s->at)) return 0;
        s->at += size;
        break;
    default: return 0;
    }
    f->to = s->at;
    return 1;
}

/* Where a series lies: [labels_from, labels_to) holds all its label fields and nothing else, unless irregular. */
typedef struct {
    int64_t from, to, labels_from, labels_to, first_sample, num_samples, irregular, num_others;
} SeriesSpan;

static int read_sample(Span s, double *value, int64_t *time_ms) {
    Field f;
    *value = 0.0;
    *time_ms = 0;
    while (s.at < s.end) {
        if (!next_field(&s, &f)) return BROKEN;
        if (f.number == 1 && f.kind == FIXED64) memcpy(value, f.from, 8);
        else if (f.number == 2 && f.kind == VARINT) *time_ms = (int64_t)f.value;
    }
    return OK;
}

static int read_series(const uint8_t *base, Span s, SeriesSpan *out, double *values, int64_t *times_ms,
                       int64_t room, int64_t *num_samples) {
    Field f;
    out->from = s.at - base;
    out->to = s.end - base;
    out->labels_from = out->labels_to = out->from;
    out->first_sample = *num_samples;
    out->irregular = out->num_others = 0;
    int any = 0;
    while (s.at < s.end) {
        int64_t start = s.at - base;
        if (!next_field(&s, &f)) return BROKEN;
        if (f.number == 1 && f.kind == LENGTH) {
            if (!any) out->labels_from = start;
            else if (out->labels_to != start) out->irregular = 1;
            out->labels_to = f.to - base;
            any = 1;
        } else if (f.number == 2 && f.kind == LENGTH) {
            if (*num_samples >= room) return FULL;
            Span inner = {f.from, f.to};
            int rc = read_sample(inner, values + *num_samples, times_ms + *num_samples);
            if (rc != OK) return rc;
            ++*num_samples;
        } else {
            out->num_others++;
        }
    }
    out->num_samples = *num_samples - out->first_sample;
    return OK;
}

/* counts: series, samples, metadata. FULL: make the arrays larger and call again. */
int lepton_walk_write(const uint8_t *data, int64_t size, SeriesSpan *series, int64_t room_series, double *values,
                      int64_t *times_ms, int64_t room_samples, int64_t *metadata, int64_t room_metadata,
                      int64_t *counts) {
    Span s = {data, data + size};
    Field f;
    counts[0] = counts[1] = counts[2] = 0;
    while (s.at < s.end) {
        if (!next_field(&s, &f)) return BROKEN;
        if (f.kind != LENGTH) continue;
        if (f.number == 1) {
            if (counts[0] >= room_series) return FULL;
            Span inner = {f.from, f.to};
            int rc = read_series(data, inner, series + counts[0], values, times_ms, room_samples, counts + 1);
            if (rc != OK) return rc;
            counts[0]++;
        } else if (f.number == 3) {
            if (counts[2] >= room_metadata) return FULL;
            metadata[2 * counts[2]] = f.from - data;
            metadata[2 * counts[2] + 1] = f.to - data;
            counts[2]++;
        }
    }
    return OK;
}
