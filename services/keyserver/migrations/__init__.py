"""The schema of the key server's database, step by step."""
