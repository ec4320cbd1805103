"""Room: look inside a model. Knows nothing about training and changes nothing it looks at."""
