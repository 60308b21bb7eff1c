"""The configuration: its schema, and YAML into it."""
