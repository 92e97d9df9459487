"""Timing: of training steps, of engines that answer, and of the device's peaks."""
