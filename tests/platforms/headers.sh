#!/usr/bin/env bash
# Puts Python's headers into a folder, for compilers of another machine: tests/platforms/headers.sh FOLDER
#
# Their pyconfig.h is this machine's, so one is written that takes all sizes from the compiler. The limited API needs no more.
set -euo pipefail
mkdir -p "$1"
cp -r "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/." "$1"
{
    echo "#define _GNU_SOURCE 1"
    for size in INT LONG LONG_LONG SIZE_T WCHAR_T VOID_P=POINTER; do
        printf '#undef SIZEOF_%s\n#define SIZEOF_%s __SIZEOF_%s__\n' "${size%=*}" "${size%=*}" "${size#*=}"
    done
} >"$1/pyconfig.h"
