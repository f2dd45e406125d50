"""Simple baselines of image-text matching, on the parts of itmkit: what a system has to beat."""
