"""Models that run on this machine without a network: weights, a generation engine, an Inspect provider."""
