"""Room: answer requests, fast, over HTTP. Knows nothing about how the model was made."""
