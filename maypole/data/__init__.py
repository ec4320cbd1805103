"""Floor 1: typed rows: reading, checking and converting what users have. Knows nothing about models."""
