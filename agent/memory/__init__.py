"""Documents: splitting, encoding, index and search."""
