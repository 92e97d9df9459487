"""From a trained network to a file that predicts alike, and its use."""
