# SPDX-License-Identifier: Apache-2.0
"""The one door to the extension: what it says where the extension or torch is missing, or is of another release.

Catches: an extension that is loaded into another torch than it was built for, by whichever door; an ImportError that
does not say which torch, where, or which command mends it; a command line that ends in a traceback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchcow
from torchcow._native import REBUILD

PACKAGE = Path(torchcow.__file__).parent
EXTENSION = Path(torchcow._C.__file__)
BUILT = torchcow._C.build_info().torch
MINOR = ".".join(BUILT.split(".")[:2])
OTHER = "9." + "9" * (len(MINOR) - 2)
IMPORT = "import torchcow; torchcow.clone([1])"


def python(code, folder=PACKAGE.parent, preload=""):
    """Run code in a process of its own that finds the package in ``folder``; its exit code and what it told."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"]
    libraries = " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(preload))))  # sanitizers are preloaded
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_PRELOAD": libraries})
    return done.returncode, done.stdout + done.stderr


def refused(told, *words):
    code, text = told
    assert code == 1
    last = text.strip().splitlines()[-1]
    assert last.startswith("ImportError: torchcow"), text
    assert " What to do: " in last
    for word in words:
        assert word in last
    return True


@pytest.fixture
def package(tmp_path):
    """A copy of the installed package, whose extension a test may change; called with a change of its bytes."""
    copy = tmp_path / "torchcow"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def change(old, new):
        content = (copy / EXTENSION.name).read_bytes()
        assert old in content and len(old) == len(new)
        (copy / EXTENSION.name).write_bytes(content.replace(old, new))
        return tmp_path

    return change


def other_torch(version):
    return f"import torch; torch.__version__ = {version!r}\n{IMPORT}"


def test_patch_releases_and_builds_for_cpu_and_cuda_are_one():
    assert python(IMPORT)[0] == 0
    for version in (f"{MINOR}.0", f"{MINOR}.9", f"{MINOR}.1+cu130", f"{MINOR}.0+cpu"):
        assert python(other_torch(version)) == (0, "")


@pytest.mark.parametrize(
    "version", ["2.99.0", "2.99.0+cpu", f"{MINOR}.0a0", f"{MINOR}.0.dev20260101+cpu", f"{MINOR}0.0"]
)
def test_another_torch_is_refused(version):
    assert refused(
        python(other_torch(version)),
        f"torchcow was built for torch {BUILT}",
        f"but torch {version} is installed in {Path(torch.__file__).parent}",
        REBUILD,
        f"pip install 'torch=={MINOR}.*'",
    )


def test_what_it_was_built_for_is_read_before_it_is_loaded(package):
    other = BUILT.replace(MINOR, OTHER)
    folder = package(f"built for torch {BUILT} with".encode(), f"built for torch {other} with".encode())
    code = "import sys\ntry:\n    import torchcow\nfinally:\n    print('torchcow._C' in sys.modules)"
    code, text = python(code, folder)
    assert text.startswith("False\n")
    assert refused((code, text), f"torchcow was built for torch {other}", f"torch {torch.__version__} is installed")


def test_another_abi_is_refused(package):
    folder = package(b"C++11 ABI 1\0", b"C++11 ABI 0\0")
    assert refused(python(IMPORT, folder), f"torchcow was built for torch {BUILT} without the ABI of C++11", REBUILD)


def test_an_extension_that_does_not_tell_is_refused(package):
    folder = package(b"torchcow was built for torch", b"torchcow was built for t....")
    assert refused(python(IMPORT, folder), "does not tell which torch it was built for", EXTENSION.name, REBUILD)


def test_an_extension_that_does_not_load(package):
    folder = package(b"aoti_torch_abi_version", b"aoti_torch_abi_versioX")
    told = python(IMPORT, folder)
    assert refused(
        told, f"built for torch {BUILT}, did not load: ", "undefined symbol: aoti_torch_abi_versioX", REBUILD
    )


def test_no_extension(package, tmp_path):
    file = tmp_path / "torchcow" / EXTENSION.name
    package(b"", b"")
    other = file.with_name("_C.cpython-39-x86_64-linux-gnu.so")
    file.rename(other)
    assert refused(
        python(IMPORT, tmp_path), f"no native extension in {file.parent}", f"only for another Python ({other.name})"
    )
    other.unlink()
    assert refused(python(IMPORT, tmp_path), "a folder of sources that nobody has installed", REBUILD)


def test_no_torch():
    told = python(f"sys.modules['torch'] = None\n{IMPORT}")
    assert refused(told, "torchcow needs torch", f"pip install 'torch=={MINOR}.*'")


def test_a_torch_that_is_broken_speaks_for_itself(tmp_path):
    (tmp_path / "torch.py").write_text("import no_such_library")
    code, text = python(f"sys.path.insert(0, {str(tmp_path)!r})\n{IMPORT}")
    assert code == 1 and text.endswith("ModuleNotFoundError: No module named 'no_such_library'\n")


def test_the_extension_looks_at_the_torch_that_is_loaded_itself(tmp_path):
    """By the door or around it: the release comes from libtorch, in whose place a library of our own answers here."""
    compiler = shutil.which("cc") or shutil.which("gcc") or pytest.skip("no C compiler is installed")
    source = tmp_path / "other.c"
    source.write_text("unsigned long aoti_torch_abi_version(void) { return 2ul << 56 | 99ul << 48; }")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", tmp_path / "other.so"], check=True)
    around = f"""import torch
from importlib.machinery import ExtensionFileLoader as Loader
from importlib.util import module_from_spec, spec_from_loader
spec = spec_from_loader("_C", Loader("_C", {str(EXTENSION)!r}))
spec.loader.exec_module(module_from_spec(spec))
"""
    words = (f"torchcow was built for torch {BUILT}, and the torch that is loaded is release 2.99",)
    code, text = python(around, preload=tmp_path / "other.so")
    assert code == 1 and words[0] in text.strip().splitlines()[-1]
    assert refused(python(IMPORT, preload=tmp_path / "other.so"), *words)
    assert python(around) == (0, "")


def test_doctor_ends_with_what_is_wrong(package, tmp_path):
    """With a traceback before it, because Python imports the package before the command line can catch anything."""
    other = BUILT.replace(MINOR, OTHER)
    package(f"built for torch {BUILT}".encode(), f"built for torch {other}".encode())
    command = [sys.executable, "-m", "torchcow", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert refused((done.returncode, done.stderr), f"torchcow was built for torch {other}", REBUILD)


def test_one_symbol_is_exported():
    reader = shutil.which("nm") or pytest.skip("nm is not installed")
    told = subprocess.check_output([reader, "-D", "--defined-only", EXTENSION], text=True)
    assert [line.split()[-1] for line in told.splitlines()] == ["PyInit__C"]
