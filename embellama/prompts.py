"""Prompts of models, under the name that users import them by."""

from embellama.text.prompt import Prompt
from embellama.text.prompts import Prompts

__all__ = ["Prompt", "Prompts"]
