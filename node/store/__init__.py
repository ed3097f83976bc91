"""The models on the disk."""
