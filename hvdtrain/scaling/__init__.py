"""A cost model of training on a cluster: step time, efficiency, hours. Read `predict.py` first."""
