"""Pages and figures: what a run has learnt, what a search finds, why a pair has its score."""
