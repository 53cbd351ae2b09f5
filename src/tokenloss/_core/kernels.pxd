# Declarations of the C kernels for Cython; the headers under kernels/ say what each does.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

cdef extern from "kernels/platform.h" nogil:
    ctypedef struct tl_fp_state:
        pass
    void tl_fp_enter(tl_fp_state *)
    void tl_fp_leave(const tl_fp_state *)
    int64_t tl_fetch_add(int64_t *, int64_t)
    bint tl_flag_get(const int *)
    void tl_flag_set(int *)
    double tl_seconds()

cdef extern from "kernels/elements.h" nogil:
    int TL_FLOAT16, TL_BFLOAT16, TL_FLOAT32, TL_FLOAT64, TL_FLOAT_DTYPES
    int TL_INT8, TL_INT16, TL_INT32, TL_INT64, TL_UINT8, TL_UINT16, TL_UINT32, TL_UINT64, TL_DTYPES
    int TL_SWAPPED
    int tl_itemsize(int)
    int tl_single_or_double(int)
    double tl_load(const char *, int)
    int64_t tl_load_integer(const char *, int)
    void tl_load_integers(const char *, ptrdiff_t, int, int, int64_t *)
    double tl_from_float16(uint16_t)
    double tl_from_bfloat16(uint16_t)

