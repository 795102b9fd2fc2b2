// Vectors of 16 lanes, the one vocabulary that every kernel is written in.
//
// The types are GCC's generic vectors, 64 bytes wide: on AVX-512 one register, on AVX2 two, elsewhere whatever the
// compiler makes of them. Plain arithmetic (+ - * /) needs no more. The few operations that decide speed have a form
// per instruction set here, and nowhere else:
//
//     fma        multiply and add; explicit, since contraction is off (-ffp-contract=off): a compiler free to fuse
//                would fuse differently in two instances of one template, and the same row would differ by its company
//     dot_bf16   acc[i] += a[2i] * b[2i] + a[2i+1] * b[2i+1]        pairs of bfloat16 into float32   (vdpbf16ps)
//     dot_i8     acc[i] += sum over 4 of u8[4i+j] * s8[4i+j]        quads of bytes into int32, exact (vpdpbusd)
//
// Rounding may differ between instruction sets (vdpbf16ps flushes denormals); within one it is fixed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

constexpr int kLanes = 16;

typedef uint16_t bf16;  // the upper half of a float32
typedef uint16_t f16;   // IEEE half

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int16_t i16x32 __attribute__((vector_size(64)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

// ---- load, store, broadcast ---------------------------------------------------------------------------------

template <class Vector> INLINE Vector load(const void* from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}
template <class Vector> INLINE void store(void* to, Vector v) { memcpy(to, &v, sizeof v); }

INLINE f32x16 load_f32(const float* from) { return load<f32x16>(from); }
INLINE void store_f32(float* to, f32x16 v) { store(to, v); }
INLINE f32x16 splat(float x) { return x - f32x16{}; }
INLINE i32x16 splat(int32_t x) { return x - i32x16{}; }
INLINE i32x16 splat_bytes(const void* four) {  // four bytes (or two bf16) to every lane
    int32_t x;
    memcpy(&x, four, 4);
    return splat(x);
}
INLINE f32x16 as_f32(i32x16 v) { return (f32x16)v; }
INLINE i32x16 as_i32(f32x16 v) { return (i32x16)v; }

INLINE f32x16 to_f32(i32x16 v) { return __builtin_convertvector(v, f32x16); }

// ---- float arithmetic ---------------------------------------------------------------------------------------

INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    __m256 x[2], y[2], z[2];
    memcpy(x, &a, 64), memcpy(y, &b, 64), memcpy(z, &c, 64);
    for (int i = 0; i < 2; i++) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
    memcpy(&c, z, 64);
    return c;
#else
    return a * b + c;
#endif
}

INLINE f32x16 max(f32x16 a, f32x16 b) {  // b where a is NaN
#if defined(__AVX512F__)
    return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

INLINE f32x16 abs(f32x16 v) { return as_f32(as_i32(v) & 0x7fffffff); }

INLINE f32x16 round_even(f32x16 v) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_roundscale_ps((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const f32x16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds |v| < 2^22 to an integer
    return (v + magic) - magic;
#endif
}

INLINE i32x16 to_i32(f32x16 v) {  // of values that are integers already
    return __builtin_convertvector(v, i32x16);
}

// Sums and maxima over the lanes, as a tree of fixed shape.
INLINE float sum(f32x16 v) {
    float lane[16];
    store_f32(lane, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}
INLINE float largest(f32x16 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float lane[16];
    store_f32(lane, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
#endif
}
INLINE int32_t sum(i32x16 v) {
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += v[i];
    return total;
}

// 2^n for integral n in [-126, 127].
INLINE f32x16 exp2_integral(f32x16 n) { return as_f32((to_i32(n) + 127) << 23); }

// e^x, relative error about 1e-7 (the polynomial of Cephes' expf). Below -87 it is e^-87, above 88 e^88; NaN stays.
INLINE f32x16 exp(f32x16 x) {
    const f32x16 low = splat(-87.0f), high = splat(88.0f);
    f32x16 y = x < low ? low : x;  // comparisons are false for NaN, which passes
    y = y > high ? high : y;
    const f32x16 n = round_even(y * 1.44269504f);
    f32x16 r = fma(n, splat(-0.693359375f), y);
    r = fma(n, splat(2.12194440e-4f), r);
    f32x16 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
#if defined(__AVX512F__)
    return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return as_f32(as_i32(p) + (to_i32(n) << 23));
#endif
}

// 2^x, relative error 3e-6 (a minimax polynomial), exact for integers. Below -126 it is 2^-126; x is at most 127; NaN
// stays.
INLINE f32x16 exp2(f32x16 x) {
    const f32x16 y = max(splat(-126.0f), x);
    const f32x16 n = round_even(y), f = y - n;
    f32x16 p = splat(9.58285322e-3f);
    p = fma(p, f, splat(5.59064262e-2f));
    p = fma(p, f, splat(2.40240986e-1f));
    p = fma(p, f, splat(6.93124193e-1f));
    p = fma(p, f, splat(1.0f));
#if defined(__AVX512F__)
    return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return as_f32(as_i32(p) + (to_i32(n) << 23));
#endif
}

// ---- bfloat16 and half --------------------------------------------------------------------------------------

INLINE f32x16 load_bf16(const bf16* from) {
    const u32x16 wide = __builtin_convertvector(load<u16x16>(from), u32x16);
    return (f32x16)(wide << 16);
}

// To nearest, ties to even; NaN stays NaN.
INLINE u16x16 to_bf16(f32x16 v) {
#if defined(__AVX512BF16__)
    return (u16x16)_mm512_cvtneps_pbh((__m512)v);
#else
    const u32x16 bits = (u32x16)v;
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const u32x16 quiet = (bits >> 16) | 0x40;
    rounded = v == v ? rounded : quiet;
    return __builtin_convertvector(rounded, u16x16);
#endif
}
INLINE void store_bf16(bf16* to, f32x16 v) { store(to, to_bf16(v)); }

INLINE float bf16_to_float(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE bf16 float_to_bf16(float x) { return to_bf16(splat(x))[0]; }

INLINE f32x16 load_f16(const f16* from) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    const u32x16 h = __builtin_convertvector(load<u16x16>(from), u32x16);
    // Shift the exponent into place and rescale by 2^112: right for zero, denormal and normal halves.
    const f32x16 magnitude = (f32x16)((h & 0x7fff) << 13) * 5.192296858534828e33f;
    return (f32x16)((u32x16)magnitude | (h & 0x8000) << 16);
#endif
}

// ---- dot products -------------------------------------------------------------------------------------------

INLINE f32x16 dot_bf16(f32x16 acc, i32x16 a, i32x16 b) {
#if defined(__AVX512BF16__)
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    const i32x16 upper = splat((int32_t)0xffff0000);
    acc = fma(as_f32(a & upper), as_f32(b & upper), acc);
    return fma(as_f32(a << 16), as_f32(b << 16), acc);
#endif
}

#if defined(__AVX512F__) && !defined(__AVX512VNNI__)
INLINE __m512i madd_bytes(__m512i u, __m512i s) {  // pairs of 16-bit products, for even and odd bytes apart
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    return _mm512_add_epi32(even, _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8)));
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
INLINE __m256i madd_bytes(__m256i u, __m256i s) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    return _mm256_add_epi32(even, _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8)));
}
#endif

// Exact on every instruction set: (the saturating vpmaddubsw is not used).
INLINE void dot_i8(i32x16& acc, i32x16 unsigned_bytes, i32x16 signed_bytes) {
#if defined(__AVX512VNNI__)
    // As assembly: through the intrinsic, GCC 12 spills the accumulators of a large tile and halves the speed.
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
#elif defined(__AVX512F__)
    acc += (i32x16)madd_bytes((__m512i)unsigned_bytes, (__m512i)signed_bytes);
#elif defined(__AVX2__)
    __m256i u[2], s[2], a[2];
    memcpy(u, &unsigned_bytes, 64), memcpy(s, &signed_bytes, 64), memcpy(a, &acc, 64);
    for (int i = 0; i < 2; i++) a[i] = _mm256_add_epi32(a[i], madd_bytes(u[i], s[i]));
    memcpy(&acc, a, 64);
#else
    for (int shift = 0; shift < 32; shift += 8)
        acc += ((unsigned_bytes >> shift) & 255) * ((signed_bytes << (24 - shift)) >> 24);
#endif
}

// ---- interleaving -------------------------------------------------------------------------------------------

// Words of 16 bits from two rows side by side: low = x0 y0 x1 y1 ... x15 y15, high = x16 y16 ... x31 y31.
INLINE void interleave(i32x16 x, i32x16 y, i32x16& low, i32x16& high) {
#if defined(__AVX512BW__)
    const __m512i lower = _mm512_unpacklo_epi16((__m512i)x, (__m512i)y);  // of each quarter
    const __m512i upper = _mm512_unpackhi_epi16((__m512i)x, (__m512i)y);
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    low = (i32x16)_mm512_permutex2var_epi64(lower, first, upper);
    high = (i32x16)_mm512_permutex2var_epi64(lower, second, upper);
#elif defined(__AVX2__)
    __m256i a[2], b[2], out[4];
    memcpy(a, &x, 64), memcpy(b, &y, 64);
    for (int i = 0; i < 2; i++) {
        const __m256i lower = _mm256_unpacklo_epi16(a[i], b[i]), upper = _mm256_unpackhi_epi16(a[i], b[i]);
        out[2 * i] = _mm256_permute2x128_si256(lower, upper, 0x20);
        out[2 * i + 1] = _mm256_permute2x128_si256(lower, upper, 0x31);
    }
    memcpy(&low, out, 64), memcpy(&high, out + 2, 64);
#else
    uint16_t a[32], b[32], out[64];
    store(a, x), store(b, y);
    for (int i = 0; i < 32; i++) out[2 * i] = a[i], out[2 * i + 1] = b[i];
    low = load<i32x16>(out), high = load<i32x16>(out + 32);
#endif
}

INLINE void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }
INLINE void prefetch_write(const void* p) { __builtin_prefetch(p, 1, 3); }

