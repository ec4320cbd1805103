"""Floor 1: any Hugging Face model: loading, its blocks, packed attention, a chunked head. Knows nothing about rows."""
