"""Room: ground answers in documents and graphs. Imports no other room."""
