/* Class ids of neighbouring rows: see mask_targets of ../backend.h. Comparisons are made by sign bits: on many
 * machines, vectors of 64-bit integers cannot be compared. */

#define SIGN ((uint64_t)1 << 63)

/* Masks an id unless the sign bit of `unmasked` is set. Adds a sign bit to `masked` if it is not, and to `bad` if the
 * id is unmasked and no class. */
TL_TARGET TL_INLINE int64_t JOIN(mask_target_, BACKEND)(uint64_t id, uint64_t unmasked, uint64_t last, uint64_t *bad,
                                                        uint64_t *masked) {
    uint64_t all = 0 - (unmasked >> 63);
    *bad |= unmasked & (id | (last - id));
    *masked |= ~unmasked;
    id |= id >> 63; /* one more, if it is even and negative: no unmasked id looks masked */
    return (int64_t)((id & all) | (SIGN & ~all));
}

TL_TARGET static int JOIN(mask_targets_, BACKEND)(const tl_target_range *range, const char *mask, ptrdiff_t mask_stride,
                                                  size_t count, int64_t *targets) {
    const uint64_t last = (uint64_t)range->classes - 1, ignored = (uint64_t)range->ignored;
    uint64_t bad = 0, masked = 0;
    for (size_t i = 0; !mask && i < count; i++) /* nearly always, all ids are classes that count */
        bad |= (uint64_t)targets[i] | (last - (uint64_t)targets[i]);
    if (!mask && !(bad >> 63) && !(range->has_ignored && ignored <= last))
        return 0;
    bad = 0;
    const uint64_t always = range->has_ignored ? 0 : SIGN;
    for (size_t i = 0; i < count; i++) { /* a loop without mask, and one with it */
        uint64_t other = (uint64_t)targets[i] ^ ignored; /* has a sign bit, or -other has, unless it is 0 */
        uint64_t unmasked = other | (0 - other) | always;
        if (mask)
            unmasked &= 0 - (uint64_t)(mask[(ptrdiff_t)i * mask_stride] != 0);
        targets[i] = JOIN(mask_target_, BACKEND)((uint64_t)targets[i], unmasked, last, &bad, &masked);
    }
    return (bad >> 63 ? TL_SOME_BAD : 0) | (masked >> 63 ? TL_SOME_MASKED : 0);
}

#undef SIGN
