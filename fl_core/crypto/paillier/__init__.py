"""Paillier encryption of packed vectors: keys, encryption, decryption, slots, pads and threshold custody.

Ciphertexts are integers modulo n**2 with the generator n + 1, so that they are the same objects as those of `phe`.
Everything here needs gmpy2, which the extra `paillier` installs.

Source: Paillier 1999, Public-Key Cryptosystems Based on Composite Degree Residuosity Classes; Damgård, Jurik and
Nielsen 2010, A generalization of Paillier's public-key system with applications to electronic voting.
"""
