"""Schedule steps: rewrites of one kernel, each checked, and the default schedules."""
