"""Types, errors, the Graph and Kernel representations, their text, verifiers and interpreters."""
