"""Floor 5: the face: parse, call, show. No logic."""
