"""`hvdtrain compare`: groups of runs side by side, and whether their differences are more than chance."""
