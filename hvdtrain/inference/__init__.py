"""Using a trained network: predictions, exports, and pages about evaluations."""
