"""Engines and the worker processes they live in."""
