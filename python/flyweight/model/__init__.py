"""The transformer and its configuration."""
