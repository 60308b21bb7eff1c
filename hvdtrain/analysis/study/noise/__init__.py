"""`hvdtrain study noise-scale`: how large a batch is useful, and on how many machines. Read `estimate.py` first."""
