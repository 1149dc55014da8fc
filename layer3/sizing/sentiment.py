"""Sentiment: the crowd tilts the size a little, towards its own side."""

from __future__ import annotations

from layer3.sizing.config import SentimentConfig

__all__ = ["describe", "multiplier"]


def multiplier(config: SentimentConfig, score: float | None, direction: int) -> float:
    """Multiplier in [1 - weight, 1 + weight] for a sentiment ``score`` in [0, 1] (1 is bullish).

    1.0 inside the neutral band, or where the score is ``None``; outside it moves linearly to
    the full weight at 0 and at 1. Bullish sentiment raises a long (``direction`` +1) and lowers
    a short (-1).
    """
    if score is None or direction == 0:
        return 1.0
    if score > config.neutral_high:
        lean = (score - config.neutral_high) / (1.0 - config.neutral_high)
    elif score < config.neutral_low:
        lean = (score - config.neutral_low) / config.neutral_low
    else:
        return 1.0
    return 1.0 + config.weight * direction * lean


def describe(config: SentimentConfig, score: float | None, direction: int) -> str:
    """The multiplier in words, for a decision's reason."""
    if score is None:
        return "no sentiment given"
    if config.neutral_low <= score <= config.neutral_high:
        return f"score {score:.2f} is neutral ({config.neutral_low:g} to {config.neutral_high:g})"
    mood = "bullish" if score > config.neutral_high else "bearish"
    if direction == 0:
        return f"score {score:.2f} is {mood}, and there is no side to tilt"
    effect = "with" if (score > config.neutral_high) == (direction > 0) else "against"
    return f"score {score:.2f} is {mood}, {effect} a {'long' if direction > 0 else 'short'}"