cdef extern from "kernels/kernels.h" nogil:
    int TL_BACKENDS
    int TL_SOME_BAD, TL_SOME_MASKED
    ctypedef struct tl_target_range:
        int64_t classes, ignored
        int has_ignored
    ctypedef struct tl_backend:
        const char *name
        int (*mask_targets)(const tl_target_range *, const char *, ptrdiff_t, size_t, int64_t *) noexcept nogil
    const tl_backend *tl_find_backend(int)
    ctypedef struct tl_row:
        const char *data
        int64_t count
        ptrdiff_t stride
        int dtype, compute_dtype
        double logit_scale, softcap, shift
        bint of_probs
    bint tl_is_transformed(const tl_row *)
    ctypedef struct tl_cancel:
        int (*poll)(void *) noexcept nogil
        void *argument
        int *stopped
        double last_poll
    int tl_canceled(tl_cancel *)
    double tl_maximum(const tl_backend *, const tl_row *)
    ctypedef struct tl_tail:
        const int64_t *excluded
        int64_t count
        double log_mass
        int64_t support
    void tl_tail_of(const tl_backend *, const tl_row *, double, tl_tail *, tl_cancel *)
    void tl_tail_draw(const tl_backend *, const tl_row *, const tl_tail *, double, const double *, int64_t, int64_t *)
    ctypedef struct tl_topk:
        int64_t most
        int64_t count
        double *value
        int64_t *id
        int64_t candidates
    ctypedef struct tl_token_stats:
        double nll, logsumexp, entropy
        int64_t rank, argmax
    void tl_token_stats_row(const tl_backend *, const tl_row *, int64_t, tl_token_stats *, tl_topk *, tl_cancel *)
    void tl_token_stats_range(const tl_backend *, const tl_row *, int64_t, int64_t, int64_t, int64_t, double,
                              tl_token_stats *, tl_topk *, tl_cancel *)
    void tl_token_stats_end(const tl_backend *, const tl_row *, double, tl_token_stats *, tl_topk *)
    ctypedef struct tl_soft_target:
        const char *mass
        ptrdiff_t mass_stride
        int mass_dtype
        const char *weight
        ptrdiff_t weight_stride
        int weight_dtype
        double one_minus_eps
        double eps_over_v
    double tl_weighed(double, double)
    double tl_soft_target_at(const tl_soft_target *, int64_t)
    double tl_target_dot(const tl_backend *, const tl_row *, const tl_soft_target *, double, double *, tl_cancel *)
    int64_t tl_soft_target_argmax(const tl_backend *, const tl_soft_target *, int64_t, tl_cancel *)
    int64_t tl_one_hot_class(const tl_backend *, const tl_soft_target *, int64_t, tl_cancel *)
    void tl_cast_row(const tl_backend *, const tl_row *, int, void *)
    ctypedef struct tl_vectors:
        char *data
        ptrdiff_t stride
        int64_t count
    void tl_matvec(const tl_backend *, const tl_row *, ptrdiff_t, int64_t, const tl_vectors *, const tl_vectors *)
    ctypedef enum tl_bf16_matmul:
        TL_AMX_BF16
        TL_BF16_MATMULS
    bint tl_has_matmul_bf16(tl_bf16_matmul, const tl_backend *)
    int64_t tl_bf16_block(tl_bf16_matmul)
    ctypedef struct tl_bf16_panels:
        tl_bf16_matmul by
        char *data
        int64_t count
        int64_t depth
    size_t tl_bf16_panels_bytes(const tl_bf16_panels *)
    void tl_bf16_set_vector(const tl_bf16_panels *, int64_t, const float *)
    void tl_matmul_bf16(const tl_row *, ptrdiff_t, int64_t, const tl_bf16_panels *, const tl_vectors *, tl_cancel *)
    void tl_fill(const tl_row *, double)
    void tl_store_at(const tl_row *, int64_t, double)
    ctypedef struct tl_loss:
        tl_soft_target soft
        int64_t target
        double target_weight
        double z_loss
        const tl_row *grad
        double grad_scale
        int nontemporal_stores
    int TL_ROWS_PER_CACHE_LINE(int)
    ctypedef struct tl_row_block:
        tl_row row
        int count
        bint class_major, has_excluded, keeps_logits, has_masses, are_copies
        uint64_t wanted
        const char *data[64]
        int64_t excluded[64]
        char *scratch
    tl_row tl_row_of_block(const tl_row_block *, int)
    int tl_row_block_rows(int64_t, int)
    size_t tl_row_block_bytes(int64_t, int)
    ptrdiff_t tl_copied_row(int64_t, int)
    int tl_copied_rows(int64_t, int, int)
    void tl_copy_rows(const tl_backend *, tl_row_block *, char *)
    ctypedef struct tl_lane_losses:
        const int64_t *target
        bint some_masked
        const double *row_weight
        const double *class_weight
        const double *mass
        double total_mass
    ctypedef struct tl_plain_rows:
        tl_row row
        ptrdiff_t apart
        const tl_loss *loss
        tl_lane_losses given
        bint sums_only
        double *values
        tl_row grad, mass
        ptrdiff_t grad_apart, mass_apart
        const double *grad_scale
    int64_t tl_nll_classes(int)
    size_t tl_add_plain_losses(const tl_backend *, tl_plain_rows *, size_t, tl_superacc *, tl_superacc *, int64_t *,
                               uint64_t *)
    ctypedef struct tl_block_nll:
        double nll[64]
    ctypedef struct tl_block_lse:
        tl_block_nll relative
    void tl_odds_of_block(const tl_backend *, const tl_row_block *, tl_block_lse *, tl_cancel *)
    size_t tl_lse_of_few(const tl_backend *, const tl_row *, ptrdiff_t, size_t, double *, uint64_t *)
    void tl_logsumexp_of_block(const tl_backend *, const tl_row_block *, double *, tl_cancel *)
    ctypedef struct tl_lse:
        pass
    double tl_logsumexp(tl_lse)
    ctypedef struct tl_kl:
        double kl
        tl_lse base
        tl_lse other
    uint64_t tl_kl_of_block(const tl_backend *, const tl_row_block *, const tl_row_block *, tl_kl *, tl_cancel *)
    size_t tl_add_kl_of_few(const tl_backend *, const tl_row *, ptrdiff_t, const tl_row *, ptrdiff_t, size_t,
                            tl_superacc *, double *)
    int TL_REVERSE_KL, TL_JS, TL_TV, TL_HELLINGER
    ctypedef struct tl_divergences:
        double reverse_kl, js, tv, hellinger
    void tl_divergences_of_block(const tl_backend *, const tl_row_block *, const tl_row_block *, const tl_kl *, int,
                                 tl_divergences *, tl_cancel *)
    ctypedef struct tl_divergence_state:
        pass
    void tl_divergences_begin(tl_lse, tl_lse, int64_t, int, int, tl_divergence_state *)
    void tl_divergences_range(const tl_backend *, const tl_row *, const tl_row *, int64_t, int64_t,
                              tl_divergence_state *, tl_cancel *)
    bint tl_divergences_end(const tl_divergence_state *, tl_divergences *)
    ctypedef enum tl_definitions:
        TL_EXACT
        TL_LLAMA_CPP
    ctypedef struct tl_pair:
        double nll, base_nll, kl, change
        tl_lse base_lse
        tl_lse lse
        double base_top_p, base_margin, margin, rounding
        tl_divergences further
        bint is_same_top
        bint is_identical
    ctypedef struct tl_pair_acc:
        pass
    void tl_pair_range(const tl_backend *, const tl_row *, const tl_row *, int64_t, int64_t, int64_t, int64_t, bint,
                       int, tl_definitions, tl_pair_acc *, tl_cancel *)
    bint tl_pair_end(const tl_backend *, const tl_row *, const tl_row *, int64_t, double, double, tl_pair_acc *,
                     tl_pair *)
    void tl_pair_of_block(const tl_backend *, const tl_row_block *, const tl_row_block *, int, tl_definitions, int,
                          tl_pair *, tl_cancel *)
    double tl_pair_base_logsumexp(const tl_backend *, const tl_row *, double, double, tl_cancel *)
    ctypedef struct tl_out_block:
        tl_row row
        char *data[64]
        int nontemporal_stores
    void tl_softmax_of_block(const tl_backend *, const tl_row_block *, int, const tl_out_block *, tl_cancel *)
    size_t tl_softmax_rows(const tl_backend *, const tl_row *, ptrdiff_t, size_t, int, const tl_row *, ptrdiff_t)
    ctypedef struct tl_masses:
        uint64_t usable
    void tl_exclude_by_masses(const tl_backend *, tl_row_block *, const tl_loss *, tl_masses *, tl_cancel *)
    void tl_losses_of_block(const tl_backend *, const tl_row_block *, const tl_block_lse *, const tl_loss *,
                            const tl_masses *, const tl_out_block *, double *, tl_cancel *)
    int64_t tl_likeliest_class(const tl_row *, const int64_t *, int64_t, int64_t *, tl_cancel *)
    void tl_class_log_probs(const tl_backend *, const tl_row_block *, const tl_block_lse *, int, const int64_t *,
                            int64_t, double *, tl_cancel *)
    ctypedef struct tl_token_block:
        double nll[64]
        double logsumexp[64]
        double entropy[64]
        int64_t rank[64]
        int64_t argmax[64]
    uint64_t tl_token_stats_of_block(const tl_backend *, const tl_row_block *, tl_topk *, tl_token_block *, tl_cancel *)
    ctypedef struct tl_second_moments:
        double squares, variance
    tl_second_moments tl_second_moments_of(const tl_backend *, const tl_row *, double, tl_cancel *)
    double tl_probability_of(const tl_backend *, const tl_row *, int64_t, double)
    ctypedef struct tl_loss_acc:
        int64_t excluded
    void tl_loss_begin(const tl_backend *, const tl_loss *, int64_t, tl_loss_acc *, tl_cancel *)
    void tl_loss_set_target_logit(const tl_backend *, const tl_row *, const tl_loss *, double, tl_loss_acc *)
    void tl_loss_range(const tl_backend *, const tl_row *, const tl_loss *, int64_t, int64_t, int64_t, tl_loss_acc *,
                       tl_cancel *)
    double tl_loss_end(const tl_backend *, const tl_row *, const tl_loss *, const tl_loss_acc *)
    double TL_TOLERANCE
    ctypedef struct tl_clip:
        pass
    tl_clip tl_new_clip(bint, double, int)
    void tl_prefetch(const void *)
    void tl_prefetch_early(const void *)
    bint tl_is_refused(const tl_clip *, double)
    double tl_score_at(const tl_clip *, const void *, size_t)
    void tl_set_score(const tl_clip *, void *, size_t, double)
    bint tl_negative_log(const tl_backend *, const tl_clip *, void *, size_t, double *)
    int TL_DISTRIBUTION_ROWS, TL_DISTRIBUTION_ELEMENTS, TL_PART, TL_TERMS
    ctypedef struct tl_distributions:
        const char *mass
        const char *score
        const char *weight
        ptrdiff_t mass_row, mass_class, score_row, score_class, weight_class
        int mass_dtype, score_dtype, weight_dtype
        int64_t classes
        const tl_clip *clip
        int sample_rows
    bint tl_nll_of_distributions(const tl_backend *, tl_distributions *, const int *, int, double *)
    ctypedef struct tl_refused:
        int64_t class_id
        double score
    double tl_nll_of_distribution(const tl_backend *, const tl_row *, const tl_soft_target *, const tl_clip *,
                                  tl_refused *, tl_cancel *)

