"""Pure mathematics, no files: one decoder for all families, its attention, its caches."""
