"""The plan of a run: pure arithmetic from config and world size to epochs, steps, batches and rates.

Read `epochs.py` first.
"""

from hvdtrain.calling import make_callable

make_callable(__name__)
