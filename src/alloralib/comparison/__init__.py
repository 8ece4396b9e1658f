"""Comparisons of methods: paired differences, their confidence intervals and tests."""
