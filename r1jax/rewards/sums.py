"""How the paper adds its rewards (R1 eq 4 and 8 to 10; Nature, section 2 and 3.2).

A config's weights say the same where every prompt is of one kind; these are for mixed prompts.
"""

from __future__ import annotations


def rule_reward(accuracy: float, format: float) -> float:
    """Eq 4: accuracy and format, with the same weight."""
    return accuracy + format


def reasoning_reward(rule: float) -> float:
    """Eq 9: on reasoning prompts the rules alone."""
    return rule


def general_reward(reward_model: float, format: float) -> float:
    """Eq 10: on general prompts the reward model, helpful or safety, and the format."""
    return reward_model + format


def total_reward(reasoning: float, general: float, language: float) -> float:
    """Eq 8: a prompt is of one kind, the other kind's reward is 0; the language counts in all."""
    return reasoning + general + language
