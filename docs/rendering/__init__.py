"""The derived parts of README and docs, by subject. Reads code and stored results; knows nothing about pages."""
