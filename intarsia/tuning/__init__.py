"""Measuring schedules, searching among them, and keeping what was measured."""
