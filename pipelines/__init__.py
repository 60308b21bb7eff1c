"""The data pipelines: from a dataset on disk to batches on the device of one rank.

Read `loader.py` first. `sources/` reads datasets, `images/` decodes and augments, `commands/` is
`hvdtrain data`; the modules here decide which samples a step uses and prepare batches ahead.
"""
