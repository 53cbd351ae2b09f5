#!/usr/bin/env python3
"""Does what publishing does up to the upload, and checks what PyPI would refuse or show broken.

    .ci/check_dist.py FOLDER [TAG]

FOLDER holds an sdist of .ci/sdist, wheels that were built from it, and nothing else. TAG must be v and their version.
Needs twine, readme_renderer[md] and trove-classifiers. GitHub's attestations and the upload itself are not tried.
"""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from readme_renderer import markdown
from trove_classifiers import classifiers


def shown(metadata: bytes) -> tuple[str, list[str], str]:
    """Version, URLs and README. Other metadata of a wheel may differ, by the version of setuptools."""
    head = email.message_from_bytes(metadata)
    return head["Version"], head.get_all("Project-URL", []), head.get_payload(decode=True).decode("utf-8").strip()


def check(fits: bool, wrong: str) -> None:
    """End with what is wrong."""
    if not fits:
        sys.exit(f"not to be published: {wrong}")


folder, *tag = sys.argv[1:]
paths = sorted(Path(folder).iterdir())
subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, paths)], check=True)

(sdist,) = (path for path in paths if path.name.endswith(".tar.gz"))
name = sdist.name.removesuffix(".tar.gz")
version = name.removeprefix("tokenloss-")
with tarfile.open(sdist) as archive:
    metadata, changelog = (archive.extractfile(f"{name}/{file}").read() for file in ("PKG-INFO", "CHANGELOG.md"))
for wheel in set(paths) - {sdist}:
    with zipfile.ZipFile(wheel) as archive:
        same = shown(archive.read(f"{name}.dist-info/METADATA")) == shown(metadata)
        check(same, f"{wheel.name} has another version, description or URL than the sdist")

found, urls, text = shown(metadata)
check(found == version, f"{sdist.name} has version {found}")
for classifier in email.message_from_bytes(metadata).get_all("Classifier"):
    check(classifier in classifiers, f"PyPI does not know the classifier {classifier}")
urls = [url.partition(", ")[2] for url in urls]
check(bool(urls) and all(url.startswith(urls[0]) for url in urls), f"the URLs are {urls}")

# PyPI shows README without the other files of the repository
page = markdown.render(text)
links = re.findall(r'(?:href|src)="((?!#)[^"]*)"', page)
check("<img " in page and "<table>" in page and len(links) > 1, "README is not shown as it is meant")
for link in links:
    check(link.startswith("https://"), f"README's link to {link} leads nowhere on PyPI")
    check(not link.startswith(urls[0]) or f"/v{version}/" in link, f"README's link to {link} is not of v{version}")

if tag:
    heading = re.search("^## (.+)$", changelog.decode("utf-8"), re.MULTILINE)[1]
    check(tag == [f"v{version}"], f"the tag is {tag[0]}, the version {version}")
    check(heading == version, f"the version is {version}, CHANGELOG.md begins with {heading}")
print(f"{len(paths)} files of version {version} could be published, with {len(links)} links: {', '.join(urls)}")
