"""llmlb: one LLM service out of any set of machines."""

__version__ = "0.1.0"
