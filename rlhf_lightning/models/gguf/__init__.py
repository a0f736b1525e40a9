"""GGUF files: models read from them, and written for llama.cpp."""
