"""Where time goes: spans of stages, layers and kernels, the machine's ceilings, reports."""
