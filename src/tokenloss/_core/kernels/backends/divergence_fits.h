/* Constants of divergence_body.h, for template.h: (exp(r / 2) - 1) / r for |r| <= 0.1735, within 5e-9 (double: 2e-17) of
 * exp(r / 2); of l^2 in [0, 1.21], REVERSE within 6.3e-8 (1.1e-16) and JS within 3.6e-9 (8.4e-17); and log(1 + 2 u), of
 * u - 3/8 for u in [1/4, 1/2], within 1.1e-8 (8.5e-17), relatively: fits at Chebyshev nodes. Roots are 2^ROOT_SCALE
 * times as large in the kernel, so that probabilities down to 2^-206 are normal floats. */
#define f32_ROOT_SCALE 40
#define f64_ROOT_SCALE 0
#define f32_QUARTERS (4 / TL_FLOAT_LN2) /* of the logarithm of 2, which is subtracted in two parts */
#define f64_QUARTERS (4 * TL_LOG2E)
#define f32_LN2_HIGH TL_FLOAT_LN2
#define f64_LN2_HIGH TL_LN2_HIGH
#define f32_LN2_LOW 0.0
#define f64_LN2_LOW TL_LN2_LOW
#define f32_SIZE_BITS 0x7fffffff
#define f64_SIZE_BITS 0x7fffffffffffffff
static const float f32_ROOT[] = {0x1.556b4ep-9f, 0x1.55764ap-6f, 0x1p-3f, 0x1.fffffep-2f};
static const double f64_ROOT[] = {0x1.a02bdc3d376bfp-24, 0x1.a03052fb79dcbp-20, 0x1.6c16c115e9127p-16,
                                  0x1.111110a557652p-12, 0x1.55555555565f9p-9,  0x1.5555555557eeep-6,
                                  0x1p-3,                0x1.fffffffffffffp-2};
static const float f32_REVERSE_NEAR[] = {0x1.b12858p-19f, -0x1.5d2058p-15f, 0x1.b9a02p-12f, -0x1.110feap-8f,
                                         0x1.555554p-5f};
static const double f64_REVERSE_NEAR[] = {
    0x1.59919bdd9afdcp-39, -0x1.64f5678460c6ap-35, 0x1.ec0e164b6ed54p-32,  -0x1.34c57331f9b96p-28,
    0x1.7d97ca64bb26ep-25, -0x1.d6d338dc63bfdp-22, 0x1.226e32ee674b2p-18,  -0x1.664f48770a12dp-15,
    0x1.ba1ba1b9feaeap-12, -0x1.1111111111031p-8,  0x1.5555555555555p-5};
static const float f32_JS_NEAR[] = {-0x1.74b342p-20f, 0x1.35db96p-16f, -0x1.81e36ep-13f,
                                    0x1.c713ecp-10f,  -0x1.ffffe4p-7f, 0x1p-3f};
static const double f64_JS_NEAR[] = {
    0x1.95e4f71a64008p-37,  -0x1.a1f1775243cdp-33, 0x1.1e974c02c741cp-29,  -0x1.651c14c5efb15p-26,
    0x1.b524b64b17a76p-23,  -0x1.0a3a01e8bb6dfp-19, 0x1.427a8b2f1172ep-16, -0x1.82d82d75061a6p-13,
    0x1.c71c71c6fa4aap-10,  -0x1.ffffffffffdfp-7,  0x1p-3};
static const float f32_JS_FAR[] = {-0x1.86b12ep-2f, 0x1.99b334p-2f, -0x1.b4a488p-2f, 0x1.fd6e22p-2f,
                                   -0x1.4e5e1p-1f,  0x1.24924cp+0f, 0x1.1e85f6p-1f};
static const double f64_JS_FAR[] = {
    -0x1.fb76815c1c365p-2, 0x1.dde11250f18fcp-2, -0x1.a6e02bd5c3d33p-2, 0x1.93abcbb720afp-2,   -0x1.854051f039b6bp-2,
    0x1.7a70373611981p-2,  -0x1.7484371fb5d11p-2, 0x1.748437646095fp-2, -0x1.7c46fc5d92e13p-2, 0x1.8f4a88fb752e3p-2,
    -0x1.b4b985cf96af6p-2, 0x1.fd831c1cdac23p-2, -0x1.4e5e0a72f053bp-1, 0x1.2492492492493p+0,  0x1.1e85f5e7040dp-1};
