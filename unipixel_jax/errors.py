"""The one exception type that the command line shows as a single line."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the caller can put right. The message names what was found, what was expected, and what to do."""
