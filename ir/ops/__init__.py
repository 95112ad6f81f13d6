"""The ops of the Graph, one file a family."""
