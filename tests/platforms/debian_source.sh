#!/usr/bin/env bash
# Downloads the source of a Debian package into a folder: tests/platforms/debian_source.sh PACKAGE FOLDER
#
# Needs apt-get. The machine's own lists and sources stay as they are.
set -euo pipefail
package=${1:?a package} folder=$(realpath -m "${2:?a folder}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mkdir -p "$folder" "$scratch/sources" "$scratch/lists/partial"
for file in /etc/apt/sources.list.d/*.sources; do
    # only Debian's sources, which are signed: a local repository may have none
    awk -v RS= -v ORS='\n\n' '/\nSigned-By/ { sub(/Types: deb\n/, "Types: deb-src\n"); print }' "$file" \
        >"$scratch/sources/$(basename "$file")"
done
apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$scratch/sources"
    -o "Dir::State::lists=$scratch/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o APT::Sandbox::User=root)
"${apt[@]}" update
cd "$folder"
"${apt[@]}" source --download-only "$package"
