"""The Python API: what `import hvdtrain` offers by name."""
