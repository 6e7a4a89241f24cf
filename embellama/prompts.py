"""Prompts of models, as users import them."""

from embellama.text.prompts import Prompt, Prompts

__all__ = ["Prompt", "Prompts"]
