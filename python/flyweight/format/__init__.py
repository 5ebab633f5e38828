"""The .fly container: header, directory, sections, inspection (docs/format.md)."""
