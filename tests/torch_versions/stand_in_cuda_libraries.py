# SPDX-License-Identifier: Apache-2.0
"""Let a CUDA build of torch be imported on a machine that has no CUDA libraries.

Run with the Python of an environment into which such a torch was installed without its dependencies (gigabytes of
CUDA libraries that a test on CPU never calls). For each library that torch's own libraries ask for and the machine
does not have, this builds an empty-handed one beside them: every function that torch names is there and returns 100,
which is cudaErrorNoDevice. For tests only. Needs gcc, nm, ldd and readelf; does nothing where nothing is missing.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

CUDA_NAME = re.compile(r"cu[A-Z]|cu(blas|blasLt|dnn|fft|File|rand|solver|sparse|sparseLt|da|pti)[A-Z]|p?nccl|nv\w+")


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def missing_libraries(folder: Path) -> list[str]:
    """The sonames that libraries in ``folder`` need and the loader does not find."""
    found = set()
    for library in folder.glob("*.so"):
        listing = run("env", f"LD_LIBRARY_PATH={folder}", "ldd", library)
        found.update(re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE))
    return sorted(found)


def wanted_symbols(folder: Path, missing: list[str]) -> dict[str, dict[str, set[str]]]:
    """For each missing library, the symbols wanted from it by version; '' is 'no version', and goes to the first."""
    owner = {}
    wanted: dict[str, dict[str, set[str]]] = {soname: defaultdict(set) for soname in missing}
    for library in folder.glob("*.so"):
        needs = run("readelf", "--version-info", "--wide", library)
        for soname, versions in re.findall(r"File: (\S+)\s+Cnt: \d+\n((?:.*Name: .*\n)+)", needs):
            owner.update(dict.fromkeys(re.findall(r"Name: (\S+)", versions), soname))
        for symbol in re.findall(r"^\s+U (\S+)$", run("nm", "-D", "--undefined-only", library), re.MULTILINE):
            name, _, version = symbol.partition("@")
            if version and owner.get(version) in wanted:
                wanted[owner[version]][version].add(name)
            elif not version and CUDA_NAME.match(name):
                wanted[missing[0]][""].add(name)
    return wanted


def build(folder: Path, soname: str, symbols: dict[str, set[str]]) -> None:
    """Compile the stand-in for ``soname`` into ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "stand_in.c")
        script = Path(scratch, "versions.map")
        names = sorted(set().union(*symbols.values()))
        source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in names))
        versioned = {version: members for version, members in symbols.items() if version}
        script.write_text(
            "".join(
                f"{version} {{ global: {'; '.join(sorted(members))}; }};\n" for version, members in versioned.items()
            )
        )
        options = [f"-Wl,--version-script={script}"] if versioned else []
        run("gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", *options, "-o", folder / soname, source)


def main() -> None:
    folder = Path(sysconfig.get_path("purelib"), "torch", "lib")
    missing = missing_libraries(folder)
    if not missing:
        return
    for soname, symbols in wanted_symbols(folder, missing).items():
        build(folder, soname, symbols)
    print(f"stand-ins for CUDA libraries that are not here: {', '.join(missing)}")


if __name__ == "__main__":
    main()
