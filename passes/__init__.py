"""Passes over a Module, one file each."""
