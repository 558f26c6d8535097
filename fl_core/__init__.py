"""The core of Tacit: cryptography, codecs, secure aggregation, rounds, wire and transport.

Everything below `fl_core.wire` is pure: no network, no clock, no logging.
"""

import os

__version__ = "0.1.0"

# gRPC for Python has no argument for the lowest TLS version. With ECDSA certificates and only an RSA suite
# for TLS 1.2, every TLS 1.2 handshake fails and TLS 1.3 (which this setting does not govern) remains.
# gRPC reads it when it is first imported, so it stands in the one module that every import passes.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384")
