"""Measuring codecs: metrics, the classical codecs as anchors, BD-rates, tables and plots."""
