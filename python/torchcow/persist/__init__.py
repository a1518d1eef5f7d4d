# SPDX-License-Identifier: Apache-2.0
"""Objects as named tensors and JSON, and the files that hold them."""
