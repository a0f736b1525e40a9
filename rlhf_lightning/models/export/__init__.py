"""Folders and copies that a trained model leaves for other programs: plain weights, by transformers' names."""
