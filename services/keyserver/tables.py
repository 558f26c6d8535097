"""The one table of the key server. It holds no key, seed or share."""

from sqlalchemy import BigInteger, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the key server."""


class UnmaskedSession(Base):
    """A session for which shares were asked. There is never a second time."""

    __tablename__ = "keyserver_unmasked_sessions"

    session_id: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(200))
    round_id: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(BigInteger)
    survivors_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    recorded_at: Mapped[float]
    """Seconds since the epoch."""
