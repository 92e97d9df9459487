"""A training, a grid of them, and several processes at it."""
