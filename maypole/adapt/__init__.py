"""Room: fine-tune with adapters, move, merge and reuse them. Knows nothing about preferences."""
