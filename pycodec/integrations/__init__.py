"""pycodec inside other libraries: Pillow, PyTorch data loading."""
