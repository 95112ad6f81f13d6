"""Programs cut into stages that work on micro-batches one after the other: pipelines of devices."""
