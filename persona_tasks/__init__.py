"""Measure, train and publish simulated users that stay in character."""

__version__ = "0.1.0"
