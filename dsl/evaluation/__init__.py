"""Syntax tree to Graph. Functions are evaluated as an interpreter would, on graph values, elements of index notation
and static values; names, types, shapes and bounds are checked on the way.

`builder.py` holds the state of one build and dispatches; every other file has one subject.
"""
