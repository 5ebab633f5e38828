"""Codecs that turn symbols into bytes, layouts that arrange them, and the choice per tensor."""
