"""From prompts to completions: the engine and its programs, sampling, questions to rewards."""
