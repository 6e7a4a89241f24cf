"""Prompts of models, under the name that users import them by."""

from embellama.text.prompts import Prompt, Prompts

__all__ = ["Prompt", "Prompts"]
