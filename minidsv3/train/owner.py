"""A run owns its folder, from the first look at it to its last file.

So two runs never write to one folder. The owner holds a lock, which the system takes back when the
process ends, however it ends; the file that is then left behind is in nobody's way.
"""

from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..command import UserError
from ..files import LOCK, make_folder
from .team import ALONE


@contextmanager
def owned(path, team=ALONE):
    """Own the folder of a run within this context; it is made if there is none.

    A folder made here that stays empty is removed again. Of several processes the first one holds
    the lock, and all of them are refused if it is. Raises UserError if another run owns the folder,
    or if it cannot be one.
    """
    path, lock, problem = Path(path), None, None
    new = [each for each in (path, *path.parents) if not each.exists()]
    try:
        if team.first:
            make_folder(path)
            lock = take(path)
    except (UserError, OSError) as error:
        problem = error
    try:
        if team.any(problem is not None):
            raise problem or UserError(f"{path} cannot be owned by the first process.")
        yield
    finally:
        if lock is not None:
            give_back(lock)
        for folder in new if team.first else []:
            with suppress(OSError):              # it is not empty
                folder.rmdir()


def take(path):
    """The lock of a folder. UserError if another process holds it."""
    lock = FileLock(path / LOCK)
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another run writes to {path}; wait for its end or stop it, or name "
                            "another folder with --out.") from None
        if (path / LOCK).exists():
            return lock
        lock.release()                           # its last owner has just removed it


def give_back(lock):
    """Release a lock and remove its file."""
    file = Path(lock.lock_file)
    try:
        file.unlink()                            # now: later it may be the file of another run
        lock.release()
    except OSError:                              # Windows removes no open file
        lock.release()
        with suppress(OSError):
            file.unlink()
