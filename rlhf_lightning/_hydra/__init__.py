"""What Hydra loads of this package in every application of the environment. Imports no torch."""
