# SPDX-License-Identifier: Apache-2.0
"""The one door to the native extension: imports torch first, and explains why the extension cannot be loaded.

The extension is compiled against C++ interfaces and layouts of torch that change with each minor release. Under another
release, loading it could fail or, worse, succeed. So this module first reads from the file what it was built for.
"""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path

REBUILD = (
    "build torchcow again, in the folder of its sources: "
    "pip install --no-build-isolation --no-deps --force-reinstall --no-cache-dir ."
)
_HERE = Path(__file__).parent


def _refusal(fact: str, *, module: str = "torchcow._C", remedy: str = REBUILD) -> ImportError:
    return ImportError(f"{fact}. What to do: {remedy}", name=module)


def _built_for(file: Path) -> tuple[str, bool]:
    """The version of torch, and whether its C++ library has the ABI of C++11."""
    stamp = re.search(rb"torchcow was built for torch (\S+) with C\+\+11 ABI ([01])\0", file.read_bytes())
    if stamp is None:
        raise _refusal(f"torchcow's native extension does not tell which torch it was built for ({file})")
    return stamp[1].decode(), stamp[2] == b"1"


def _line(version: str) -> str:
    """The minor release, as its patch releases have the same layouts; a development build of torch fits only itself."""
    release = re.fullmatch(r"(\d+\.\d+)(\.\d+)*(\+.*)?", version)
    return f"{release[1]}.*" if release else version


def _extension() -> Path:
    spec = util.find_spec("torchcow._C")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin)
    others = ", ".join(sorted(path.name for path in _HERE.glob("_C.*.so")))
    why = f"only for another Python ({others})" if others else "as in a folder of sources that nobody has installed"
    raise _refusal(f"torchcow has no native extension in {_HERE}, {why}")


_version, _cxx11_abi = _built_for(_extension())
_install_torch = f"pip install 'torch=={_line(_version)}'"

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    fact = f"torchcow needs torch, which is not installed; it was built for torch {_version}"
    raise _refusal(fact, module="torch", remedy=_install_torch) from None

_running = f"torch {torch.__version__} is installed in {Path(torch.__file__).parent}"
if _line(_version) != _line(torch.__version__) or _cxx11_abi != torch._C._GLIBCXX_USE_CXX11_ABI:
    raise _refusal(
        f"torchcow was built for torch {_version}{'' if _cxx11_abi else ' without the ABI of C++11'} "
        f"and works with that minor release only, but {_running}",
        remedy=f"{REBUILD} (or get the other torch back: {_install_torch})",
    )

try:
    from torchcow import _C
except ImportError as error:
    fact = f"torchcow's native extension, which was built for torch {_version}, did not load: {error} ({_running})"
    raise _refusal(fact) from error

__all__ = ["REBUILD", "_C"]
