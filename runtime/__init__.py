"""Load an engine bundle and run it. Nothing of the model's Python code, and no torch, is on this path."""
