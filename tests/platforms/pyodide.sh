#!/usr/bin/env bash
# Builds the package for Pyodide, and runs tests/scores/test_anywhere.py there, in Node.js:
#
#     tests/platforms/pyodide.sh FOLDER OUT
#
# Needs the same as pyodide_wheel.sh, which builds the package into OUT, and NumPy into the folder. Tests run on the last
# Pyodide with Python 3.13. wheels.yml builds for Pyodide 314, with Python 3.14: there the extension is loaded, until it
# imports NumPy.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
folder=$(realpath -m "${1:?a folder for NumPy}")
out=$(realpath -m "${2:?a folder for Pyodide and the wheel}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

tests/platforms/pyodide_wheel.sh "$folder" "$out"
export PATH="$out/venv/bin:$PATH"
site=$scratch/site # what Pyodide imports from
pip install -q --target "$site" pytest
ln -s "$folder/numpy" "$site/numpy"
python -m zipfile -e "$out"/tokenloss-*-cp311-abi3-*.whl "$site"
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
node "$scratch/run.mjs" "$out/node_modules/pyodide" "
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, '$site')
import pytest
print(sys.version)
int(pytest.main(['-q', '-p', 'no:cacheprovider', '$root/tests/scores/test_anywhere.py']))" "$site" "$folder" "$root"
step "done"
