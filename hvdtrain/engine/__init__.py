"""What happens in a step: gradients, updates, checkpoints."""
