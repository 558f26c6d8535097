"""The coordinator: jobs, cohorts, rounds and the global model. It never sees a single update or a secret key."""
