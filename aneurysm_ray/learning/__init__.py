"""Patches, networks, losses, the training loop and inference: torch and MONAI, no Ray."""
