"""The coordinator's database and its schema."""

from services.runtime.database import upgrade

MIGRATIONS = "services.coordinator:migrations"


async def upgrade_database(url: str) -> str:
    """Bring the coordinator's database to the newest schema; an up-to-date one stays as it is.

    Args:
        url: `sqlite:///path` or `postgresql://user:password@host/name`.

    Returns:
        The revision that it is at now.

    Raises:
        ConfigError: the URL is wrong.
        StorageError: the database failed.
    """
    return await upgrade(url, MIGRATIONS)
