"""Run directories in, pages out: neither Ray nor torch."""
