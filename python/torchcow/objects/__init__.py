# SPDX-License-Identifier: Apache-2.0
"""What an object consists of: its children and tensors by dotted name, and the adapters of frameworks."""
