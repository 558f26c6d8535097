"""Trainers for what sites already have: a torch module, a Flower client."""
