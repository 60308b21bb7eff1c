"""Measurements before a run: `hvdtrain tune` and `hvdtrain scaling calibrate`. Read `tune.py` first."""
