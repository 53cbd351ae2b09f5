#!/usr/bin/env bash
# Runs the tests against a build with AddressSanitizer, UBSan, checks of bounds and assertions: tests/platforms/sanitized.sh [arguments
# of pytest]. Needs gcc, and what `pip install '.[test]'` installs; with pytest-xdist, -n 2 halves the time.
#
# An error found by a sanitizer or an assertion ends its process. It also fails this script, since a test may expect a
# process to fail. So does memory that _core has leaked by the end of a process, which no test notices.
#
# With BEST_ONLY=1 only the best instruction set of the machine has sanitizers, since they take most of the time to compile:
# for a run that leaves out the others, which CC compiles. It asks the installed package which one that is.
set -euo pipefail
cd "$(dirname "$0")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -n "${BEST_ONLY:-}" ]; then
    others=$(python -c 'from tokenloss._core import _core; print("|".join(f"*/{one}.c" for one in _core.backends()[1:]))')
    cat >"$scratch/gcc" <<COMPILER
#!$BASH
for word; do
    case "\$word" in
    ${others:-none})
        exec "${CC:-gcc}" "\$@" -fno-sanitize=all ;;
    esac
done
exec gcc "\$@"
COMPILER
    chmod +x "$scratch/gcc"
    export CC=$scratch/gcc
fi
export TOKENLOSS_DEBUG=1 TOKENLOSS_SANITIZE=address,undefined,float-cast-overflow
python -m pip install --quiet --no-deps --target "$scratch/package" .
unset TOKENLOSS_DEBUG TOKENLOSS_SANITIZE CC
mkdir "$scratch/reports"

# Python's own blocks come from malloc: otherwise nothing is known about them, and what they point to would seem lost.
export PYTHONMALLOC=malloc PYTHONPATH="$scratch/package${PYTHONPATH:+:$PYTHONPATH}"
# Python and NumPy keep much until the process ends. Of two calls on the stack of an allocation one is malloc, the other who
# asked for it: so our leaks are distinguished from others'. Leaks (unlike errors, which abort) change no exit status.
ASAN_OPTIONS="log_path=$scratch/reports/asan:abort_on_error=1:handle_abort=1:detect_leaks=1:malloc_context_size=2:exitcode=0"
UBSAN_OPTIONS="log_path=$scratch/reports/ubsan:abort_on_error=1:print_stacktrace=1"
# the stack that finds use after return is not aligned for the vectors of AVX-512 by gcc before 14 (its bug 110027)
ASAN_OPTIONS+=":detect_stack_use_after_return=0"
export ASAN_OPTIONS UBSAN_OPTIONS

# the tests that run C code: the core, and the readers of JSON. Commands and evaluations run the jobs that these tests run
tests=(
    tests/core tests/scores tests/statistics tests/comparison/test_compare*.py
    tests/formats/test_{formats,file_changes,format_memory,llama_cpp,responses,records}.py
)
left_out=(
    # only other libraries and Python, simulations, or the same jobs again
    --ignore tests/scores/test_other_libraries.py --ignore tests/core/test_config.py --ignore tests/scores/test_linear_pairs.py
    --ignore tests/core/test_estimate.py --ignore tests/scores/test_recorded.py
    --ignore tests/statistics/test_calibration.py --ignore tests/statistics/test_intervals.py
    --deselect tests/scores/test_same_bits.py::test_workers_change_no_bit
    # a sanitizer's own memory is many times the measured memory
    --deselect tests/formats/test_format_memory.py::test_memory_is_that_of_a_block
    --deselect tests/formats/test_records.py::test_memory_of_values_is_bounded
    --deselect tests/core/test_memory.py::test_less_than_a_megabyte_a_worker_is_allocated
    --deselect tests/core/test_memory.py::test_nothing_of_the_size_of_the_targets_is_allocated
    --deselect tests/core/test_memory.py::test_linear_cross_entropy_allocates_less_than_16_megabytes
    --deselect tests/core/test_memory.py::test_linear_kl_divergence_and_linear_compare_allocate_less_than_32_megabytes
    --deselect tests/formats/test_format_memory.py::test_address_space_is_that_of_a_block
    # gcc's sanitizer before 14 forks while another thread may hold the lock of its allocator: the child then waits forever
    --deselect tests/core/test_workers.py::test_fork_while_other_threads_are_at_work
)
status=0
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \
    python -m pytest -q "${tests[@]}" "${left_out[@]}" "$@" || status=$?

for report in "$scratch"/reports/*; do
    [ -e "$report" ] || continue
    if grep -q -E 'runtime error|ERROR: AddressSanitizer' "$report"; then
        head -n 24 "$report"
        status=1
    elif grep -q 'in .*tokenloss/_core' "$report"; then
        grep -B 2 -A 1 'in .*tokenloss/_core' "$report" | head -n 40
        status=1
    fi
done
[ "$status" = 0 ] && echo "the sanitizers found nothing"
exit "$status"
