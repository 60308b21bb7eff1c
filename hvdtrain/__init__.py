"""hvdtrain: large-batch image-classifier training on Ethernet clusters."""

__version__ = "0.1.0"
