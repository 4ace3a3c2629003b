"""The conversation and the judging as plain generators of asks, and the drivers and prompts they share."""
