"""Objects as named tensors and JSON, and the files that hold them."""
