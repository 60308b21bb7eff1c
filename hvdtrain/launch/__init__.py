"""Start ranks on one or several hosts: placement, network card, launcher commands, Slurm."""
