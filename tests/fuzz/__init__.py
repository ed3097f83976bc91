"""Requests made from the OpenAPI document, against a real ``llmlb serve``: ``make fuzz``, and a short run as a test."""
