"""rANS streams, integer probability tables and the file container."""
