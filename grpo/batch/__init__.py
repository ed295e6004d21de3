"""One optimizer step as flat tensors: built, weighed, and cut into micro-batches for the ranks."""
