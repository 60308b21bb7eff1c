"""Seeded faults in real training jobs: `make chaos`, see CONTRIBUTING.md."""
