"""What an adapter may be called where clients name it. Knows nothing about adapters."""

ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""No part of a path."""
