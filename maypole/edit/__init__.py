"""Room: correct facts in weights. Knows nothing about training loops."""
