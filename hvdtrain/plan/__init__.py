"""Arithmetic: config and world size to epochs, steps, batches and rates."""
