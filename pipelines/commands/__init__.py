"""What `hvdtrain data` does."""
