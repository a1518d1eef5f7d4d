"""What an object consists of: its tensors and parts by dotted name, and the adapters of frameworks."""
