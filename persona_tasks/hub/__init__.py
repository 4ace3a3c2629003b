"""Checkpoints and scores for other people: the registry, model cards, publishing to the Hub, and the leaderboard."""
