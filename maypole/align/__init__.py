"""Room: train on preferences and rewards. Knows nothing about where a judge's opinion comes from."""
