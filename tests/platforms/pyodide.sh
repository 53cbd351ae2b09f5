#!/usr/bin/env bash
# Builds the package for Pyodide, and runs tests/scores/test_anywhere.py there, in Node.js:
#
#     tests/platforms/pyodide.sh FOLDER
#
# Needs Debian's python3-dev and python3-venv (3.13) and emscripten, which brings clang-19 and lld-19.
#
# npm has Pyodide, but neither npm nor PyPI has NumPy for it: the parts of NumPy that `import numpy` loads are built
# into the folder, unless they are there. Everything is compiled by Debian's Emscripten, 3.1.69, since neither has the
# versions with which Pyodide was built. NumPy needs the headers of one version of Python, and Debian has those of 3.13:
# tests run on the last Pyodide with Python 3.13. wheels.yml builds for Pyodide 314, with Python 3.14: there the
# extension is loaded, until it imports NumPy.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
folder=$(realpath -m "${1:?a folder for NumPy}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

tests/platforms/pyodide_wheel.sh "$folder" "$scratch/built"
export PATH="$scratch/built/venv/bin:$PATH"
site=$scratch/site # what Pyodide imports from
pip install -q --target "$site" pytest
for version in 0.29.5 314.0.7; do
    npm install --silent --no-audit --no-fund --prefix "$scratch/$version" "pyodide@$version"
done
python -m zipfile -e "$scratch/0.29.5/node_modules/pyodide/python_stdlib.zip" "$scratch/stdlib"
headers=$scratch/headers
tests/platforms/headers.sh "$headers"

# setuptools and Meson ask the Python that runs them for its configuration: it answers with the configuration of Pyodide's
mkdir "$scratch/sysconfig"
cp "$scratch"/stdlib/_sysconfigdata_*.py "$scratch/sysconfig"
configured=("$scratch"/sysconfig/*.py)
name=$(basename "${configured[0]}" .py)
echo "build_time_vars['INCLUDEPY'] = '$headers'" >>"${configured[0]}"
as_pyodide=(env "PYTHONPATH=$scratch/sysconfig" "_PYTHON_SYSCONFIGDATA_NAME=$name"
    _PYTHON_HOST_PLATFORM=emscripten-3.1.69-wasm32)

# NumPy does not use the limited API, and needs all of pyconfig.h: its values are in the same configuration
"${as_pyodide[@]}" python - "$headers/pyconfig.h" /usr/include/*/python3.13/pyconfig.h <<'END'
import pathlib
import re
import sys
import sysconfig

written, names = map(pathlib.Path, sys.argv[1:])
found = ((name, sysconfig.get_config_var(name)) for name in re.findall(r"^(?:#define|/\* #undef) (\w+)", names.read_text(), re.M))
with written.open("a") as file:
    file.writelines(f"#undef {name}\n#define {name} {value}\n" for name, value in found if value)
END

link="-sSIDE_MODULE=1 -sWASM_BIGINT"
if [ ! -e "$folder/complete" ]; then
    step "NumPy"
    # To download an sdist, pip asks NumPy's build system for its metadata, which takes minutes: this one knows them
    mkdir "$scratch/known" "$scratch/bin" "$scratch/numpy"
    cat >"$scratch/known/mesonpy.py" <<'END'
import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    known = pathlib.Path(folder, "numpy.dist-info")
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.2.6\n")
    return known.name
END
    PYTHONPATH=$scratch/known pip download -q --no-deps --no-build-isolation --no-binary numpy -d "$scratch" numpy==2.2.6
    tar -xzf "$scratch"/numpy-*.tar.gz -C "$scratch/numpy" --strip-components=1
    # emcc takes longer to start than to compile, and Meson has hundreds of questions: they go to emcc's clang itself.
    # It only compiles, even where Meson asks what can be linked: a side module may lack any function
    for pair in emcc:clang-19 em++:clang++-19; do
        cat >"$scratch/bin/${pair%:*}" <<END
#!/bin/sh
case " \$* " in
*.so\ * | *--version*) exec /usr/bin/${pair%:*} $link -fwasm-exceptions "\$@" ;;
*) exec ${pair#*:} --target=wasm32-unknown-emscripten --sysroot=/usr/share/emscripten/cache/sysroot -DEMSCRIPTEN \
    -fPIC -fwasm-exceptions -w -c "\$@" ;;
esac
END
    done
    chmod +x "$scratch"/bin/*
    cat >"$scratch/cross" <<END
[binaries]
c = '$scratch/bin/emcc'
cpp = '$scratch/bin/em++'
ar = 'emar'
[properties]
needs_exe_wrapper = true
skip_sanity_check = true
longdouble_format = 'IEEE_QUAD_LE'
[host_machine]
system = 'emscripten'
cpu_family = 'wasm32'
cpu = 'wasm'
endian = 'little'
END
    (
        cd "$scratch/numpy"
        "${as_pyodide[@]}" python vendored-meson/meson/meson.py setup "$scratch/build" --cross-file="$scratch/cross" \
            -Dbuildtype=plain -Doptimization=1 -Dallow-noblas=true -Ddisable-optimization=true -Ddisable-threading=true
        cd "$scratch/build"
        mapfile -t parts < <(ninja -t targets all | sed -nE 's,^(numpy/(_core/_multiarray_umath|linalg/)[^/]*\.so):.*,\1,p')
        "${as_pyodide[@]}" ninja "${parts[@]}"
        mkdir -p "$folder"
        cp -r "$scratch/numpy/numpy" "$folder"
        cp --parents "${parts[@]}" numpy/__config__.py "$folder"
        touch "$folder/complete"
    ) >"$scratch/log" 2>&1 || { tail -50 "$scratch/log"; exit 1; }
fi
ln -s "$folder/numpy" "$site/numpy"
python -m zipfile -e "$scratch"/built/tokenloss-*-cp311-abi3-*.whl "$site"
npm install --silent --no-audit --no-fund --prefix "$scratch/314" pyodide@314.0.7

cat >"$scratch/run.mjs" <<'END'
const [folder, program, ...mounted] = process.argv.slice(2);
const { loadPyodide } = await import(`${folder}/pyodide.mjs`);
const pyodide = await loadPyodide();
for (const root of mounted) {
    pyodide.FS.mkdirTree(root);
    pyodide.FS.mount(pyodide.FS.filesystems.NODEFS, { root }, root);
}
process.exitCode = pyodide.runPython(program);
END

step "the extension, Pyodide 314"
node "$scratch/run.mjs" "$scratch/314/node_modules/pyodide" "
import importlib.util, sys
spec = importlib.util.spec_from_file_location('tokenloss._core._core', '$site/tokenloss/_core/_core.abi3.so')
try:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
except ModuleNotFoundError as error:
    print(sys.version, error, sep='\n')
    found = error.name
int(found != 'numpy')" "$site/tokenloss"

step "tests/scores/test_anywhere.py, Pyodide 0.29"
node "$scratch/run.mjs" "$scratch/built/node_modules/pyodide" "
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, '$site')
import pytest
print(sys.version)
int(pytest.main(['-q', '-p', 'no:cacheprovider', '$root/tests/scores/test_anywhere.py']))" "$site" "$folder" "$root"
step "done"
