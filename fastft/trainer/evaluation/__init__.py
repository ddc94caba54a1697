"""What a model has learned: losses on held-out samples, watched tokens, completions; which evaluation is the best."""