cdef extern from "kernels/superacc.h" nogil:
    ctypedef enum tl_sum_kind:
        TL_SUM
        TL_SQUARES
    ctypedef struct tl_superacc:
        double special
    void tl_superacc_add_many(const tl_backend *, tl_sum_kind, tl_superacc *, const double *, size_t)
    void tl_superacc_add(tl_superacc *, double)
    void tl_superacc_add_product(tl_superacc *, double, double)
    void tl_superacc_merge(tl_sum_kind, tl_superacc *, const tl_superacc *)
    double tl_superacc_round(tl_superacc *, int)
    int tl_superacc_limbs(tl_sum_kind, tl_superacc *, unsigned char *)

cdef extern from "kernels/sequences.h" nogil:
    ctypedef struct tl_tokens:
        const double *nll
        const double *weight
        const uint8_t *mask
        const uint8_t *is_greedy
    ctypedef struct tl_sequence:
        int64_t count
        int64_t greedy
        double nll
        double weight
    ctypedef struct tl_token_sums:
        tl_superacc nll
        tl_superacc weight
        tl_superacc nll_squares
        tl_superacc weight_squares
        tl_superacc products
        bint has_weights
    void tl_token_sums_end(const tl_backend *, tl_token_sums *)
    void tl_token_sums_merge(tl_token_sums *, const tl_token_sums *)
    tl_sequence tl_sum_sequence(const tl_backend *, const tl_tokens *, const int64_t *, const int64_t *, int64_t,
                                tl_token_sums *, tl_cancel *)
