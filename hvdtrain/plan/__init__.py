"""The plan of a run: pure arithmetic from config and world size to epochs, steps, batches and rates.

Read `epochs.py` first.
"""
