/* The functions of backends/vector_math.h for vectors of one double. */
#include "scalar_math.h"

#include "backend.h"
#include "backends/simd_portable.h"
#include "backends/vector_math.h"

double tl_exp(double x) { return f64_exp(x); }
double tl_log(double x) { return f64_log(x, 1); }
double tl_log1p(double x) { return x < (double)INFINITY ? f64_log1p_of_positive(x) : x; }
double tl_log_of_sum(double sum, double ref_exp, int dtype) { return f64_log_of_sum(sum, ref_exp, dtype, 0, 1); }
double tl_softmax_factor(double logsumexp, int dtype, double *exponent) {
    return f64_softmax_factor(logsumexp, dtype, exponent);
}
double tl_entropy(double log_odds, double nll, double others_nll, double of_others) {
    return f64_entropy(log_odds, nll, others_nll, of_others);
}
