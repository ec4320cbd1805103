"""Room: look inside a model. Changes nothing it looks at."""
