"""The services of a federation and the runtime that they share."""

import fl_core  # noqa: F401 - its TLS setting must stand before anything here imports grpc
