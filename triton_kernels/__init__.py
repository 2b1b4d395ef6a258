"""Triton kernels, a file an operation; installed as ``pycodec.triton_kernels``."""
