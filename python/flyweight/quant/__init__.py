"""Grids, scale rules and GPTQ: weights to codes and scales."""
