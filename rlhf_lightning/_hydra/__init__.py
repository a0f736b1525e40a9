"""Plugin that Hydra loads in every application of the environment. Imports no torch."""
