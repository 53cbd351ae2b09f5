#!/usr/bin/env bash
# Installs an sdist where it cannot be compiled, and looks for the one line that says what to install:
#
#     tests/platforms/without_compiler.sh dist/tokenloss-*.tar.gz
#
# Needs gcc, and Python with pip and its headers. Nothing is installed.
set -euo pipefail
sdist=$(realpath "${1:?"an sdist"}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python -m venv "$scratch/venv"
mkdir "$scratch/bin"

# a compiler that finds all headers except Python's
cat >"$scratch/without_headers" <<COMPILER
#!$BASH
for word; do
    case "\$word" in -I*/include/python*) ;; *) words+=("\$word") ;; esac
done
exec "$(command -v gcc)" "\${words[@]}"
COMPILER
chmod +x "$scratch/without_headers"

fails() {
    local expected="a C compiler with its headers and Python's: 'apt install" printed=$scratch/printed
    if env "$@" "$scratch/venv/bin/python" -m pip install --no-deps --no-cache-dir "$sdist" >"$printed" 2>&1; then
        echo "was installed where it should end with: $expected"
        return 1
    fi
    # the last line of the build; pip's lines follow
    if ! grep -B 1 -F '[end of output]' "$printed" | grep -F "error: tokenloss must be compiled, which needs $expected"; then
        cat "$printed"
        return 1
    fi
}

fails "PATH=$scratch/bin"
fails "CC=$scratch/without_headers" C_INCLUDE_PATH= CPATH=
