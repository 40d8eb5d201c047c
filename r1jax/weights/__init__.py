"""All that MODEL may be, files to parameters and back: checkpoints, Hugging Face, GGUF."""
