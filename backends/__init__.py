"""Code generation, one folder a target."""
