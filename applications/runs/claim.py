"""The folder that a run writes to: whose it is, who is writing there, and what it replaces.

A run holds ``lock``, a lock of the operating system, while it lasts. Its mark (``mark.json``) is
written before anything else; what carries no mark is never changed. Where a finished result is
there already, a new run works in ``next/`` and takes its place at the end.
"""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from applications import processes
from applications.errors import UsageError
from applications.models.loading import location
from applications.options.arguments import Options
from applications.pages.locking import held
from applications.pages.writing import remove_drafts
from applications.runs.ending import begun_anew
from applications.runs.mark import Mark, read_mark
from applications.runs.naming import HANDED, LOCK, MARK, NEXT
from applications.runs.outputs import CHECKPOINTS, FILES, FOLDERS, RunFolder, result_names

LOGS = (".log", ".out", ".err")


@dataclass
class Claim:
    """The right to write to a run's folder, for as long as the run lasts.

    Args:
        place: the folder that was asked for.
        resume: whether to go on from what is there.
        handed: whether the lock came from ``compare``, whose folder it is then.
    """

    place: Path
    resume: bool
    handed: bool
    folder: RunFolder | None = None
    mark: Mark | None = None

    def reserve(self, mark: Mark) -> None:
        """Mark the folder before the run begins, for what is written there on the way to it."""
        if processes.is_first() and read_mark(self.place) is None:
            mark.write(self.place)

    def begin(self, mark: Mark, say: Callable[[str], None]) -> RunFolder:
        """The folder that the run works in, with its mark, empty of what it will not go on from.

        Of several processes, the first one alone changes it.

        Raises:
            UsageError: ``resume`` was asked for and the folder holds another run.
        """
        self.folder = processes.from_first(lambda: self.prepared(mark, say))
        return self.folder

    def prepared(self, mark: Mark, say: Callable[[str], None]) -> RunFolder:
        """Do so."""
        folder = self.working(mark, say) if self.resume else self.emptied(mark, say)
        then = read_mark(folder.path) if self.resume else None
        # Where a finished result is gone on with, it stays whole: files are replaced one by one.
        self.mark = replace(mark, finished=None if then is None else then.finished)
        self.mark.write(folder.path)
        return folder

    def working(self, mark: Mark, say: Callable[[str], None]) -> RunFolder:
        """The folder of the run to go on with."""
        place = next((p for p in (self.place / NEXT, self.place) if read_mark(p)), None)
        if place is None:
            refuse_foreign(self.place, handed=self.handed)
            return self.new(mark)  # of compare, where nothing has begun yet
        then = read_mark(place)
        assert then is not None
        difference = mark.differences(then)
        if difference is not None:
            raise UsageError(
                f"argument --resume: {place} cannot be gone on with: {difference}, or "
                f"{begun_anew(place)}"
            )
        if (other := mark.other_machine(then)) is not None:
            say(other)
        folder = RunFolder(place)
        if not folder.checkpoints():
            say(f"--resume: the run in {place} has left no checkpoint; it begins anew")
            folder.clear()
        return folder

    def new(self, mark: Mark) -> RunFolder:
        """The folder itself, marked and then empty."""
        mark.write(self.place)
        folder = RunFolder(self.place)
        folder.clear()
        return folder

    def emptied(self, mark: Mark, say: Callable[[str], None]) -> RunFolder:
        """The folder of a new run."""
        then = read_mark(self.place)
        following = self.place / NEXT
        if following.exists():
            shutil.rmtree(following)
        if then is not None and then.finished is not None:
            following.mkdir()
            say(f"{self.place} keeps its finished result until the new one is there")
            return RunFolder(following)
        if then is not None and RunFolder(self.place).checkpoints():
            say(f"{self.place}: replacing an unfinished run (--resume would have gone on with it)")
        return self.new(mark)

    def finish(self) -> None:
        """Say that the result is whole, and give it the place of an earlier one."""
        if not processes.is_first():
            return
        assert self.folder is not None
        assert self.mark is not None
        names = tuple(result_names(self.folder.path))
        replace(self.mark, finished=names).write(self.folder.path)
        put_in_place(self.place)


@contextmanager
def claimed(options: Options) -> Iterator[Claim]:
    """The run's folder, held by the first of its processes.

    Raises:
        UsageError: as `taken`, in all processes.
    """
    with ExitStack() as stack:
        yield processes.from_first(lambda: stack.enter_context(taken(options)))


