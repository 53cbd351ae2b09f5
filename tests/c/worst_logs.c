/* The largest errors of losses of probabilities, compared with long double: see test_kernels.py. Prints, for each
 * dtype, the largest error, the largest relative one, and the probabilities. Of float32, every seventh probability
 * between 1e-12 and 1 is tried, and all from 1/2 to 1, some of which are those of halves; of float64, random ones. */
#include <math.h>
#include <stdio.h>

#include "kernels.h"
#include "rows.h"

#define COUNT 4096 /* at once */

typedef struct {
    double absolute, relative, of_absolute, of_relative;
} worst;

static void compare(const tl_backend *backend, int dtype, void *scores, worst *found) {
    static double nll[COUNT];
    const tl_clip clip = tl_new_clip(1, 0, dtype);
    tl_negative_log(backend, &clip, scores, COUNT, nll);
    for (size_t i = 0; i < COUNT; i++) {
        double p = tl_score_at(&clip, scores, i);
        long double exact = -logl((long double)p), error = fabsl((long double)nll[i] - exact);
        if (error > (long double)found->absolute) {
            found->absolute = (double)error;
            found->of_absolute = p;
        }
        if (error > (long double)found->relative * exact) {
            found->relative = exact > 0 ? (double)(error / exact) : (double)INFINITY;
            found->of_relative = p;
        }
    }
}

static void try_singles(const tl_backend *backend, uint32_t from, uint32_t step, worst *found) {
    static float p[COUNT];
    for (uint32_t bits = from; bits <= 0x3f800000;) {
        for (size_t i = 0; i < COUNT; i++, bits += step)
            p[i] = bits <= 0x3f800000 ? tl_float_from_bits(bits) : 1;
        compare(backend, TL_FLOAT32, p, found);
    }
}

static void try_doubles(const tl_backend *backend, worst *found) {
    static double p[COUNT];
    for (int round = 0; round < 2000; round++) {
        for (size_t i = 0; i < COUNT; i++) {
            double any = (double)(random_bits() >> 11) * 0x1p-53;
            p[i] = round % 3 == 0 ? any : round % 3 == 1 ? 1 - any * any * any * any : ldexp(any, -(round % 38));
        }
        compare(backend, TL_FLOAT64, p, found);
    }
}

int main(void) {
    const tl_backend *backend = NULL;
    worst of_singles = {0}, of_doubles = {0};
    seed = 1;
    for (int id = 0; id < TL_BACKENDS && !backend; id++)
        backend = tl_find_backend((tl_backend_id)id);
    try_singles(backend, 0x2b8cbccc, 7, &of_singles); /* the first float above 1e-12 */
    try_singles(backend, 0x3f000000, 1, &of_singles);
    try_doubles(backend, &of_doubles);
    printf("float32 %.3g of %.9g %.3g of %.9g\n", of_singles.absolute, of_singles.of_absolute, of_singles.relative,
           of_singles.of_relative);
    printf("float64 %.3g of %.17g %.3g of %.17g\n", of_doubles.absolute, of_doubles.of_absolute, of_doubles.relative,
           of_doubles.of_relative);
    return 0;
}
