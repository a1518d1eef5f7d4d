"""What an object consists of: its children and tensors by dotted name, and the adapters of frameworks."""
