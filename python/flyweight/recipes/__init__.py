"""Complete runs as TOML files and the schema that reads them."""