// ---- the processor's own width ------------------------------------------------------------------------------
//
// GCC keeps vectors wider than a register in memory, so the inner loops of products, whose sums must stay in
// registers, are written in vectors of `kNative` lanes: on AVX-512 the same 16 as above, elsewhere fewer.

#if defined(__AVX512F__)
constexpr int kNative = 16;
#elif defined(__AVX2__)
constexpr int kNative = 8;
#else
constexpr int kNative = 4;
#endif

typedef float f32xn __attribute__((vector_size(4 * kNative)));
typedef int32_t i32xn __attribute__((vector_size(4 * kNative)));
typedef uint32_t u32xn __attribute__((vector_size(4 * kNative)));

INLINE i32xn splat_bytes_native(const void* four) {
    int32_t x;
    memcpy(&x, four, 4);
    return x - i32xn{};
}

#if defined(__AVX512F__)
INLINE f32xn load_f16_native(const f16* from) { return load_f16(from); }
#else
typedef uint16_t u16xn __attribute__((vector_size(2 * kNative)));

INLINE f32xn load_f16_native(const f16* from) {
#if defined(__F16C__)
    return (f32xn)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    const u32xn h = __builtin_convertvector(load<u16xn>(from), u32xn);
    const f32xn magnitude = (f32xn)((h & 0x7fff) << 13) * 5.192296858534828e33f;
    return (f32xn)((u32xn)magnitude | (h & 0x8000) << 16);
#endif
}

INLINE f32xn to_f32(i32xn v) { return __builtin_convertvector(v, f32xn); }

INLINE f32xn fma(f32xn a, f32xn b, f32xn c) {
#if defined(__FMA__)
    return (f32xn)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE f32xn dot_bf16(f32xn acc, i32xn a, i32xn b) {
    const i32xn upper = int32_t(0xffff0000) - i32xn{};
    acc = fma((f32xn)(a & upper), (f32xn)(b & upper), acc);
    return fma((f32xn)(a << 16), (f32xn)(b << 16), acc);
}

INLINE void dot_i8(i32xn& acc, i32xn unsigned_bytes, i32xn signed_bytes) {
#if defined(__AVX2__)
    acc += (i32xn)madd_bytes((__m256i)unsigned_bytes, (__m256i)signed_bytes);
#else
    for (int shift = 0; shift < 32; shift += 8)
        acc += ((unsigned_bytes >> shift) & 255) * ((signed_bytes << (24 - shift)) >> 24);
#endif
}
#endif
