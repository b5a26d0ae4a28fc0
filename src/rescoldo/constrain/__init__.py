"""Constrained decoding: grammars (JSON Schema, regular expression, choices) and the tokens that they allow."""

from rescoldo.constrain.grammar import Grammar, GrammarError, choices, json_object, json_schema, lark, regex
from rescoldo.constrain.matcher import Compiler

__all__ = [
    "Compiler",
    "Grammar",
    "GrammarError",
    "choices",
    "json_object",
    "json_schema",
    "lark",
    "regex",
]
