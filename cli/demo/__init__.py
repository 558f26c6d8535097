"""`tacit demo`: ten sites train one model while three of them are killed, and every claim is checked."""
