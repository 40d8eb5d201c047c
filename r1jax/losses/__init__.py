"""Every formula, with its equation, on what logprobs.py gives.

Shape legend: B rows, L tokens, C completions of the update (entry 0 of a per-completion array
stands for "none"). Losses return a *partial sum*: weights divide by counts of the whole update, so
the losses (and gradients) of its microbatches add up to one big batch's.
"""
