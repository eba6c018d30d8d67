"""The tuning half of the loop: feedback in, a gated adapter out."""
