"""Floor 4: the life of a model told in stages over the public API. Contains no method of its own."""
