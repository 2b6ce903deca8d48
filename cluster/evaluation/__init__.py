"""Evaluations: what selectors and MLLMs score on benchmarks, and how sure that is."""
