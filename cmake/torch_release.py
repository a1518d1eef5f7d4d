# SPDX-License-Identifier: Apache-2.0
"""The torch that torchcow is compiled against: where it is, whether it was tried, and what a wheel then requires.

CMake runs this file (torch.cmake), and scikit-build-core imports it to fill in the requirements of a wheel
(``[[tool.dynamic-metadata]]`` in pyproject.toml), so a refusal comes before anything is compiled.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FIRST, LAST = (2, 11), (2, 15)  # tests have passed with these and with those between
TRIED = f"torch>={FIRST[0]}.{FIRST[1]},<{LAST[0]}.{LAST[1] + 1}"
OVERRIDE = "TORCHCOW_UNTRIED_TORCH"


class Torch(NamedTuple):
    """What the build has to know of an installed torch."""

    folder: str
    version: str
    cxx11_abi: int


def installed() -> Torch:
    """The torch of this interpreter; exits with an explanation where torchcow cannot be built."""
    if sys.platform != "linux" or sys.implementation.name != "cpython":
        raise SystemExit(f"torchcow works on Linux with CPython; this is {sys.implementation.name} on {sys.platform}.")
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise SystemExit(
            f"torchcow is compiled against the torch that is installed, and {sys.executable} sees none. "
            "If you have torch, pip has hidden it in an isolated build environment: add --no-build-isolation, as in\n"
            "  pip install --no-build-isolation .\n"
            f"If not, install it first: pip install '{TRIED}'"
        ) from None
    found = Torch(str(Path(torch.__file__).parent), torch.__version__, int(torch._C._GLIBCXX_USE_CXX11_ABI))
    _refuse_untried(found)
    return found


def release(version: str) -> str | None:
    """The minor release, such as "2.13", that a version belongs to; None for nightly and other unfinished builds."""
    match = re.fullmatch(r"(\d+\.\d+)(\.\d+)*(\+.*)?", version)
    return match and match[1]


def _refuse_untried(torch: Torch) -> None:
    number = tuple(int(part) for part in (release(torch.version) or "0").split("."))
    here = f"torch {torch.version} is installed in {torch.folder}"
    if re.match(r"\d+\.\d+", torch.version) and tuple(map(int, torch.version.split(".")[:2])) < FIRST:
        raise SystemExit(f"torchcow needs torch {FIRST[0]}.{FIRST[1]} or newer; {here}: pip install '{TRIED}'")
    if FIRST <= number <= LAST or os.environ.get(OVERRIDE, "0") not in ("", "0"):
        return
    raise SystemExit(
        f"torchcow was tried with the releases {FIRST[0]}.{FIRST[1]} to {LAST[0]}.{LAST[1]} of torch; {here}. "
        "The engine depends on internals of torch, and with another torch a write could reach memory that is shared. "
        f"Install one that was tried: pip install '{TRIED}'. To build all the same, in order to try it: "
        f"set {OVERRIDE}=1, build, and run the tests before you trust it."
    )


class Requirements:
    """Adds torch to the requirements: in an sdist any that was tried, in a wheel the release it is compiled for."""

    def __init__(self) -> None:
        self.state = "wheel"

    def build_state(self, state: str) -> None:
        """Scikit-build-core tells what it is about to build."""
        self.state = state

    def dynamic_metadata(
        self, settings: Mapping[str, list[str]], _project: Mapping[str, object]
    ) -> dict[str, list[str]]:
        """The requirements; for a wheel, torch has to be installed."""
        torch = TRIED
        if self.state != "sdist":
            version = installed().version
            minor = release(version)
            torch = f"torch=={minor}.*" if minor else f"torch=={version.partition('+')[0]}"
        return {"dependencies": [torch, *settings["dependencies"]]}

    def dynamic_wheel(self, _settings: Mapping[str, object]) -> dict[str, bool]:
        """A wheel requires something else than the sdist that it comes from."""
        return {"dependencies": True}


if __name__ == "__main__":
    print(*installed(), sep=";", end="")
