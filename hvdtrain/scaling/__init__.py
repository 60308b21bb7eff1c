"""The cost of communication, from a model."""
