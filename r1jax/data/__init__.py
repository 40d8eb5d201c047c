"""Rows to tokens: where rows come from, templates, tokenizers, packing, decontamination."""
