"""Lengths that a plan needs to know, kept where reading them loads no cryptographic library."""

LONGEST_SIGNATURE = 72
"""Bytes of the longest DER signature: two integers of 33 bytes, each with 2 bytes in front, in a sequence."""
