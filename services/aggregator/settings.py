"""Settings of the aggregator."""

import os

from pydantic import Field

from services.runtime.settings import Addresses, ServiceSettings


class AggregatorSettings(ServiceSettings):
    """What the aggregator needs beside the settings of every service.

    Args:
        coordinator: host:port of each coordinator; an aggregate goes to the one that opened its session.
        memory_budget_bytes: staged uploads that are kept in memory; those beyond it go to disk.
        max_sessions: sessions that may be open at once.
        max_sum_bytes: running sums of all open sessions together.
        max_uploads: uploads that are received at once; the others wait.
        max_waiting_uploads: uploads that wait for their turn; about 70 KB each. Sites beyond them are told when
            to come back.
        max_partial_uploads: uploads that broke off and are kept, so that their sites can go on with them.
        streams_per_caller: streams that one site or service may hold open at once.
        stall_timeout_seconds: longest pause between two messages of a stream.
        decryption_timeout_seconds: how long the key server may take to decrypt one sum.
        crypto_threads: threads that add up encrypted uploads, and that blind their sum.
        report_timeout_seconds: how long the coordinator is tried before an aggregate is given up.
    """

    coordinator: Addresses
    memory_budget_bytes: int = Field(default=16 << 20, ge=0)
    max_sessions: int = Field(default=16, ge=1)
    max_sum_bytes: int = Field(default=8 << 30, ge=1)
    max_uploads: int = Field(default=6, ge=1)
    max_waiting_uploads: int = Field(default=1_000, ge=1)
    max_partial_uploads: int = Field(default=256, ge=0)
    streams_per_caller: int = Field(default=4, ge=1)
    stall_timeout_seconds: float = Field(default=30.0, gt=0)
    report_timeout_seconds: float = Field(default=60.0, gt=0)
    decryption_timeout_seconds: float = Field(default=600.0, gt=0)
    crypto_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
