"""Metrics: one sink that fans out to `metrics.jsonl`, the console and trackers, each in a file of its own here.

`names.py` has a row for every metric; console, report and trackers take from it what they show.
"""

from services.metrics.jsonl import FILE, read_metrics
from services.metrics.sink import MetricsSink

__all__ = ["FILE", "MetricsSink", "read_metrics"]
