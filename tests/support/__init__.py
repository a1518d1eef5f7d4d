# SPDX-License-Identifier: Apache-2.0
"""What several tests use: the oracle, generated objects, ways of writing, programs for other processes."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