@contextmanager
def taken(options: Options) -> Iterator[Claim]:
    """The run's folder, held against other runs; removed again where nothing was begun in it.

    Raises:
        UsageError: the folder is not the run's to write in, or another run is at work there.
    """
    place = Path(str(options.run.output_dir))
    resume, handed = options.run.resume, handed_lock(place)
    check_path(place)
    check_model(place, options)
    check_read(place, options)
    if resume and not handed:
        check_resumable(place)
    refuse_foreign(place, handed=handed)
    made = [path for path in (place, *place.parents) if not path.exists()]
    create(place)
    try:
        with held(place / LOCK, wait=False) as lock:
            if lock is None and not handed:
                raise UsageError(
                    f"argument --output_dir: another run is at work in {place} (process "
                    f"{holder(place)}); wait for its end, or give another folder"
                )
            if lock is not None:
                os.truncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
            mend(place)
            claim = Claim(place, resume, handed)
            try:
                yield claim
            finally:
                if claim.folder is None and place in made:
                    (place / LOCK).unlink(missing_ok=True)
    finally:
        for path in made:  # those that hold something stay
            with suppress(OSError):
                path.rmdir()


def handed_lock(place: Path) -> bool:
    """Whether the process that started this one handed it the folder's lock."""
    try:
        descriptor = os.fstat(int(os.environ[HANDED]))
        return os.path.samestat(descriptor, os.stat(place / LOCK))
    except (KeyError, ValueError, OSError):
        return False


def holder(place: Path) -> str:
    """The process in a lock's file, as far as it is known."""
    with suppress(OSError):
        return (place / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "unknown"
    return "unknown"


def check_path(place: Path) -> None:
    """Raise a UsageError where no folder can be at a path."""
    for path in (place, *place.parents):
        if path.exists():
            if not path.is_dir():
                raise UsageError(
                    f"argument --output_dir: {str(place)!r} cannot be a folder, {path} is a file; "
                    f"give another one"
                )
            if not os.access(path, os.W_OK | os.X_OK):
                raise UsageError(
                    f"argument --output_dir: nothing can be written to {path}; give a folder that "
                    f"you may write to"
                )
            return


def check_model(place: Path, options: Options) -> None:
    """Raise a UsageError where the base model would be written over."""
    name = options.model.model_name_or_path
    model = Path(name if Path(name).is_dir() else location(options.model)).resolve()
    target = place.resolve()
    if model.is_dir() and (target == model or target in model.parents):
        what = "is" if target == model else "holds"
        raise UsageError(
            f"argument --output_dir: {place} {what} the folder of the base model, {model}, which "
            f"is not written over; give another folder"
        )


def check_read(place: Path, options: Options) -> None:
    """Raise a UsageError where what is read is an earlier run's result, which would be replaced."""
    data, target = options.data, place.resolve()
    read = [("experts", path) for path in options.adapter.experts or ()]
    for name in ("train_file", "validation_file", "test_file"):
        read += [(name, getattr(data, name))] * (getattr(data, name) is not None)
    for argument, path in read:
        whole = Path(path).resolve()
        if target not in whole.parents:
            continue
        first = whole.relative_to(target).parts[0]
        if first in (*FOLDERS, *FILES) or first.startswith("generated"):
            raise UsageError(
                f"argument --output_dir: {place} holds what --{argument} names, {path}, which the "
                f"run would replace; give another folder"
            )


def check_resumable(place: Path) -> None:
    """Raise a UsageError where there is no run to go on with."""
    if read_mark(place) is None and read_mark(place / NEXT) is None:
        raise UsageError(
            f"argument --resume: no run of this command has begun in {place} (there is no "
            f"{MARK}); check --output_dir, or leave --resume out to begin one"
        )


def refuse_foreign(place: Path, *, handed: bool) -> None:
    """Raise a UsageError where a folder holds what no run of these commands has marked."""
    if handed or not place.is_dir() or read_mark(place) or read_mark(place / NEXT):
        return
    found = sorted(
        each.name
        for each in place.iterdir()
        if each.name not in (LOCK, "log.txt")
        and not each.name.startswith(".")
        and each.suffix not in LOGS
    )
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UsageError(
            f"argument --output_dir: {place} holds what no run of this command has left "
            f"({', '.join(found[:3])}{more}; there is no {MARK}), and nothing of it is "
            f"replaced; give a new folder"
        )


def create(place: Path) -> None:
    """Make the folder."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / LOCK).touch()
    except OSError as error:
        raise UsageError(
            f"argument --output_dir: {place} cannot be written to ({error.strerror}); give "
            f"another folder"
        ) from error


def mend(place: Path) -> None:
    """Finish what runs that were killed have begun, and remove their drafts."""
    for path in (place, place / NEXT):
        for folder in (path, path / CHECKPOINTS):
            if folder.is_dir():
                remove_drafts(folder)
    put_in_place(place)


def put_in_place(place: Path) -> None:
    """Let a finished result in ``next/`` take the place of the one before it.

    It may be killed at any moment, and is called again: ``next/mark.json``, which lists what is to
    be there, moves last.
    """
    following = place / NEXT
    mark = read_mark(following)
    if mark is None or mark.finished is None:
        return
    for name in result_names(place):
        if name not in mark.finished:
            remove(place / name)
    for name in (*mark.finished, MARK):
        if (following / name).exists():
            if (place / name).is_dir():
                shutil.rmtree(place / name)
            os.replace(following / name, place / name)
    shutil.rmtree(following)


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
