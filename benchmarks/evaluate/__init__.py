"""Images of engines on equal terms: the same prompts and seeds, drawn in turn, compared with a reference and judged."""
