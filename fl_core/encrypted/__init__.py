"""Aggregation by Paillier encryption: what a site uploads, how uploads are added, and how their sum is opened.

Every plaintext carries a pad that only the key server can make, and the sum carries one that only the aggregator can,
so that neither of them can read what the other one hands over. Everything here needs gmpy2.
"""
