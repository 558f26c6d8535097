"""`tacit loadtest`: many light sites over real mTLS, and what a round costs everybody."""
