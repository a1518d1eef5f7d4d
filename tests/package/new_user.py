# SPDX-License-Identifier: Apache-2.0
"""A new user, who has the sdist and follows the README. Run by ``make test-package``: it compiles the extension anew.

The environment is fresh. It sees torch, the build tools and the libraries that torchcow requires where they lie
already, and nothing else of the environment that runs this; pip stays off the network.

Catches: a file that the sdist lacks, a command or an example of the README that fails, a requirement that is not
declared, a package that works in its own folder only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import torchcow

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
HAS = ("torch", "scikit-build-core", "cmake", "ninja")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MINOR = ".".join(torch.__version__.split(".")[:2])


def python_in_the_readme():
    return [code for language, code in FENCE.findall(README) if language == "python"]


def commands_in_the_readme(*starts):
    """Lines of shell that start so: indented, or between fences that do not say python."""
    lines = re.findall(r"^    (.+)$", FENCE.sub("", README), re.MULTILINE)
    lines += [line for language, code in FENCE.findall(README) if language != "python" for line in code.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith(starts)]


def needs(package):
    """What pip installs with a package, without extras."""
    found = map(Requirement, package.requires or ())
    return [need.name for need in found if need.marker is None or need.marker.evaluate({"extra": ""})]


def link(packages, folder):
    """A folder with links to packages of this environment, and to those that they require."""
    folder.mkdir()
    todo, seen = list(packages), set()
    while todo:
        package = todo.pop()
        if package in seen or seen.add(package):
            continue
        found = metadata.distribution(package)
        todo += needs(found)
        for name in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(found.locate_file(name))
    return folder


class User:
    """A folder of their own, an environment, and the unpacked sdist."""

    def __init__(self, folder):
        self.home, self.source, self.environment = folder / "home", folder / "source", folder / "environment"
        self.home.mkdir()
        build = (sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT)
        subprocess.run(build, check=True, capture_output=True)
        with tarfile.open(next(folder.glob("torchcow-*.tar.gz"))) as tar:
            tar.extractall(folder, filter="data")
        next(path for path in folder.glob("torchcow-*") if path.is_dir()).rename(self.source)
        subprocess.run((sys.executable, "-m", "venv", self.environment), check=True)
        self.run("pip uninstall -q -y setuptools")  # older ones come with venv, and torch requires a newer one
        (self.packages,) = self.environment.glob("lib/python*/site-packages")
        about = metadata.PathDistribution(self.source)
        self.links = link([*HAS, *needs(about)], folder / "links")
        (self.packages / "links.pth").write_text(f"{self.links}\n")

    def run(self, command, where=None, **env):
        """Run a command as one types it; what it printed."""
        own = {"PATH": f"{self.environment / 'bin'}:{os.environ['PATH']}", **env}
        own |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        keep = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "CC", "CXX") if name in os.environ}
        shell = ("bash", "-ec", command)
        done = subprocess.run(shell, cwd=where or self.home, env=keep | own, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, code, **env):
        (self.home / "program.py").write_text(code)
        return self.run("python program.py", **env)


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    made = User(tmp_path_factory.mktemp("user"))
    commands = commands_in_the_readme("pip install", "python -m pip install")
    assert any("--no-build-isolation" in command for command in commands)
    for command in commands:
        made.run(command, where=made.source)
    return made


def test_what_is_installed(user):
    about = user.packages / f"torchcow-{torchcow.__version__}.dist-info"
    files = user.run("pip show --files torchcow").split("Files:\n")[1].split()
    assert len([name for name in files if name.endswith(".so")]) == 1
    packages = {name.split("/")[0] for name in files if "/" in name and not name.startswith("../")}
    assert packages == {"torchcow", "torchcow_cli", about.name, "__pycache__"}
    assert [name.rpartition("/")[2] for name in files if name.startswith("../")] == ["torchcow"]  # the script
    assert user.run("torchcow --version").split()[-1] == torchcow.__version__
    assert f"{about.name}/licenses/NOTICE" in files
    assert f"Requires-Dist: torch=={MINOR}.*\n" in (about / "METADATA").read_text()
    assert "No broken requirements found." in user.run("pip check")


@pytest.mark.parametrize("code", python_in_the_readme())
def test_python_in_the_readme_runs(code, user):
    told = user.python(f"{code}\nprint(torchcow.__file__)")
    assert told.splitlines()[-1] == str(user.packages / "torchcow" / "__init__.py")


def test_commands_in_the_readme_run(user):
    commands = commands_in_the_readme("python -m torchcow")
    commands += [f"python -m torchcow demo {options}" for options in re.findall(r'DEMO_ARGS="([^"]+)"', README)]
    for command in commands:
        user.run(command)
    assert commands


def test_doctor(user):
    report = json.loads(user.run("python -m torchcow doctor --json"))
    found = {one["topic"]: one["found"] for one in report["findings"]}
    assert report["state"] != "broken"
    assert f"built against torch {torch.__version__}, in {user.packages / 'torchcow'}" in found["torchcow"]


def test_patched_from_outside(user):
    code = "import copy, torch\nsource = torch.ones(99999)\nclone = copy.deepcopy(source)\n"
    code += "import torchcow\nprint(torchcow.is_shared(clone))"
    assert user.python(code, TORCHCOW_PATCH="1") == "True\n"
    assert user.python(code) == "False\n"


def test_torch_alone_is_enough_for_clones_and_the_rest_says_what_it_needs(user):
    libraries = ("rich", "typer")
    for name in libraries:
        (user.links / name).rename(user.links.parent / name)
    try:
        user.python(WITHOUT_LIBRARIES)
    finally:
        for name in libraries:
            (user.links.parent / name).rename(user.links / name)


WITHOUT_LIBRARIES = """
import importlib.util, subprocess, sys, torch, torchcow

assert not any(map(importlib.util.find_spec, ("rich", "typer", "safetensors")))
model = torch.nn.Linear(999, 99)
clone = torchcow.clone(model)
assert torchcow.is_shared(clone.weight) and "Linear" in str(torchcow.memory(model, clone))
torchcow.save_delta(clone, model, "delta.safetensors")
torchcow.Registry("registry").add("model", model)
try:
    torchcow.Prototype(model).spawn(2, progress=True)
except ImportError as error:
    assert "pip install rich" in str(error), error
else:
    raise AssertionError("a progress bar without rich")
done = subprocess.run([sys.executable, "-m", "torchcow", "doctor"], capture_output=True, text=True)
# The last line: torch warns before it that there is no NumPy.
assert done.returncode == 2 and "pip install rich typer" in done.stderr.splitlines()[-1], done
assert "Traceback" not in done.stderr
"""


def test_the_tests_run_from_the_sdist(user):
    tools = link(("pytest", "numpy", "expecttest", "hypothesis"), user.home.parent / "tools")
    told = user.run("python -m pytest -q tests/deepcopy/test_semantics.py", where=user.source, PYTHONPATH=str(tools))
    assert re.search(r"^\d+ passed", told, re.MULTILINE)
