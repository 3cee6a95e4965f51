/* CRC-64/XZ (ECMA-182, reflected): folded with PCLMULQDQ where the CPU has it, else by tables.
 *
 * Bit i of a 64-bit word stands for x^(63-i), so that shifting right multiplies by x.
 */
#ifndef CRC64_H
#define CRC64_H

#include <stdint.h>
#include <string.h>

#define CRC64_POLY 0xC96C5795D7870F42ull
#define CRC64_ONE 0x8000000000000000ull

static uint64_t crc64_table[8][256];

static void crc64_make_tables(void) {
    for (int i = 0; i < 256; i++) {
        uint64_t c = (uint64_t)i;
        for (int k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ CRC64_POLY : c >> 1;
        crc64_table[0][i] = c;
    }
    for (int i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++)
            crc64_table[t][i] =
                (crc64_table[t - 1][i] >> 8) ^ crc64_table[0][crc64_table[t - 1][i] & 0xff];
}

/* The register after `size` more bytes, without the inversions at both ends. */
static uint64_t crc64_by_tables(uint64_t c, const unsigned char *p, size_t size) {
    for (; size >= 8; size -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        w ^= c;
        c = 0;
        for (int t = 0; t < 8; t++) c ^= crc64_table[7 - t][(w >> (8 * t)) & 0xff];
    }
    while (size--) c = (c >> 8) ^ crc64_table[0][(c ^ *p++) & 0xff];
    return c;
}

static uint64_t crc64_multiply(uint64_t a, uint64_t b) {
    uint64_t product = 0;
    for (; a; a <<= 1) {
        if (a & CRC64_ONE) product ^= b;
        b = b & 1 ? (b >> 1) ^ CRC64_POLY : b >> 1;
    }
    return product;
}

/* x^n modulo the polynomial. */
static uint64_t crc64_x_to(uint64_t n) {
    uint64_t result = CRC64_ONE, power = CRC64_ONE >> 1;
    for (; n; n >>= 1) {
        if (n & 1) result = crc64_multiply(result, power);
        power = crc64_multiply(power, power);
    }
    return result;
}

/* CRC of two pieces joined, from those of each and the size of the second. */
static uint64_t crc64_join(uint64_t first, uint64_t second, uint64_t second_size) {
    return crc64_multiply(first, crc64_x_to(second_size * 8)) ^ second;
}

#if defined(__x86_64__)
#include <immintrin.h>

static uint64_t crc64_fold[4]; /* low and high factor over 1024 bits, then over 128 */
static int crc64_can_fold;

static void crc64_make_factors(void) {
    /* A carry-less product of two such words comes out multiplied by x: hence the -1. */
    crc64_fold[0] = crc64_x_to(1024 + 64 - 1);
    crc64_fold[1] = crc64_x_to(1024 - 1);
    crc64_fold[2] = crc64_x_to(128 + 64 - 1);
    crc64_fold[3] = crc64_x_to(128 - 1);
    crc64_can_fold = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

#define FOLD(v, k) \
    _mm_xor_si128(_mm_clmulepi64_si128(v, k, 0x00), _mm_clmulepi64_si128(v, k, 0x11))

__attribute__((target("pclmul,sse4.1")))
static uint64_t crc64_by_folding(uint64_t c, const unsigned char *p, size_t size) {
    const __m128i far = _mm_loadu_si128((const __m128i *)&crc64_fold[0]);
    const __m128i near = _mm_loadu_si128((const __m128i *)&crc64_fold[2]);
    __m128i lane[8];
    for (int i = 0; i < 8; i++) lane[i] = _mm_loadu_si128((const __m128i *)p + i);
    lane[0] = _mm_xor_si128(lane[0], _mm_cvtsi64_si128((long long)c));
    for (p += 128, size -= 128; size >= 128; p += 128, size -= 128)
        for (int i = 0; i < 8; i++)
            lane[i] =
                _mm_xor_si128(FOLD(lane[i], far), _mm_loadu_si128((const __m128i *)p + i));
    __m128i rest = lane[0];
    for (int i = 1; i < 8; i++) rest = _mm_xor_si128(FOLD(rest, near), lane[i]);
    unsigned char last[16];
    _mm_storeu_si128((__m128i *)last, rest);
    return crc64_by_tables(crc64_by_tables(0, last, 16), p, size);
}
#else
static int crc64_can_fold;
static void crc64_make_factors(void) {}
static uint64_t crc64_by_folding(uint64_t c, const unsigned char *p, size_t size) {
    return crc64_by_tables(c, p, size);
}
#endif

static void crc64_init(void) {
    crc64_make_tables();
    crc64_make_factors();
}

/* CRC of what came before and `size` more bytes; begin with 0. */
static uint64_t crc64(uint64_t before, const void *bytes, size_t size) {
    const unsigned char *p = bytes;
    uint64_t c = ~before;
    c = crc64_can_fold && size >= 256 ? crc64_by_folding(c, p, size) : crc64_by_tables(c, p, size);
    return ~c;
}
#endif
