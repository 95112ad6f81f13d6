"""Features and predictors of a kernel's time."""
