# SPDX-License-Identifier: Apache-2.0
"""What is shipped, what it requires, and that a torch that nobody has tried is refused before anything is compiled.

Catches: a file that is in the repository and not in the sdist, or the other way round; a wheel that goes with any
torch; a build that starts although it cannot end well; a refusal that does not say what is wrong and what to do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from pathlib import Path

import pytest

import torchcow
from support import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a checkout")
pytest.importorskip("build")
pytest.importorskip("scikit_build_core")

if (ROOT / "cmake").is_dir():
    sys.path.insert(0, str(ROOT / "cmake"))
    import torch_release

    sys.path.remove(str(ROOT / "cmake"))


def run(*command, **env):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """What is in it, by name; its file is ``sdist[None]``."""
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.iterdir()
    assert file.name == f"torchcow-{torchcow.__version__}.tar.gz"
    with tarfile.open(file) as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {f"torchcow-{torchcow.__version__}"}
        members = {name.partition("/")[2]: tar.extractfile(name).read() for name in tar.getnames()}
    return {None: file, **members}


def test_the_sdist_is_what_is_in_the_repository(sdist):
    if not shutil.which("git") or run("git", "rev-parse", "--show-toplevel").stdout.strip() != str(ROOT):
        pytest.skip("no git checkout that tells what belongs to the project")
    known = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    files = {name for name in known if name and (ROOT / name).is_file()}
    assert {"csrc/core/block.cpp", "cmake/torch.cmake", "tests/conftest.py", "examples/README.md", "LICENSE"} < files
    assert sdist.keys() - {None} == files | {"PKG-INFO"}
    assert all(sdist[name] == (ROOT / name).read_bytes() for name in files)


def test_nothing_that_was_built_is_in_the_sdist(sdist):
    built = re.compile(r"(^|/)(build|dist|\.git|\.venv[^/]*|__pycache__|\.\w+_cache)/|\.(so|pyc|o)$")
    assert [name for name in sdist if name and built.search(name)] == []


def test_what_the_sdist_says_of_itself(sdist):
    about = message_from_bytes(sdist["PKG-INFO"])
    assert about["Version"] == torchcow.__version__
    assert about.get_all("License-File") == ["LICENSE", "NOTICE"]
    requires = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert [re.split(r"\W", line)[0] for line in requires] == ["torch", "rich", "typer"]
    assert requires[0].replace(" ", "") in ("torch>=2.11,<2.16", "torch<2.16,>=2.11")
    assert about.get_all("Dynamic") == ["Requires-Dist"], "a wheel requires the torch that it was compiled for"
    pytest.importorskip("twine")
    done = run(sys.executable, "-m", "twine", "check", "--strict", str(sdist[None]))
    assert done.returncode == 0, done.stdout


def test_the_documents_name_the_releases_that_were_tried():
    told = "torch {}.{} to {}.{}".format(*torch_release.FIRST, *torch_release.LAST)
    assert told in (ROOT / "README.md").read_text()


STAND_IN = """
class _C:
    _GLIBCXX_USE_CXX11_ABI = True
__version__ = {!r}
"""
UNTRIED = ("tried with the releases 2.11 to 2.15", "pip install 'torch>=2.11,<2.16'", "set TORCHCOW_UNTRIED_TORCH=1")
REFUSED = {
    "2.10.1+cu128": ("torchcow needs torch 2.11 or newer; torch 2.10.1+cu128 is installed in ", "pip install 'torch>="),
    "2.16.0": ("torch 2.16.0 is installed in", *UNTRIED),
    "3.0": UNTRIED,
    "2.13.0a0+git1234": ("torch 2.13.0a0+git1234 is installed in", *UNTRIED),
    None: ("sees none", "  pip install --no-build-isolation .", "If not, install it first: pip install 'torch>="),
}


@pytest.fixture
def torch_is(tmp_path):
    """Put a torch of that version, or none, in the place of the one that is installed; the environment that has it."""

    def make(version):
        (tmp_path / "torch").mkdir()
        hidden = "raise ModuleNotFoundError('No module named torch', name='torch')"
        (tmp_path / "torch" / "__init__.py").write_text(STAND_IN.format(version) if version else hidden)
        return {"PYTHONPATH": str(tmp_path)}

    return make


def metadata(folder, **env):
    """What pip asks for first."""
    code = "import sys; from scikit_build_core import build; build.prepare_metadata_for_build_wheel(sys.argv[1])"
    return run(sys.executable, "-c", code, str(folder), **env)


@pytest.mark.parametrize("version", REFUSED)
def test_a_torch_that_was_not_tried_is_refused_by_pip(version, torch_is, tmp_path):
    done = metadata(tmp_path, **torch_is(version))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in REFUSED[version]), done.stderr


@pytest.mark.parametrize("version", ["2.10.1+cu128", None])
def test_and_by_cmake(version, torch_is, tmp_path):
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = (cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DPython_EXECUTABLE={sys.executable}")
    done = run(*command, **torch_is(version))
    assert done.returncode != 0
    told = " ".join(done.stderr.split())
    assert all(" ".join(word.split()) in told for word in REFUSED[version]), done.stderr


@pytest.mark.parametrize(
    ("version", "requires"),
    [
        ("2.11.0+cpu", "2.11.*"),
        ("2.13.1", "2.13.*"),
        ("2.15.0+cu132", "2.15.*"),
        ("2.16.0", "2.16.*"),
        ("2.17.0.dev20260101+cpu", "2.17.0.dev20260101"),
    ],
)
def test_a_wheel_requires_the_torch_that_it_was_compiled_for(version, requires, torch_is, tmp_path):
    done = metadata(tmp_path, **torch_is(version), TORCHCOW_UNTRIED_TORCH="1" if version > "2.16" else "")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.dist-info/METADATA")
    assert f"Requires-Dist: torch=={requires}\n" in file.read_text()


@pytest.mark.parametrize(("name", "value"), [("platform", "darwin"), ("platform", "win32"), ("implementation", "pypy")])
def test_other_platforms_are_refused(name, value, monkeypatch):
    if name == "implementation":
        monkeypatch.setattr(sys.implementation, "name", value)
    else:
        monkeypatch.setattr(sys, name, value)
    with pytest.raises(SystemExit, match=f"torchcow works on Linux with CPython; this is .*{value}"):
        torch_release.installed()


def test_each_source_names_its_license():
    """Catches: a new file without the line that says under which license it may be used."""
    suffixes = {".cpp", ".h", ".cu", ".py", ".pyi", ".sh", ".cmake"}
    folders = ("python", "csrc", "tests", "benchmarks", "cmake", "examples")
    files = [one for folder in folders for one in (ROOT / folder).rglob("*") if one.suffix in suffixes]
    assert len(files) > 200
    without = [one for one in files if "SPDX-License-Identifier: Apache-2.0" not in one.read_text()[:300]]
    assert [str(one.relative_to(ROOT)) for one in without if "data" not in one.parts] == []
