"""The configuration: its schema, and how YAML files are read into it."""
