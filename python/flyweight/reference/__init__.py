"""Pure NumPy twins of the kernels: slow, obvious, the executable specification."""
