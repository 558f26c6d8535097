"""`tacit privacy`: what a budget buys, and what a job has spent."""
