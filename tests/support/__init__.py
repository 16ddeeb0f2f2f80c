"""Helpers of the tests: random vFMs, references by plain transformers + peft, a live server and load on it."""
